"""Scaling: start workers while there is work, and end allocations without work.

This module also sets the state of step records whose allocation has ended (`states.ALLOCATION_ENDS`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Set

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.conductor.allocations import AllocationSource
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.conductor.worker_sources import config_of, sources_of
from maestro_celery_plugin.config.groups import has_other_hosts
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.processes import host_name
from maestro_celery_plugin.states import ALLOCATION_ENDS, AllocationState, RecordState
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import FINAL_STATES, read_rows
from maestro_celery_plugin.study.worker_identity import has_stem, last_output, worker_stem

__all__ = ["RemainingWork", "Scaling"]

LOGGER = logging.getLogger(__name__)

# Workers that have not released cancelled samples after this time are killed.
CANCEL_LIMIT_S = 7.0
# Interval between two reads of the ledger files of ended workers.
ENDED_WORKERS_INTERVAL_S = 5.0
# Minimum interval between two reads of the states, which Maestro writes at each poll.
_DEMAND_INTERVAL_S = 2.0


class RemainingWork:
    """The remaining work of a study: the task queues of unfinished step records, from Maestro's ``status.csv``.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._queues: frozenset[str] = frozenset()
        self._read_at = float("-inf")

    def uses_any_of(self, queues: Collection[str]) -> bool:
        """Tell whether a step record that has not ended uses one of these task queues."""
        now = clock.monotonic()
        if now - self._read_at > _DEMAND_INTERVAL_S:
            self._read_at = now
            self._queues = self._read()
        return not self._queues.isdisjoint(queues)

    def _read(self) -> frozenset[str]:
        rows = read_rows(self._plan.root)
        # Maestro removes characters that are invalid in a path from the name of a step. If a name is not found for this
        # reason, all task queues count.
        steps = self._plan.settings.steps
        names = {row.step for row in rows if row.state not in FINAL_STATES}
        queues_of = {name: step.queues for name, step in steps.items()}
        if not rows or not names <= set(queues_of):
            return frozenset(queue for queues in queues_of.values() for queue in queues)
        return frozenset(queue for name in names for queue in queues_of[name])


