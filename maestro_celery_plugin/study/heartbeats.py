"""The conductor, as a worker hears of it."""

from __future__ import annotations

import time

from maestro_celery_plugin.study.session import Session

__all__ = ["HeardConductor"]


class HeardConductor:
    """The conductor, by its heartbeat.

    Args:
        session: The session.

    Attributes:
        working: The allocations of which it sees a worker that works; None when it does not know.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._beat = 0
        self._heard_at = time.monotonic()
        self.working: tuple[str, ...] | None = None

    def look(self) -> None:
        """Read its heartbeat."""
        beat, self.working = self._session.read_conductor_beat()
        if beat != self._beat:
            self._beat, self._heard_at = beat, time.monotonic()

    @property
    def silent_s(self) -> float:
        """For how long it has not changed its heartbeat, by this machine's clock."""
        return time.monotonic() - self._heard_at
