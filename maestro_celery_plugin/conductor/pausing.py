"""The pausing of a study: a sample stops all workers, and the study waits for a user."""

from __future__ import annotations

import logging

from maestro_celery_plugin.conductor.allocation_source import AllocationSource
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.pause import begin_pause, end_pause
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import has_stem, worker_of, worker_stem

__all__ = ["Pausing"]

LOGGER = logging.getLogger(__name__)


class Pausing:
    """Lets all workers leave on the request of a sample; then the study waits.

    A worker leaves when its running samples have ended. Until a user ends the pause with `maestro-celery resume`, no
    allocation opens and no worker starts, except those that a user starts. A study without further work ends.

    Args:
        plan: The study; a new conductor ends the pause of an earlier one, because only a user starts it.
        session: The session.
        records: The step records, which have the request.
        pool: The worker pool.

    Attributes:
        is_active: Whether no worker may start by itself.
    """

    def __init__(self, plan: StudyPlan, session: Session, records: StepRecords, pool: WorkerPool) -> None:
        self._plan, self._session, self._records, self._pool = plan, session, records, pool
        self._reason = ""
        self._is_stored = False
        self._asked: set[str] = set()
        self.is_active = False
        self._end()

    def check(self) -> bool:
        """Begin or end the pause, and let the workers leave that the conductor has started.

        Returns:
            Whether workers take samples of a step record again; these samples may have no message.

        Raises:
            OSError: a file cannot be written now; the next call tries again.
        """
        request = self._records.stop_request
        if request:
            self._begin(request)
        elif self._is_stored and not self._plan.pause.exists():
            LOGGER.info("The pause has ended; workers start again.")
            self._end()
        if self.is_active:
            self._store()
            self._let_leave([name for name, beat in self._pool.alive.items() if self._is_from_conductor(name, beat)])
            self._let_allocations_end()
        waited = [record for record in self._records if record.waits]
        for record in self._records:
            record.waits = self.is_active and not self._has_workers(record)
        return not all(record.waits for record in waited)

    def _begin(self, reason: str) -> None:
        """Let all workers leave, also those that a user has started."""
        self._pool.refresh()
        self._reason, self.is_active, self._is_stored = reason, True, False
        self._asked.clear()
        self._let_leave(list(self._pool.alive))
        self._records.stop_request = ""

    def _end(self) -> None:
        """End the pause; workers that have not left yet continue."""
        self._session.revoke_leave()
        end_pause(self._plan.pause)
        self._reason, self.is_active, self._is_stored = "", False, False

    def _store(self) -> None:
        """Store the pause as soon as the study has work that waits, and say it once."""
        if self._is_stored or not self._records.with_work():
            return
        begin_pause(self._plan.pause, self._reason)
        self._is_stored = True
        root = self._plan.root
        LOGGER.warning(
            "%s The study waits: `maestro-celery resume %s` starts its workers again, `maestro-celery workers %s` "
            "starts workers on the machine where you type it.",
            *(self._reason, root, root),
        )

    def _let_leave(self, names: list[str]) -> None:
        for worker in {worker_of(name) for name in names} - self._asked:
            self._session.request_worker_leave(worker)
            self._asked.add(worker)

    def _let_allocations_end(self) -> None:
        for source in self._pool.allocation_sources:
            label = source.current.label if source.current else ""
            is_empty = not any(beat.allocation == label for beat in self._pool.alive.values())
            source.let_end(is_empty=is_empty and not self._has_worked(source, label))

    def _has_worked(self, source: AllocationSource, label: str) -> bool:
        """Tell whether a sample has started in an allocation, which the ledger may show before the heartbeat."""
        stems = [worker_stem(group, label) for group in self._pool.groups_of(source)]
        return any(has_stem(writer, stem) for writer in self._records.started_writers for stem in stems)

    def _is_from_conductor(self, name: str, beat: Heartbeat) -> bool:
        """Tell whether the conductor has started a worker, which may have begun during the pause."""
        return name in self._pool.started or bool(beat.allocation.partition("/")[2])

    def _has_workers(self, record: StepRecord) -> bool:
        beats = self._pool.alive.values()
        return any(beat.group in record.groups and beat.state is not WorkerState.STOPPING for beat in beats)
