"""The end of a worker pool: workers and allocations end with the study, except those that another study needs."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.allocation_source import AllocationSource
from maestro_celery_plugin.conductor.local_workers import LocalWorkers
from maestro_celery_plugin.conductor.worker_pool import WorkerPool, logged
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import is_pool_process

__all__ = ["PoolEnd"]

LOGGER = logging.getLogger(__name__)

# Time for workers and cancelled jobs to end when the study ends.
_STOP_LIMIT_S = 15.0
# Workers in allocations leave when they see the request; then their job ends.
_LEAVE_LIMIT_S = 9.0
# Time for an allocation to end after its workers have left (Flux then runs `cleanup` and `rc3`), or have not left.
_ALLOCATION_END_LIMIT_S, _STAY_LIMIT_S = 20.0, 3.0


class PoolEnd:
    """Ends the workers and allocations of a study.

    Args:
        session: The session.
        pool: The worker pool.
        kept: The worker groups that other studies of the session need. Without other studies, all workers of the
            session end, and the session has a request to stop.
    """

    def __init__(self, session: Session, pool: WorkerPool, kept: frozenset[str]) -> None:
        self._session, self._pool, self._kept = session, pool, kept
        self._is_last = session.stop_requested
        self._sources: list[AllocationSource] = []
        for source in pool.allocation_sources:
            if kept.isdisjoint(pool.groups_of(source)):
                self._sources.append(source)
            else:
                source.disown()

    def run(self) -> None:
        """End them, and wait for their end; an error of one part does not stop the others."""
        with logged("The heartbeats cannot be read"):
            self._pool.refresh()
        if not self._is_last:
            self._ask_to_end()
        for source in self._sources:
            self._cancel_waiting(source)
        with logged("The workers on this machine cannot be ended"):
            self._end_local()
        with logged("The allocations cannot be ended"):
            self._end_allocations()
        with logged("The workers that have died cannot be found"):
            for beat in self._ending(self._session.heartbeats.all()):
                if beat.is_here:
                    self._pool.reap(beat)

    def _ending(self, beats: Iterable[Heartbeat]) -> list[Heartbeat]:
        """Return the workers that end."""
        if self._is_last:
            return list(beats)
        return [beat for beat in beats if beat.group in self._pool.groups and beat.group not in self._kept]

    def _ask_to_end(self) -> None:
        """Ask the workers one by one, because others of the session go on."""
        for beat in self._ending(self._pool.alive.values()):
            if not is_pool_process(beat.name):
                with logged(f"Worker '{beat.name}' cannot be asked to end"):
                    self._session.request_worker_stop(beat.name)

    def _cancel_waiting(self, source: AllocationSource) -> None:
        """Cancel an allocation that has not begun."""
        allocation = source.current
        self._pool.record_slots(allocation)
        if allocation is not None and allocation.state is AllocationState.PENDING and not allocation.slots:
            with logged(f"Allocation '{allocation.label}' cannot be cancelled"):
                source.cancel()

    def _end_local(self) -> None:
        """End the workers on this machine with a signal; they need not wait until they read the request to stop."""
        local = [beat for beat in self._ending(self._pool.alive.values()) if beat.is_here and not beat.allocation]
        sources = [source for group, source in self._pool.sources.items() if group not in self._kept]
        started = [source for source in sources if isinstance(source, LocalWorkers)]
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
        for source in self._sources:
            source.resolve()
        still_open = [source for source in self._sources if source.is_open]
        if not still_open:
            return
        names = {source.name for source in still_open}

        def have_left() -> bool:
            return not any(beat.allocation.partition("/")[0] in names for beat in self._session.heartbeats.all())

        has_left = clock.wait_until(have_left, _LEAVE_LIMIT_S, interval_s=0.1)
        for source in still_open:
            had_workers = source.current is not None and source.current.slots > 0
            with logged(f"The end of allocation '{source.name}' cannot be observed"):
                if source.await_end(_ALLOCATION_END_LIMIT_S if has_left and had_workers else _STAY_LIMIT_S):
                    continue
            with logged(f"Allocation '{source.name}' cannot be cancelled"):
                source.cancel(has_left=has_left)
                if not source.await_end(_STOP_LIMIT_S) and source.current is not None:
                    job = source.current.job
                    LOGGER.error("Job %s of the study is still in the queue; cancel it manually.", job)
