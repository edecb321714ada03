"""Scaling: start workers while there is work, and end allocations without work."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Set

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.conductor.allocation_source import AllocationSource
from maestro_celery_plugin.conductor.broken_machines import BrokenMachines
from maestro_celery_plugin.conductor.dead_workers import DeadWorkers
from maestro_celery_plugin.conductor.error_log import try_each
from maestro_celery_plugin.conductor.free_slots import FreeSlots
from maestro_celery_plugin.conductor.pool_end import PoolEnd
from maestro_celery_plugin.conductor.relatives import Relatives
from maestro_celery_plugin.conductor.remaining_work import RemainingWork
from maestro_celery_plugin.conductor.reopening import Reopening
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.stopped_workers import StoppedWorkers
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.conductor.worker_sources import config_of, sources_of
from maestro_celery_plugin.config.groups import has_other_hosts
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.study.members import Member
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import request_start, request_worker_stop

__all__ = ["Scaling"]

LOGGER = logging.getLogger(__name__)

# Workers that have not released cancelled samples after this time are killed.
CANCEL_LIMIT_S = 7.0


class Scaling:
    """Starts and ends the workers and allocations of one study.

    Args:
        plan: The study.
        session: The session.
        records: The step records; the constructor loads those of an earlier conductor.
        groups: The worker groups by name.

    Attributes:
        relatives: The other studies of the session.
        continues: Whether workers take samples of a step record again; these samples may have no message. The caller
            changes it back.
    """

    def __init__(
        self, plan: StudyPlan, session: Session, records: StepRecords, groups: Mapping[str, WorkerGroupSettings]
    ) -> None:
        self._plan, self._session, self._records = plan, session, records
        for name in groups:
            session.write_group(config_of(plan.settings, name))
        self._stopped = StoppedWorkers(session)
        self._stopped.refresh()  # before the first step record starts workers
        self._noted: set[str] = set()
        # Allocations that have ended, until this was applied to the step records.
        self._ended: list[tuple[AllocationSource, Allocation]] = []
        self.relatives = Relatives(session, plan.id)
        self.continues = False
        self._pool = WorkerPool(session, groups, sources_of(plan, session), self.relatives)
        self._find_workers()
        self._remaining_work = RemainingWork(plan)
        records.live_writers = self._pool.alive
        records.load(self._find_workers)
        self._dead_workers = DeadWorkers(self._pool, records, has_other_hosts=has_other_hosts(plan.settings))
        self._reopening = Reopening(session, self._pool, records)
        self._broken_machines = BrokenMachines(plan, session, records, self._pool)

    def _find_workers(self) -> Set[str]:
        """Return the live workers, also those that have just begun on another node: they would count as dead."""
        self._session.heartbeats.refresh()
        self._pool.refresh()
        return self._pool.alive.keys() | self._pool.unread

    def maintain(self) -> None:
        """Start workers for each group with work, and end allocations without work.

        An error of one part, such as a full disk, is logged; it keeps no other part from its work.

        Raises:
            OSError: the other studies of the session cannot be listed now, so that nobody knows whose workers end.
        """
        self.relatives.refresh()
        try_each(
            self._enforce_cancellation,
            self._dead_workers.detect,
            self.stop_workers,  # before an allocation whose workers leave has ended
            self._apply_ends,
            self._reopening.apply_to_abandoned,
            self._note_work,
            self._let_allocations_end,  # they have slots now if workers have begun
            self._broken_machines.check,
            lambda: self._records.give_up(lambda record: self._pool.machine_count(record.groups)),
            self._scale,
        )

    def _apply_ends(self) -> None:
        """Apply the ends of allocations to the step records; each until this has succeeded."""
        self._ended += self._pool.refresh_allocations()
        while self._ended:
            self._reopening.apply(*self._ended[0])
            del self._ended[0]

    def stop_workers(self) -> None:
        """Let the workers leave that a user or a sample has stopped, and their allocations end.

        Raises:
            OSError: a file cannot be read or written now; `maintain` tries again.
        """
        if self._records.stop_request:
            groups = tuple(self._pool.groups) if self.relatives.living else None
            request_worker_stop(self._session.path, groups, self._records.stop_request)
            self._records.stop_request = ""
            self._pool.refresh()
        self._stopped.refresh()
        self._stopped.ask(self._pool.alive.values())
        for group in filter(self._stopped.includes, self._pool.groups):
            self._pool.excuse(group)
        self._let_allocations_end()
        self._keep_allocations()
        waited = [record for record in self._records if record.waits]
        waits = {groups: self._waits(groups) for groups in {record.groups for record in self._records}}
        for record in self._records:
            record.waits = waits[record.groups]
        if self._stopped.request is not None and any(record.waits for record in self._records.with_work()):
            self._stopped.announce(self._plan.root)
        if not all(record.waits for record in waited):
            self.continues = True

    def waits(self, record: StepRecord) -> bool:
        """Tell whether the workers of a step record are stopped, and no other worker serves it."""
        return self._waits(record.groups)

    def _waits(self, groups: Collection[str]) -> bool:
        """Tell whether the workers of groups are stopped, and no other worker of them may run samples."""
        if not groups or not all(map(self._is_stopped, groups)):
            return False
        return not any(beat.group in groups and self._stopped.spares(beat) for beat in self._pool.alive.values())

    def _is_stopped(self, group: str) -> bool:
        """Tell whether no worker of a group may start; a full disk may delay the storage of a request."""
        return bool(self._records.stop_request) or self._stopped.includes(group)

    def _let_allocations_end(self) -> None:
        """Let the open allocations end whose groups are all stopped."""
        request = self._stopped.request
        if request is None:
            return
        for source in self._pool.allocation_sources:
            allocation = source.current if source.is_open else None
            groups = self._pool.groups_of(source)
            if allocation is None or not all(map(self._stopped.includes, groups)):
                continue
            if all(map(request.end_now, groups)):
                self._pool.release(source)
            elif not allocation.released:
                source.let_end(has_worked=self._reopening.has_worked(source, allocation))

    def _keep_allocations(self) -> None:
        """Keep the allocations that were to end with their workers, if workers continue after a resume."""
        continuing = {beat.allocation for beat in self._pool.alive.values() if self._stopped.continues(beat)}
        for source in self._pool.allocation_sources:
            if source.current is not None and source.current.label in continuing:
                source.keep()

    def start_workers(self, record: StepRecord) -> None:
        """Start workers for a step record that is being submitted, unless it has ended or its workers are stopped.

        Raises:
            WorkerError: no worker can start.
        """
        if not record.samples.is_complete:
            for group in record.groups:
                if not self._is_stopped(group):
                    self._pool.ensure(group)

    def free_slots(self) -> FreeSlots:
        """Count the free slots of the live workers."""
        return FreeSlots(self._pool.alive.values(), self._records.leases, self._plan.id)

    @property
    def ended_workers(self) -> Set[str]:
        """The workers that have left or died."""
        return self._dead_workers.ended

    def is_dead(self, writer: str) -> bool:
        """Tell whether a worker counts as dead."""
        return self._dead_workers.is_dead(writer)

    def end_worker(self, writer: str) -> None:
        """End a worker that does not do its work; its samples run elsewhere when it is dead."""
        self._pool.kill(writer)

    @property
    def working_allocations(self) -> frozenset[str]:
        """The allocations with a busy worker."""
        return self._pool.working_allocations

    @property
    def further_allocations(self) -> list[str]:
        """The labels of open allocations of this conductor that are not the first ones of their name."""
        opened = [source.current for source in self._pool.allocation_sources if source.is_owner and source.is_open]
        return [allocation.label for allocation in opened if allocation is not None and allocation.number > 1]

    def end(self, others: list[Member]) -> None:
        """End the workers and allocations that no other study of the session needs.

        Args:
            others: The other members of the session that live; without any, no workers are stopped any more.
        """
        PoolEnd(self._session, self._pool, self.relatives.needs_of(others)).run()
        if not others:
            request_start(self._session.path)

    @property
    def distant_workers(self) -> Set[str]:
        """The live workers whose end no conductor awaits: a user has started them on another machine."""
        beats = self._pool.alive.items()
        return {name for name, beat in beats if not (beat.is_here or beat.is_in_numbered_allocation)}

    @property
    def needs(self) -> frozenset[str] | None:
        """The worker groups with work, or with work in the future; None without a relative that wants to know."""
        if not self.relatives.living:
            return None
        busy = {name for record in self._records.with_work() for name in record.groups}
        queues = {name: group.task_queues for name, group in self._pool.groups.items()}
        return frozenset(n for n, q in queues.items() if n in busy or self._remaining_work.uses_any_of(q))

    def _note_work(self) -> None:
        """Store for the conductors of other studies in which open allocations a sample of this study has started."""
        for source in self._pool.allocation_sources if self.relatives.living else ():
            allocation = source.current
            if allocation is None or not source.is_open or allocation.label in self._noted:
                continue
            if self._reopening.has_worked(source, allocation):
                source.note_work()
                self._noted.add(allocation.label)

    def _scale(self) -> None:
        """Start workers for groups with work, and end allocations whose groups have no present or future work."""
        if self._ended:
            return  # these decide whether another allocation opens
        with_work = self._records.with_work()
        for name in self._pool.groups:
            records = [r for r in with_work if name in r.groups and name not in r.withdrawn]
            if records and not self._is_stopped(name):
                self._ensure(name, records)
        busy = {name for record in with_work for name in record.groups}
        for source in self._pool.allocation_sources:
            groups = self._pool.groups_of(source)
            if source.is_open and busy.isdisjoint(groups):
                queues = {queue for name in groups for queue in self._pool.groups[name].task_queues}
                if not self._remaining_work.uses_any_of(queues):
                    self._pool.release(source)

    def _ensure(self, group: str, records: list[StepRecord]) -> None:
        try:
            self._pool.ensure(group)
        except WorkerError as error:
            LOGGER.error("%s", error)
            for record in records:
                record.reason = str(error)
                if self._pool.has_source_for(set(record.groups) - {group}):
                    record.withdrawn[group] = None  # another group continues the step record
                else:
                    record.failure = str(error)
            self._records.invalidate(*(record for record in records if record.failure))
            self._records.store_reasons()

    def _enforce_cancellation(self) -> None:
        """Kill workers that still have a lease of cancelled samples after CANCEL_LIMIT_S: they do not respond."""
        latest = clock.monotonic() - CANCEL_LIMIT_S
        overdue = [r.number for r in self._records if r.cancelled and (r.cancelled_at or latest) < latest]
        for writer in self._records.leases.holders_of(overdue):
            self._pool.kill(writer)
