"""The idle timeout: it decides whether a worker without work leaves."""

from __future__ import annotations

from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.conductor_beats import ConductorWatch
from maestro_celery_plugin.study.session import Session

__all__ = ["IdleTimeout"]

# A worker without time for the remaining samples waits this long for shorter samples before it leaves.
OUT_OF_TIME_LIMIT_S = 5.0


class IdleTimeout:
    """Decides when a worker leaves.

    Args:
        session: The session of the worker.
        allocation: The allocation of the worker; empty without one.
        idle_limit_s: Seconds without work after which the worker may leave.
        deadline: The end of the allocation.

    Attributes:
        conductor: The conductor as the worker sees it.
    """

    def __init__(self, session: Session, allocation: str, idle_limit_s: float, deadline: Deadline) -> None:
        self._session, self._allocation = session, allocation
        self._limit_s, self._deadline = idle_limit_s, deadline
        self.conductor = ConductorWatch(session.conductors)

    def leave_reason(self, idle_s: float, *, out_of_time: bool) -> str | None:
        """Return why the worker leaves; None when it stays.

        A worker stays while another worker of its allocation is busy, because its node would not become free.

        Args:
            idle_s: Seconds since the worker last had work.
            out_of_time: Whether the time is too short for samples of a step record.
        """
        self.conductor.refresh()
        ends_soon = f"its allocation ends in {self._deadline.remaining_s:.0f} s"
        if self._deadline.is_draining and idle_s > 0:
            return ends_soon
        if idle_s > OUT_OF_TIME_LIMIT_S and out_of_time:
            return f"{ends_soon}, too soon for the remaining samples"
        if idle_s <= self._limit_s:
            return None
        if self.conductor.silent_s > self._limit_s:
            return f"it has been idle for {idle_s:.0f} s, and the conductor has been silent"
        if self._allocation and not self._allocation_is_busy():
            return f"all workers of its allocation have been idle for {idle_s:.0f} s"
        return None

    def _allocation_is_busy(self) -> bool:
        """Tell whether another worker of the allocation is busy.

        The conductor reports the busy allocations; if it does not know them, the heartbeats of the workers decide.
        """
        if self.conductor.working is not None:
            return self._allocation in self.conductor.working
        beats, unreadable = self._session.heartbeats.read()
        busy = {beat.allocation for beat in beats if beat.state is WorkerState.BUSY}
        return bool(unreadable) or self._allocation in busy
