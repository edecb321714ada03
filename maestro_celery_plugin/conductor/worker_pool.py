"""The workers of a study, seen from the conductor's side: which of them live, and where more come from.

A group has one source: `LocalWorkers`, an `AllocationSource` that groups may share, or none, when somebody
starts its workers by hand on another machine.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
from collections.abc import Iterable, Iterator, Mapping

from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.conductor.allocations import AllocationSource
from maestro_celery_plugin.conductor.local_workers import LocalWorkers
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.processes import ProcessId, end_marked, host_name, wait_until
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.session import Heartbeat, Session
from maestro_celery_plugin.worker.__main__ import MARKER, PROCESS_MARKER, mark

__all__ = ["WorkerGroup", "WorkerPool"]

LOGGER = logging.getLogger(__name__)

# Workers on other hosts are taken for dead when their heartbeat has not changed for this long.
SILENCE_LIMIT_S = 30.0
_STOP_LIMIT_S = 15.0
SWEEP_LIMIT_S = 6.0
# Workers of allocations leave when they see that they shall; their job ends right after that.
_LEAVE_LIMIT_S = 9.0
_SETTLE_LIMIT_S = 3.0


@dataclasses.dataclass(frozen=True)
class WorkerGroup:
    """A worker group.

    Attributes:
        name: Its name in the specification.
        settings: Its block in the specification.
        queues: The task queues it serves.
    """

    name: str
    settings: WorkerGroupSettings
    queues: tuple[str, ...]


class WorkerPool:
    """All workers of a study.

    Args:
        session: Its session.
        groups: Its worker groups.
        sources: Where workers of each group come from; none for a group whose workers somebody else starts.

    Attributes:
        groups: The worker groups by name.
        alive: The workers that live, by name.
    """

    def __init__(
        self,
        session: Session,
        groups: Iterable[WorkerGroup],
        sources: Mapping[str, LocalWorkers | AllocationSource],
    ) -> None:
        self._session, self._sources = session, sources
        self._ended: set[str] = set()
        self._asked_to_leave: set[str] = set()
        self.groups = {group.name: group for group in groups}
        self._beats: dict[str, tuple[int, float]] = {}
        self.alive: dict[str, Heartbeat] = {}

    def look(self) -> list[Heartbeat]:
        """Find out which workers live; return those that have died since the last time."""
        heartbeats = self._session.heartbeats()
        self.alive = {beat.name: beat for beat in heartbeats if self._lives(beat)}
        return [beat for beat in heartbeats if beat.name not in self.alive]

    def _lives(self, beat: Heartbeat) -> bool:
        if beat.allocation in self._ended:
            return False
        if beat.host == host_name():
            return ProcessId(*beat.process).is_alive
        known, since = self._beats.get(beat.name, (-1, 0.0))
        if beat.beat != known:
            self._beats[beat.name] = beat.beat, time.monotonic()
            return True
        return time.monotonic() - since < SILENCE_LIMIT_S

    def kill(self, name: str) -> None:
        """Kill a worker of this machine; ask one of another machine to leave, which its supervisor sees to."""
        beat = self.alive.get(name)
        if beat is not None and beat.host == host_name():
            ProcessId(*beat.process).signal(signal.SIGKILL)
        elif beat is not None and not self._session.worker_stop_requested(name.partition(".")[0]):
            self._session.request_worker_stop(name.partition(".")[0])

    def bury(self, beat: Heartbeat) -> None:
        """End what a dead worker has left running on this machine, and forget it."""
        if beat.host == host_name():
            supervisor = ProcessId(*beat.supervisor)
            worker, _, pool_process = beat.name.partition(".")
            if pool_process and supervisor.is_alive:
                end_marked(PROCESS_MARKER, mark(self._session, beat.name))
            else:  # the supervisor does this, unless it was killed
                wait_until(lambda: not supervisor.is_alive, SWEEP_LIMIT_S)
                end_marked(MARKER, mark(self._session, worker), spare=frozenset({supervisor.pid}))
        self._session.remove_heartbeat(beat.name)

    def free_slots(self, group: str, held: Mapping[str, int], record: int) -> int:
        """Return how many slots of a group's live workers hold nothing and would take a step record's samples.

        Args:
            group: The group.
            held: Number of slots that hold something, by worker.
            record: Number of the step record.
        """
        return sum(
            max(0, beat.slots - held.get(beat.name, 0))
            for beat in self.alive.values()
            if beat.group == group and beat.state in ("idle", "busy") and record not in beat.refuses
        )

    def ensure(self, group: WorkerGroup) -> None:
        """See to it that a group has workers, or will have.

        Raises:
            WorkerError: it cannot have any.
        """
        source = self._sources.get(group.name)
        if isinstance(source, AllocationSource):
            if source.is_open or any(self._is_extra(beat, group.name) for beat in self.alive.values()):
                return
        elif any(beat.group == group.name for beat in self.alive.values()):
            return
        if source is not None:
            source.ensure()

    @staticmethod
    def _is_extra(beat: Heartbeat, group: str) -> bool:
        """Whether a worker is one that somebody has started by hand."""
        is_ours = bool(beat.allocation.partition("/")[2])
        return beat.group == group and not is_ours and beat.state != "stopping"

    # --- allocations ---

    @property
    def allocation_sources(self) -> list[AllocationSource]:
        """The sources of allocations, each once."""
        return list({id(s): s for s in self._sources.values() if isinstance(s, AllocationSource)}.values())

    @property
    def working_allocations(self) -> frozenset[str]:
        """The allocations of which a worker has something to do."""
        beats = [beat for beat in self.alive.values() if beat.allocation]
        return frozenset(beat.allocation for beat in beats if beat.state == "busy")

    def groups_of(self, source: AllocationSource) -> tuple[str, ...]:
        """Return the groups that an allocation serves."""
        return tuple(name for name, one in self._sources.items() if one is source)

    def look_at_allocations(self) -> Iterator[tuple[AllocationSource, Allocation]]:
        """Yield the allocations that have ended since the last time; their workers are dead."""
        for source in self.allocation_sources:
            if source.current is not None:
                source.current.note_slots(self._slots_of(source.current))
            ended = source.look(is_empty=self._has_run_empty(source.current))
            if ended is not None:
                self._ended.add(ended.label)
                yield source, ended

    def _slots_of(self, allocation: Allocation) -> int:
        return sum(beat.slots for beat in self.alive.values() if beat.allocation == allocation.label)

    def _has_run_empty(self, allocation: Allocation | None) -> bool:
        """Whether an allocation has its nodes and no worker: it has begun a moment ago, or has ended."""
        if allocation is None or allocation.state is not AllocationState.RUNNING:
            return False
        return not any(beat.allocation == allocation.label for beat in self.alive.values())

    def has_source_for(self, groups: Iterable[str]) -> bool:
        """Whether workers of these groups live, or may still come."""
        wanted = set(groups)
        if any(beat.group in wanted and beat.allocation not in self._ended for beat in self.alive.values()):
            return True
        sources = [self._sources.get(name) for name in wanted]
        return any(not isinstance(s, AllocationSource) or s.is_open for s in sources if s is not None)

    def release(self, source: AllocationSource) -> None:
        """Let the workers of an allocation leave, which ends it."""
        label = source.current.label if source.current else ""
        mine = [beat.name for beat in self.alive.values() if beat.allocation == label]
        # Once: what is asked of a worker that has left would stay for ever.
        for name in set(mine) - self._asked_to_leave:
            self._session.request_worker_stop(name)
        self._asked_to_leave.update(mine)
        source.release(by_force=not mine)

    # --- end ---

    def stop(self) -> None:
        """End all workers and allocations, and wait until they are gone."""
        self._session.request_stop()
        self.look()
        for source in self.allocation_sources:
            if source.current is not None and source.current.state is AllocationState.PENDING:
                source.cancel()
        self._stop_local()
        self._end_allocations()
        for beat in self._session.heartbeats():
            if beat.host == host_name():
                self.bury(beat)

    def _stop_local(self) -> None:
        """End the workers of this machine, by signal: they need not look whether they shall."""
        local = [beat for beat in self.alive.values() if beat.host == host_name() and not beat.allocation]
        started = [s for s in self._sources.values() if isinstance(s, LocalWorkers)]
        supervisors = {ProcessId(*beat.supervisor) for beat in local}
        supervisors.update(s.supervisor for s in started if s.supervisor is not None)
        for supervisor in supervisors:
            supervisor.signal(signal.SIGTERM)

        def have_ended() -> bool:
            return all([s.reap() for s in started]) and not any(s.is_alive for s in supervisors)

        if not wait_until(have_ended, _STOP_LIMIT_S):
            for supervisor in supervisors:
                supervisor.signal(signal.SIGKILL, group=True)

    def _end_allocations(self) -> None:
        """Let workers leave their allocations, then end those that go on."""
        for source in self.allocation_sources:
            source.settle()
        still_open = [source for source in self.allocation_sources if source.is_open]
        if not still_open:
            return

        def have_left() -> bool:
            return not any(beat.allocation for beat in self._session.heartbeats())

        wait_until(have_left, _LEAVE_LIMIT_S, interval_s=0.1)
        for source in still_open:
            if not source.await_end(_SETTLE_LIMIT_S):
                source.cancel()
                if not source.await_end(_STOP_LIMIT_S) and source.current is not None:
                    job = source.current.job
                    LOGGER.error("Job %s of the study is still in the queue; cancel it by hand.", job)
