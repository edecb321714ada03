"""The request to leave: the worker takes no samples, and leaves when its running samples have ended."""

from __future__ import annotations

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.session import Session

__all__ = ["LeaveRequest"]


class LeaveRequest:
    """Follows the request of the conductor to a worker, which may be revoked before the worker has left.

    Args:
        session: The session.
        worker: Name of the worker.
    """

    def __init__(self, session: Session, worker: str) -> None:
        self._session, self._worker = session, worker
        self._since: float | None = None

    @property
    def is_active(self) -> bool:
        """Whether the worker takes no samples."""
        return self._since is not None

    @property
    def age_s(self) -> float:
        """Seconds since the worker has seen the request; 0 without one."""
        return 0.0 if self._since is None else clock.monotonic() - self._since

    def check(self) -> bool:
        """Look for the request; return whether it is active."""
        if not self._session.worker_leave_requested(self._worker):
            self._since = None
        elif self._since is None:
            self._since = clock.monotonic()
        return self.is_active
