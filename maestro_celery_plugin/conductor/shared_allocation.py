"""An allocation that the conductors of several studies of a session may use.

The conductor that opens it is its owner until its end, and holds a lock: ``allocations/<name>/owner.lock``. Others
follow the file of the allocation, and one of them takes over if the owner ends.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation, last_allocation

__all__ = ["POLL_S", "SharedAllocation"]

# Interval between two looks at the file of an allocation, or at a new job in the batch system.
POLL_S = 2.0
# A file in the directory of an allocation in which a sample has started.
_WORKED = "worked"


class SharedAllocation:
    """The last allocation of a name.

    Args:
        directory: Directory of the allocations of the session.
        name: Name of the allocations.

    Attributes:
        name: Name of the allocations.
        current: The last allocation, which may have ended; None before the first.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.name, self._directory = name, directory
        # Of this process: while Maestro runs a native step, another thread watches the allocation.
        self._lock = FileLock(directory / name / "owner.lock", thread_local=False)
        self._followed_at = 0.0
        self.current: Allocation | None = last_allocation(directory, name)

    @property
    def is_open(self) -> bool:
        """Whether workers run in the last allocation or may still start."""
        return self.current is not None and self.current.is_open

    @property
    def is_owner(self) -> bool:
        """Whether this conductor watches the allocation."""
        return bool(self._lock.is_locked)

    def own(self) -> bool:
        """Become the owner, unless another conductor is; return whether this one is now."""
        if self.is_owner:
            return True
        (self._directory / self.name).mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        last = last_allocation(self._directory, self.name)
        if last is not None and (self.current is None or last.number >= self.current.number):
            self.current = last  # another conductor may have changed it, or opened another one
        return True

    def disown(self) -> None:
        """Leave the allocation to the conductors of other studies."""
        self._lock.release()

    def follow_or_take_over(self) -> Allocation | None:
        """Read an allocation, and become its owner if there is none; return the allocation if it has ended."""
        ended = self._follow()
        if ended is not None or not self.is_open or not self.own():
            return ended
        return None if self.is_open else self.current  # it may have ended just now

    def _follow(self) -> Allocation | None:
        """Read the allocation that another conductor watches; return it if it has ended since the last call."""
        now = clock.monotonic()
        if now - self._followed_at < POLL_S:
            return None
        self._followed_at = now
        was_open, before, last = self.is_open, self.current, last_allocation(self._directory, self.name)
        if last is None:
            return None
        self.current = last
        if not was_open or before is None:
            return None
        if last.number == before.number:
            return None if self.is_open else self.current
        return before  # another one is open already

    def note_work(self) -> None:
        """Store that a sample has started in the allocation, for the conductors of other studies."""
        if self.current is not None:
            (self.current.directory / _WORKED).touch()

    @staticmethod
    def has_worked_elsewhere(allocation: Allocation) -> bool:
        """Tell whether a sample of another study has started in an allocation."""
        return (allocation.directory / _WORKED).exists()
