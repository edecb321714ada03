"""The stay of a worker: how long it is of use, by what it has to do, its allocation's end, and the conductor."""

from __future__ import annotations

from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.study.heartbeats import HeardConductor
from maestro_celery_plugin.study.session import Session

__all__ = ["WorkerStay"]

# A worker that has time for nothing of what is left waits this long for something shorter, and leaves.
REFUSAL_LIMIT_S = 5.0


class WorkerStay:
    """Decides when a worker leaves.

    Args:
        session: Its session.
        allocation: Its allocation; empty for a worker that is in none.
        idle_limit_s: For how long it may have nothing to do.
        deadline: When its allocation ends.
    """

    def __init__(self, session: Session, allocation: str, idle_limit_s: float, deadline: Deadline) -> None:
        self._session, self._allocation = session, allocation
        self._limit_s, self._deadline = idle_limit_s, deadline
        self._conductor = HeardConductor(session)

    def why_leave(self, idle_s: float, *, refuses: bool) -> str | None:
        """Return why the worker is not needed any more; None while it is.

        While another one of its allocation works, leaving would free nothing.

        Args:
            idle_s: For how long it has had nothing to do.
            refuses: Whether there is work that it does not start any more, for lack of time.
        """
        self._conductor.look()
        left = f"its allocation ends in {self._deadline.left_s:.0f} s"
        if self._deadline.is_draining and idle_s > 0:
            return left
        if idle_s > REFUSAL_LIMIT_S and refuses:
            return f"{left}, too soon for the samples that are left"
        if idle_s <= self._limit_s:
            return None
        if self._conductor.silent_s > self._limit_s:
            return f"it has had nothing to do for {idle_s:.0f} s, and nothing is heard of the conductor"
        if self._allocation and not self._others_work():
            return f"nobody in its allocation has had anything to do for {idle_s:.0f} s"
        return None

    def _others_work(self) -> bool:
        """Whether another worker of the allocation works, by the conductor's word, else by their heartbeats."""
        if self._conductor.working is not None:
            return self._allocation in self._conductor.working
        beats = self._session.heartbeats()
        return any(beat.state == "busy" for beat in beats if beat.allocation == self._allocation)
