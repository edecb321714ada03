"""The cancellation of single step records, and the purge of their samples, while the conductor runs the others."""

from __future__ import annotations

from collections.abc import Callable

from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps, purge_reason, reason_of
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["StepCancellation"]


class StepCancellation:
    """Cancels the step records that a user names, or takes their waiting samples back.

    Args:
        plan: The study.
        records: Its step records.
        withdraw: Takes back the messages of a step record that no worker has.

    Attributes:
        has_news: Whether a user has named other step records since the last poll of Maestro, which cancels native ones.
    """

    def __init__(self, plan: StudyPlan, records: StepRecords, withdraw: Callable[[StepRecord], None]) -> None:
        self._plan, self._records, self._withdraw = plan, records, withdraw
        self._cancelled, self._purged = CancelledSteps(plan.cancelled_steps), CancelledSteps(plan.purged_steps)
        self._known = self._cancelled.names()
        self.has_news = False

    def apply_to_submitted(self, record: StepRecord) -> None:
        """Cancel or purge a step record that Maestro submits, if a user has named it.

        Messages of an earlier conductor may wait, so that it is not enough to send none: workers would take them when
        the step record has ended.

        Raises:
            OSError: the names cannot be read.
            LedgerError: the cancellation cannot be recorded now; it is recorded before the step record ends.
        """
        if record.samples.is_complete:
            return
        name = record.manifest.name
        if name in self._known:
            self._records.cancel(record, reason=reason_of(name, self._plan.root))
        elif name in self._purged.names():
            record.purged = record.cancelled = True
            record.reason = purge_reason(self._plan.root)
            self._records.store_reasons()

    def apply(self) -> None:
        """Cancel the step records that a user has named, and end their running samples; purge others.

        Raises:
            OSError: the names cannot be read.
            LedgerError: the cancellation cannot be recorded.
        """
        self._purge()
        names = self._cancelled.names()
        self.has_news = self.has_news or names != self._known
        self._known = names
        if not names:
            return
        named = [record for record in self._records if self._is_to_cancel(record)]
        for record in named:
            self._records.cancel(record, reason=reason_of(record.manifest.name, self._plan.root))

    def _is_to_cancel(self, record: StepRecord) -> bool:
        """Whether a step record must be cancelled now: that its waiting samples were purged does not end the others."""
        if record.manifest.name not in self._known or not record.active or record.is_cancelled_at_once:
            return False
        return not record.samples.is_complete

    def _purge(self) -> None:
        """Take the waiting samples of purged step records back; those that workers have run to their end.

        A worker that has a range may send parts of it, so that the messages are taken back in each call.
        """
        names = self._purged.names()
        purged = [r for r in self._records if r.active and r.manifest.name in names] if names else []
        for record in purged:
            record.purged = True
            if not record.stops_early and not record.samples.is_complete:
                record.cancelled, record.reason = True, purge_reason(self._plan.root)
                self._records.store_reasons()
            self._withdraw(record)
