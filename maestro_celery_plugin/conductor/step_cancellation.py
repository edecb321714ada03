"""The cancellation of single step records, while the conductor runs the others."""

from __future__ import annotations

from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps, reason_of
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["StepCancellation"]


class StepCancellation:
    """Cancels the step records that a user names.

    Args:
        plan: The study.
        records: Its step records.

    Attributes:
        has_news: Whether a user has named other step records since the last poll of Maestro, which cancels native ones.
    """

    def __init__(self, plan: StudyPlan, records: StepRecords) -> None:
        self._plan, self._records = plan, records
        self._cancelled = CancelledSteps(plan.cancelled_steps)
        self._known = self._cancelled.names()
        self.has_news = False

    def reason(self, record: StepRecord) -> str:
        """Return why a step record must not run; empty for one that may run."""
        name = record.manifest.name
        return reason_of(name, self._plan.root) if name in self._known and not record.samples.is_complete else ""

    def apply(self) -> None:
        """Cancel the step records that a user has named, and end their running samples.

        Raises:
            OSError: the names cannot be read.
            LedgerError: the cancellation cannot be recorded.
        """
        names = self._cancelled.names()
        self.has_news = self.has_news or names != self._known
        self._known = names
        if not names:
            return
        named = [record for record in self._records if record.active and not record.cancelled and self.reason(record)]
        for record in named:
            self._records.cancel(record, reason=self.reason(record))