class Scaling:
    """Starts and ends the workers and allocations of one study.

    Args:
        plan: The study.
        session: The session.
        records: The step records; the constructor loads those of an earlier conductor.
        groups: The worker groups by name.
    """

    def __init__(
        self, plan: StudyPlan, session: Session, records: StepRecords, groups: Mapping[str, WorkerGroupSettings]
    ) -> None:
        self._plan, self._session, self._records = plan, session, records
        for name in groups:
            session.write_group(config_of(plan.settings, name))
        self._pool = WorkerPool(session, groups, sources_of(plan, session))
        self._pool.refresh()
        self._demand = RemainingWork(plan)
        self._has_other_hosts = has_other_hosts(plan.settings)
        self._first_leased: dict[str, float] = {}
        self._seen = set(self._pool.alive)
        self._followed_all_at = 0.0
        records.load(self._pool.alive)
        self._seen.update(records.started_writers)

    def maintain(self) -> bool:
        """Start workers for each group with work, and end allocations without work.

        Returns:
            Whether workers were lost since the last call.
        """
        has_lost = self._detect_dead()
        for source, allocation in self._pool.refresh_allocations():
            self._take_end(source, allocation)
        self._scale()
        self._enforce_cancellation()
        return has_lost

    def has_room_for(self, record: StepRecord, leases: Mapping[str, int]) -> bool:
        """Tell whether a free slot accepts samples of a step record.

        Args:
            record: The step record.
            leases: Number of slots with a lease, by worker.
        """
        return any(self._pool.free_slots(group, leases, record.number) for group in record.groups)

    @property
    def ended_workers(self) -> Set[str]:
        """The workers that have left or died.

        After many allocations, most ledger files belong to such workers. A worker that was only silent may still write.
        """
        return self._seen - self._pool.alive.keys()

    @property
    def working_allocations(self) -> frozenset[str]:
        """The allocations with a busy worker."""
        return self._pool.working_allocations

    def end(self) -> None:
        """End all workers and allocations."""
        self._pool.stop()

    def _detect_dead(self) -> bool:
        """Find the workers that have died, and record their running attempts as lost."""
        holders = self._records.leases.holders()
        dead = self._pool.refresh()
        for beat in dead:
            LOGGER.warning("Worker '%s' on %s has died.", beat.name, beat.node)
            self._pool.reap(beat)
        silent = {beat.name for beat in dead if beat.host != host_name()}
        self._seen.update(self._pool.alive, (beat.name for beat in dead))
        lost = holders.union(beat.name for beat in dead).difference(self._pool.alive)
        lost -= self._unseen(lost)
        if lost or clock.monotonic() - self._followed_all_at > ENDED_WORKERS_INTERVAL_S:
            self._records.follow()
            self._followed_all_at = clock.monotonic()
        if lost:
            # A supervisor reports the death of its worker; if the supervisor is silent as well, the machine has failed.
            on_failed_machines = {writer for writer in lost if writer.partition(".")[0] in silent}
            self._records.mark_lost(lost - on_failed_machines)
            self._records.mark_lost(on_failed_machines, external_cause=True)
        return bool(lost)

    def _unseen(self, writers: set[str]) -> set[str]:
        """Return the writers whose ledger is visible, but whose heartbeat may not be visible yet.

        The files are in different directories, which NFS caches separately.
        """
        if not self._has_other_hosts:
            return set()
        now = clock.monotonic()
        unseen = writers - self._seen
        return {name for name in unseen if now - self._first_leased.setdefault(name, now) < SILENCE_LIMIT_S}

    # --- ends of allocations ---

    def _take_end(self, source: AllocationSource, allocation: Allocation) -> None:
        """Apply the end of an allocation to the step records of its groups."""
        groups = self._pool.groups_of(source)
        dead = self._pool.refresh()
        for beat in dead:
            self._pool.reap(beat)
        self._records.follow()
        external_cause = allocation.state is not AllocationState.OUT_OF_MEMORY
        self._records.mark_lost((beat.name for beat in dead), external_cause=external_cause)
        stems = tuple(worker_stem(group, allocation.label) for group in groups)
        has_worked = any(has_stem(writer, stem) for writer in self._records.started_writers for stem in stems)
        source.record_end(allocation, has_worked=has_worked, output=last_output(self._session, stems))
        ended = []
        for record in self._records.with_work():
            if not set(record.groups).intersection(groups):
                continue  # other groups run this step record
            if not self._pool.has_source_for(record.groups):
                ended.append(record)
            elif not allocation.released and (record.has_started or allocation.state is AllocationState.CANCELLED):
                record.withdrawn.update(groups)  # a restart opens the next allocation after all groups have ended
        if not allocation.released:
            self._time_out(ended, allocation)

    def _time_out(self, records: list[StepRecord], allocation: Allocation) -> None:
        """Time out step records with a started sample; cancel all of them if their allocation was cancelled.

        Args:
            records: The step records whose last allocation has ended.
            allocation: The last allocation.
        """
        end = f"{allocation.state.value}{f' ({allocation.reason})' if allocation.reason else ''}"
        reason = f"Allocation '{allocation.label}' (job {allocation.job}) has ended: {end}."
        if ALLOCATION_ENDS[allocation.state] is RecordState.CANCELLED:
            LOGGER.warning("%d step records are cancelled. %s", len(records), reason)
            self._records.cancel(*records, reason=reason)
            return
        for record in records:
            if record.has_started:
                LOGGER.warning("'%s' has unfinished samples. %s", record.manifest.name, reason)
                record.timed_out, record.reason = True, reason
        self._records.store_reasons()

    # --- workers for work ---

    def _scale(self) -> None:
        """Start workers for groups with work, and end allocations whose groups have no present or future work."""
        with_work = self._records.with_work()
        for name in self._pool.groups:
            records = [r for r in with_work if name in r.groups and name not in r.withdrawn]
            if records:
                self._ensure(name, records)
        busy = {name for record in with_work for name in record.groups}
        for source in self._pool.allocation_sources:
            groups = self._pool.groups_of(source)
            if source.is_open and busy.isdisjoint(groups):
                queues = {queue for name in groups for queue in self._pool.groups[name].task_queues}
                if not self._demand.uses_any_of(queues):
                    self._pool.release(source)

    def _ensure(self, group: str, records: list[StepRecord]) -> None:
        try:
            self._pool.ensure(group)
        except WorkerError as error:
            LOGGER.error("%s", error)
            for record in records:
                record.reason = str(error)
                if self._pool.has_source_for(set(record.groups) - {group}):
                    record.withdrawn.add(group)  # another group continues the step record
                else:
                    record.failure = str(error)
            self._records.invalidate(*(record for record in records if record.failure))
            self._records.store_reasons()

    def _enforce_cancellation(self) -> None:
        """Kill workers that still have a lease of cancelled samples after CANCEL_LIMIT_S: they do not respond."""
        latest = clock.monotonic() - CANCEL_LIMIT_S
        overdue = [r.number for r in self._records if r.cancelled_at is not None and r.cancelled_at < latest]
        for writer in self._records.leases.holders_of(overdue):
            self._pool.kill(writer)
