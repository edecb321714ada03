"""The health of a worker process: whether it can run samples, or fails all of them because its machine is broken.

On a broken machine (a missing interpreter, a full /tmp), samples fail within milliseconds, so that this machine would
take and fail all samples of a study. A worker that has failed several samples quickly and in a row is held: it takes no
more samples until the coordinator has compared it with other machines (`conductor/broken_machines.py`).
"""

from __future__ import annotations

import threading

from maestro_celery_plugin.states import QUICK_FAILURES

__all__ = ["Health"]


class Health:
    """Counts the quick failures of a worker process in a row; several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures, self._limit = 0, QUICK_FAILURES

    def record(self, *, failed: bool) -> None:
        """Record whether a sample could not run, or has failed quickly."""
        with self._lock:
            self._failures = self._failures + 1 if failed else 0

    @property
    def is_held(self) -> bool:
        """Whether no sample may start now."""
        return self._failures >= self._limit

    def acquit(self) -> None:
        """Continue after the coordinator has found that the samples are the cause."""
        with self._lock:
            self._failures, self._limit = 0, 2 * self._limit
