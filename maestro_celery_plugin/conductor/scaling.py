"""The staffing of a study: its step records have workers while there is work, and allocations end when there is none.

It decides what the end of an allocation means for the step records that it served (`states.ALLOCATION_ENDS`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set

from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.conductor.allocations import AllocationSource
from maestro_celery_plugin.conductor.demand import Demand
from maestro_celery_plugin.conductor.step_record import Tracker
from maestro_celery_plugin.conductor.step_records import Records
from maestro_celery_plugin.conductor.worker_pool import SILENCE_LIMIT_S, WorkerGroup, WorkerPool
from maestro_celery_plugin.conductor.worker_sources import has_other_hosts, sources_of, terms_of
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.processes import host_name
from maestro_celery_plugin.states import ALLOCATION_ENDS, AllocationState, RecordState
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.__main__ import is_of_stem, worker_stem

__all__ = ["Staffing"]

LOGGER = logging.getLogger(__name__)

# Workers that have not given up cancelled samples by then are killed.
CANCEL_LIMIT_S = 7.0
# The ledger files of workers that are gone are looked at so often.
GONE_INTERVAL_S = 5.0


class Staffing:
    """Looks after the workers and allocations of one study.

    Args:
        plan: The study.
        session: Its session.
        records: Its step records; what earlier conductors have left is taken up here.
        groups: Its worker groups.
    """

    def __init__(self, plan: StudyPlan, session: Session, records: Records, groups: Sequence[WorkerGroup]) -> None:
        self._plan, self._session, self._records = plan, session, records
        for group in groups:
            terms_of(plan.settings, group.name).write(session)
        self._pool = WorkerPool(session, groups, sources_of(plan, session))
        self._pool.look()
        self._demand = Demand(plan)
        self._has_other_hosts = has_other_hosts(plan.settings)
        self._first_held: dict[str, float] = {}
        self._seen = set(self._pool.alive)
        self._followed_all_at = 0.0
        records.load(self._pool.alive)
        self._seen.update(records.starters)

    def care(self) -> bool:
        """See to it that each group with work has workers, and that no allocation is held for nothing.

        Returns:
            Whether workers were lost since the last time.
        """
        has_lost = self._miss_the_dead()
        for source, allocation in self._pool.look_at_allocations():
            self._take_end(source, allocation)
        self._provide()
        self._enforce_cancellation()
        return has_lost

    def has_room_for(self, tracker: Tracker, held: Mapping[str, int]) -> bool:
        """Tell whether a slot is free that would take samples of a step record.

        Args:
            tracker: The step record.
            held: Number of slots that hold something, by worker.
        """
        number = tracker.manifest.number
        return any(self._pool.free_slots(group, held, number) for group in tracker.groups)

    @property
    def gone(self) -> Set[str]:
        """The workers that have left or died.

        After many allocations their ledger files outnumber the others. One that was only silent may still write.
        """
        return self._seen - self._pool.alive.keys()

    @property
    def working_allocations(self) -> frozenset[str]:
        """The allocations of which a worker has something to do."""
        return self._pool.working_allocations

    def end(self) -> None:
        """End all workers and allocations."""
        self._pool.stop()

    def _miss_the_dead(self) -> bool:
        """Note which workers have died, and what they were running as lost."""
        holding = self._records.holdings.writers()
        dead = self._pool.look()
        for beat in dead:
            LOGGER.warning("Worker '%s' on %s has died.", beat.name, beat.node)
            self._pool.bury(beat)
        silent = {beat.name for beat in dead if beat.host != host_name()}
        self._seen.update(self._pool.alive, (beat.name for beat in dead))
        lost = holding.union(beat.name for beat in dead).difference(self._pool.alive)
        lost -= self._unseen(lost)
        if lost or time.monotonic() - self._followed_all_at > GONE_INTERVAL_S:
            self._records.follow()
            self._followed_all_at = time.monotonic()
        if lost:
            # A supervisor tells of its worker's death; when it is silent, too, the whole machine is gone.
            innocent = {writer for writer in lost if writer.partition(".")[0] in silent}
            self._records.lose(lost - innocent)
            self._records.lose(innocent, innocent=True)
        return bool(lost)

    def _unseen(self, writers: set[str]) -> set[str]:
        """Return the writers whose heartbeat may not be visible here yet, though their ledger is.

        The two are in different directories, which NFS caches each for itself.
        """
        if not self._has_other_hosts:
            return set()
        now = time.monotonic()
        unseen = writers - self._seen
        return {name for name in unseen if now - self._first_held.setdefault(name, now) < SILENCE_LIMIT_S}

    # --- ends of allocations ---

    def _take_end(self, source: AllocationSource, allocation: Allocation) -> None:
        """Decide what becomes of the step records that an allocation served until it ended."""
        groups = self._pool.groups_of(source)
        dead = self._pool.look()
        for beat in dead:
            self._pool.bury(beat)
        self._records.follow()
        innocent = allocation.state is not AllocationState.OUT_OF_MEMORY
        self._records.lose((beat.name for beat in dead), innocent=innocent)
        stems = tuple(worker_stem(group, allocation.label) for group in groups)
        has_worked = any(is_of_stem(writer, stem) for writer in self._records.starters for stem in stems)
        source.note_end(allocation, has_worked=has_worked, words=self._session.last_words(stems))
        stranded = []
        for tracker in self._records.with_work():
            if not set(tracker.groups).intersection(groups):
                continue  # it was served by others
            if not self._pool.has_source_for(tracker.groups):
                stranded.append(tracker)
            elif not allocation.released and (tracker.touched or allocation.state is AllocationState.CANCELLED):
                tracker.withdrawn.update(groups)  # the next one takes a restart, when all its groups have ended
        if not allocation.released:
            self._strand(stranded, allocation)

    def _strand(self, trackers: list[Tracker], allocation: Allocation) -> None:
        """Let step records that have lost their last allocation time out, if they have started a sample in it."""
        end = f"{allocation.state.value}{f' ({allocation.reason})' if allocation.reason else ''}"
        reason = f"Allocation '{allocation.label}' (job {allocation.job}) has ended: {end}."
        if ALLOCATION_ENDS[allocation.state] is RecordState.CANCELLED:
            LOGGER.warning("%d step records are cancelled. %s", len(trackers), reason)
            self._records.cancel(*trackers, reason=reason)
            return
        for tracker in trackers:
            if tracker.touched:
                LOGGER.warning("'%s' has samples left. %s", tracker.manifest.name, reason)
                tracker.timed_out, tracker.reason = True, reason
        self._records.store_reasons()

    # --- workers for work ---

    def _provide(self) -> None:
        """Have workers where there is work, and end allocations where none is left or will come."""
        with_work = self._records.with_work()
        for name, group in self._pool.groups.items():
            trackers = [t for t in with_work if name in t.groups and name not in t.withdrawn]
            if trackers:
                self._ensure(group, trackers)
        busy = {name for tracker in with_work for name in tracker.groups}
        for source in self._pool.allocation_sources:
            groups = self._pool.groups_of(source)
            if source.is_open and busy.isdisjoint(groups):
                queues = {queue for name in groups for queue in self._pool.groups[name].queues}
                if not self._demand.for_queues(queues):
                    self._pool.release(source)

    def _ensure(self, group: WorkerGroup, trackers: list[Tracker]) -> None:
        try:
            self._pool.ensure(group)
        except WorkerError as error:
            LOGGER.error("%s", error)
            for tracker in trackers:
                tracker.reason = str(error)
                if self._pool.has_source_for(set(tracker.groups) - {group.name}):
                    tracker.withdrawn.add(group.name)  # another group goes on with it
                else:
                    tracker.failure = str(error)
            self._records.void(*(tracker for tracker in trackers if tracker.failure))
            self._records.store_reasons()

    def _enforce_cancellation(self) -> None:
        """Kill workers that still hold what was cancelled a while ago: they must be frozen."""
        since = time.monotonic() - CANCEL_LIMIT_S
        overdue = [t.manifest.number for t in self._records if t.cancelled_at is not None and t.cancelled_at < since]
        for writer in self._records.holdings.writers_of(overdue):
            self._pool.kill(writer)
