"""Re-opening: whether another allocation opens for the step records of an allocation that has ended."""

from __future__ import annotations

import logging

from maestro_celery_plugin.batch.allocation import Allocation, job_words
from maestro_celery_plugin.conductor.allocation_source import AllocationSource
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.states import ALLOCATION_ENDS, AllocationState, RecordState
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import has_stem, last_output, worker_stem

__all__ = ["Reopening"]

LOGGER = logging.getLogger(__name__)


class Reopening:
    """Decides for each unfinished step record of an allocation that has ended (`states.ALLOCATION_ENDS`).

    - With started samples, it times out. Maestro restarts it, up to the limit of `-r`, and the restart opens the next
      allocation. If other workers continue it, it times out only if samples wait and Maestro would restart it; the
      samples that the others run continue. Without a further restart, the others run the rest. If they end before the
      step record, it times out then.
    - Without started samples, it stays open, and `Scaling` opens the next allocation without a restart (`backoff.py`
      limits how often).
    - If a person has cancelled the allocation, the step record is cancelled.

    Args:
        session: The session.
        pool: The worker pool.
        records: The step records.
    """

    def __init__(self, session: Session, pool: WorkerPool, records: StepRecords) -> None:
        self._session, self._pool, self._records = session, pool, records

    def apply(self, source: AllocationSource, allocation: Allocation) -> None:
        """Apply the end of an allocation to the step records of its groups.

        Raises:
            EnsembleError, OSError: this is not possible now; the caller tries again.
        """
        groups = self._pool.groups_of(source)
        dead = self._pool.refresh()
        for beat in dead:
            self._pool.reap(beat)
        self._records.follow(fresh=True)
        external_cause = allocation.state is not AllocationState.OUT_OF_MEMORY
        self._records.mark_lost((beat.name for beat in dead), external_cause=external_cause, is_elsewhere=True)
        ended = []
        for record in self._records.with_work():
            if not set(record.groups).intersection(groups):
                continue  # other groups run this step record
            if not self._pool.has_source_for(record.groups):
                ended.append(record)
            elif not allocation.released and allocation.state is AllocationState.CANCELLED:
                record.withdrawn.update(dict.fromkeys(groups, allocation))
            elif not allocation.released and record.has_started:
                record.withdrawn.update(dict.fromkeys(groups, allocation))
                if record.may_restart() and record.unassigned(self._records.leased(record)):
                    ended.append(record)
        if not allocation.released:
            self._time_out(ended, allocation)
        # Last: the caller applies an end again after an error, which must count once.
        stems = self._stems(source, allocation)
        has_worked = self.has_worked(source, allocation)
        source.record_end(allocation, has_worked=has_worked, output=last_output(self._session, stems))

    def apply_to_abandoned(self) -> None:
        """Apply the end of an allocation to the step records that other workers have continued which have ended too.

        These may be workers of an earlier allocation: a conductor that has just begun learns only from their silence
        that they have died.
        """
        for record in self._records.with_work():
            if record.withdrawn and not self._pool.has_source_for(record.groups):
                ended = [allocation for allocation in record.withdrawn.values() if allocation is not None]
                record.withdrawn.clear()
                if ended:
                    self._time_out([record], ended[-1])

    def has_worked(self, source: AllocationSource, allocation: Allocation) -> bool:
        """Tell whether a sample has started in an allocation, which the ledger may show before a heartbeat."""
        stems = self._stems(source, allocation)
        return any(has_stem(writer, stem) for writer in self._records.started_writers for stem in stems)

    def _stems(self, source: AllocationSource, allocation: Allocation) -> tuple[str, ...]:
        """Return the stems of the workers in an allocation."""
        return tuple(worker_stem(group, allocation.label) for group in self._pool.groups_of(source))

    def _time_out(self, records: list[StepRecord], allocation: Allocation) -> None:
        """Time out step records with a started sample; cancel all of them if their allocation was cancelled.

        Args:
            records: The step records whose last allocation has ended.
            allocation: The last allocation.
        """
        end = f"{allocation.state.value}{f' ({allocation.reason})' if allocation.reason else ''}"
        if not records:
            return
        reason = f"Allocation '{allocation.label}' ({job_words(allocation.job)}) has ended: {end}."
        if ALLOCATION_ENDS[allocation.state] is RecordState.CANCELLED:
            LOGGER.warning("%d step records are cancelled. %s", len(records), reason)
            self._records.cancel(*records, reason=reason)
            return
        for record in records:
            if record.has_started:
                LOGGER.warning("'%s' has unfinished samples. %s", record.manifest.name, reason)
                record.timed_out, record.reason = True, reason
        self._records.store_reasons()
