"""The worker pool: the workers of a study in the conductor, and the sources of more workers.

A group has one source: `LocalWorkers`, an `AllocationSource` that several groups may share, or none if a user starts
its workers on another machine.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterable, Iterator, Mapping

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.conductor.allocation_source import AllocationSource
from maestro_celery_plugin.conductor.local_workers import LocalWorkers
from maestro_celery_plugin.conductor.silence import Silence
from maestro_celery_plugin.conductor.started_workers import StartedWorkers
from maestro_celery_plugin.conductor.worker_sources import WorkerSource
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.processes import ProcessId, end_marked
from maestro_celery_plugin.states import AllocationState, WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import MARKER, PROCESS_MARKER, is_pool_process, mark, worker_of

__all__ = ["WorkerPool"]

LOGGER = logging.getLogger(__name__)

# Time for workers and cancelled jobs to end when the study ends.
_STOP_LIMIT_S = 15.0
# Time for the supervisor of a dead worker to end its samples.
SWEEP_LIMIT_S = 6.0
# Workers in allocations leave when they see the request; then their job ends.
_LEAVE_LIMIT_S = 9.0
# Time for an allocation to end after its workers have left (Flux then runs `cleanup` and `rc3`), or have not left.
_ALLOCATION_END_LIMIT_S, _STAY_LIMIT_S = 20.0, 3.0


@contextlib.contextmanager
def _logged(problem: str) -> Iterator[None]:
    """Log an error of a file or a process and continue, because the end of other workers must not depend on it."""
    try:
        yield
    except (OSError, EnsembleError) as error:
        LOGGER.error("%s: %s", problem, error)


class WorkerPool:
    """All workers of a study.

    Args:
        session: The session.
        groups: The worker groups by name.
        sources: The source of each group; a group whose workers a user starts has no source.

    Attributes:
        groups: The worker groups by name.
        alive: The live workers by name.
        unread: Names of workers that may be alive, although their heartbeats could not be read so far.
        started: The workers that this process has started.
    """

    def __init__(
        self,
        session: Session,
        groups: Mapping[str, WorkerGroupSettings],
        sources: Mapping[str, WorkerSource],
    ) -> None:
        self._session, self._sources = session, sources
        self._ended: set[str] = set()
        self._requested_to_leave: set[str] = set()
        self._reaped: set[str] = set()
        self._excluded: set[str] = set()
        self.groups = groups
        self._silence = Silence(session.heartbeats)
        self.alive: dict[str, Heartbeat] = {}
        self.unread: set[str] = set()
        self.started = StartedWorkers(session, sources)

    def refresh(self) -> list[Heartbeat]:
        """Find the live workers; return the dead workers, until `reap` removes their heartbeats.

        Raises:
            OSError: the directory of the heartbeats cannot be read.
        """
        found, unreadable = self._session.heartbeats.read()
        self._silence.record_unreadable(unreadable)
        heartbeats = {beat.name: beat for beat in found}
        for name in self.alive.keys() - heartbeats.keys():
            beat = self.alive[name]
            is_there = name in unreadable or self._session.heartbeats.exists(name)
            if is_there or (beat.is_here and ProcessId(*beat.process).is_alive):
                heartbeats[name] = beat
        alive = {name: beat for name, beat in heartbeats.items() if self._is_alive(beat)}
        self.unread = {name for name in unreadable if name not in heartbeats and self._silence.is_broken_unread(name)}
        self.alive.clear()  # the same dictionary, which others refer to
        self.alive.update(alive)
        return [beat for name, beat in heartbeats.items() if name not in self.alive]

    def look_again(self) -> bool:
        """Find the live workers whose heartbeats NFS does not show to this node yet, because it caches their names.

        Returns:
            Whether the present names are known, so that a worker without a heartbeat has ended or has just begun.
        """
        with _logged("The names of the workers cannot be read"):
            self._session.heartbeats.refresh()
            self.refresh()
            return True
        return False

    def _is_alive(self, beat: Heartbeat) -> bool:
        if beat.allocation in self._ended:
            return False
        if beat.is_here:
            return ProcessId(*beat.process).is_alive
        return self._silence.is_broken_by(beat)

    def kill(self, name: str) -> None:
        """Kill a worker on this machine; request a worker on another machine to leave (its supervisor enforces it)."""
        beat = self.alive.get(name)
        if beat is not None and beat.is_here:
            ProcessId(*beat.process).signal(signal.SIGKILL)
        elif beat is not None and not self._session.worker_stop_requested(worker_of(name)):
            with _logged(f"Worker '{name}' cannot be asked to end"):
                self._session.request_worker_stop(worker_of(name))

    def reap(self, beat: Heartbeat) -> None:
        """End the samples of a dead worker on this machine, and remove its heartbeat."""
        if beat.is_here:
            supervisor = ProcessId(*beat.supervisor)
            if is_pool_process(beat.name) and supervisor.is_alive:
                end_marked(PROCESS_MARKER, mark(self._session, beat.name))
            else:  # the supervisor ends the samples, unless it was killed
                clock.wait_until(lambda: not supervisor.is_alive, SWEEP_LIMIT_S)
                marker = mark(self._session, worker_of(beat.name))
                end_marked(MARKER, marker, spare=frozenset({supervisor.pid}))
        with _logged(f"The heartbeat of worker '{beat.name}' cannot be removed"):
            self._session.heartbeats.remove(beat.name)
        if beat.name in self._reaped:  # it lives, although its allocation has ended or it was silent for too long
            with _logged(f"Worker '{beat.name}' cannot be asked to end"):
                self._session.request_worker_stop(worker_of(beat.name))
        self._reaped.add(beat.name)

    def exclude(self, beat: Heartbeat) -> None:
        """Start no more workers of a group on this machine, if a worker has shown that the machine is broken."""
        if beat.is_here and isinstance(self._sources.get(beat.group), LocalWorkers):
            self._excluded.add(beat.group)

    def machine_count(self, groups: Iterable[str]) -> int:
        """Return the number of machines with a live worker of these groups."""
        return len({beat.place for beat in self.alive.values() if beat.group in groups})

    def ensure(self, group: str) -> None:
        """Start workers of a group, unless workers of the group live or are about to start.

        Raises:
            WorkerError: no worker can start.
        """
        if group in self._excluded:
            return
        source = self._sources.get(group)
        if isinstance(source, AllocationSource):
            if source.is_open or any(self._is_started_by_user(beat, group) for beat in self.alive.values()):
                return
        elif any(beat.group == group for beat in self.alive.values()):
            return
        if source is not None:
            source.ensure()

    @staticmethod
    def _is_started_by_user(beat: Heartbeat, group: str) -> bool:
        """Whether a user has started a worker of a group, and the worker stays."""
        return beat.group == group and not beat.is_in_numbered_allocation and beat.state is not WorkerState.STOPPING

    def excuse(self, group: str) -> None:
        """Record that the workers of a group were asked to leave, so that their end is no failure."""
        source = self._sources.get(group)
        if isinstance(source, LocalWorkers):
            source.excuse()

    # --- allocations ---

    @property
    def allocation_sources(self) -> list[AllocationSource]:
        """The sources of allocations; a source that several groups share occurs once."""
        return list({id(s): s for s in self._sources.values() if isinstance(s, AllocationSource)}.values())

    @property
    def working_allocations(self) -> frozenset[str]:
        """The allocations with a busy worker."""
        beats = [beat for beat in self.alive.values() if beat.allocation]
        return frozenset(beat.allocation for beat in beats if beat.state is WorkerState.BUSY)

    def groups_of(self, source: AllocationSource) -> tuple[str, ...]:
        """Return the groups that share a source."""
        return tuple(name for name, other in self._sources.items() if other is source)

    def refresh_allocations(self) -> Iterator[tuple[AllocationSource, Allocation]]:
        """Yield the allocations that have ended since the last call; from then on, their workers count as dead."""
        for source in self.allocation_sources:
            self._record_slots(source.current)
            ended = source.refresh(is_empty=self._is_empty(source.current))
            if ended is not None:
                self._ended.add(ended.label)
                yield source, ended

    def _record_slots(self, allocation: Allocation | None) -> None:
        """Record the slots of the live workers; an allocation with workers has begun, whatever its last report says."""
        if allocation is not None:
            allocation.record_slots(sum(b.slots for b in self.alive.values() if b.allocation == allocation.label))

    def _is_empty(self, allocation: Allocation | None) -> bool:
        """Whether an allocation has nodes but no worker, because it has just begun or has just ended."""
        if allocation is None or allocation.state is not AllocationState.RUNNING:
            return False
        return not any(beat.allocation == allocation.label for beat in self.alive.values())

    def has_source_for(self, groups: Iterable[str]) -> bool:
        """Tell whether workers of these groups live or may still start."""
        wanted = set(groups)
        if any(beat.group in wanted and beat.allocation not in self._ended for beat in self.alive.values()):
            return True
        sources = [self._sources.get(name) for name in wanted]
        return any(not isinstance(s, AllocationSource) or s.is_open for s in sources if s is not None)

    def release(self, source: AllocationSource) -> None:
        """Request the workers of an allocation to leave, which ends the allocation."""
        label = source.current.label if source.current else ""
        workers = [beat.name for beat in self.alive.values() if beat.allocation == label]
        # One request per worker: a second request to a worker that has left would never be removed.
        for name in set(workers) - self._requested_to_leave:
            with _logged(f"Worker '{name}' cannot be asked to leave"):
                self._session.request_worker_stop(name)
                self._requested_to_leave.add(name)
        source.release(is_empty=not workers)

    # --- end ---

    def stop(self) -> None:
        """End all workers and allocations, and wait for their end; an error of one part does not stop the others."""
        with _logged("The workers cannot be asked to end"):
            self._session.request_stop()
        with _logged("The heartbeats cannot be read"):
            self.refresh()
        for source in self.allocation_sources:
            self._record_slots(source.current)
            current = source.current
            if current is not None and current.state is AllocationState.PENDING and not current.slots:
                with _logged(f"Allocation '{current.label}' cannot be cancelled"):
                    source.cancel()
        with _logged("The workers on this machine cannot be ended"):
            self._stop_local()
        with _logged("The allocations cannot be ended"):
            self._end_allocations()
        with _logged("The workers that have died cannot be found"):
            for beat in self._session.heartbeats.all():
                if beat.is_here:
                    self.reap(beat)

    def _stop_local(self) -> None:
        """End the workers on this machine with a signal; they need not wait until they read the request to stop."""
        local = [beat for beat in self.alive.values() if beat.is_here and not beat.allocation]
        started = [s for s in self._sources.values() if isinstance(s, LocalWorkers)]
        supervisors = {ProcessId(*beat.supervisor) for beat in local}
        supervisors.update(s.supervisor for s in started if s.supervisor is not None)
        for supervisor in supervisors:
            supervisor.signal(signal.SIGTERM)

        def have_ended() -> bool:
            return all([s.has_ended() for s in started]) and not any(s.is_alive for s in supervisors)

        if not clock.wait_until(have_ended, _STOP_LIMIT_S):
            for supervisor in supervisors:
                supervisor.signal(signal.SIGKILL, group=True)

    def _end_allocations(self) -> None:
        """Wait until the workers have left their allocations, then cancel the allocations that are still open."""
        for source in self.allocation_sources:
            source.resolve()
        still_open = [source for source in self.allocation_sources if source.is_open]
        if not still_open:
            return

        def have_left() -> bool:
            return not any(beat.allocation for beat in self._session.heartbeats.all())

        has_left = clock.wait_until(have_left, _LEAVE_LIMIT_S, interval_s=0.1)
        for source in still_open:
            had_workers = source.current is not None and source.current.slots > 0
            with _logged(f"The end of allocation '{source.name}' cannot be observed"):
                if source.await_end(_ALLOCATION_END_LIMIT_S if has_left and had_workers else _STAY_LIMIT_S):
                    continue
            with _logged(f"Allocation '{source.name}' cannot be cancelled"):
                source.cancel(has_left=has_left)
                if not source.await_end(_STOP_LIMIT_S) and source.current is not None:
                    job = source.current.job
                    LOGGER.error("Job %s of the study is still in the queue; cancel it manually.", job)
