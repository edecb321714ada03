"""The health of a worker process: whether it can run samples, or fails all of them because its machine is broken.

On a broken machine (a missing interpreter, a full /tmp), samples fail within milliseconds, so that this machine would
take and fail all samples of a study. A worker that has failed several samples quickly and in a row is held: it takes no
more samples until the coordinator has compared it with other machines (`conductor/broken_machines.py`).
"""

from __future__ import annotations

import threading

from maestro_celery_plugin.states import Outcome, outcome_of

__all__ = ["QUICK_S", "Health", "is_quick_failure"]

# A worker is held after this many failures in a row, and again after twice as many if it was acquitted.
FAILURES = 5
# A sample that fails later has probably done its work.
QUICK_S = 1.0


def is_quick_failure(code: int, duration_s: float) -> bool:
    """Tell whether an attempt has failed so early that the machine may be the cause."""
    return outcome_of(code) in (Outcome.FAILED, Outcome.HARD_FAILED) and duration_s < QUICK_S


class Health:
    """Counts the quick failures of a worker process in a row; several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures, self._limit = 0, FAILURES

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
