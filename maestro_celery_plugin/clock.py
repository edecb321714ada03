"""The only module that reads the time or sleeps.

No other module imports `time`, so that a test can replace the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["adjust", "local_time", "monotonic", "now", "now_ns", "shared_now", "since_boot", "sleep", "wait_until"]

# Seconds since an unspecified start; never decreases. Each machine has its own start.
monotonic = time.monotonic
# Unix seconds of this machine. Do not compare the clocks of different machines.
now = time.time
# Unix nanoseconds of this machine.
now_ns = time.time_ns
sleep = time.sleep
_ahead_s = 0.0


def shared_now() -> float:
    """Return Unix seconds that processes on several machines can compare, after `adjust`."""
    return now() + _ahead_s


def adjust(ahead_s: float) -> None:
    """Let `shared_now` be ahead of the clock of this machine by some seconds, here and in processes forked later."""
    global _ahead_s  # one clock per process
    _ahead_s = ahead_s


def since_boot() -> float:
    """Return seconds since an unspecified start; unlike `monotonic`, they include the time of a suspended machine."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def local_time(pattern: str) -> str:
    """Return the local time as text, in the pattern of `time.strftime`."""
    return time.strftime(pattern)


def wait_until(condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.02) -> bool:
    """Wait until a condition is true; return whether it became true in time.

    Args:
        condition: The condition; called at least once.
        timeout_s: Seconds to wait.
        interval_s: Seconds between two checks of the condition.
    """
    deadline = monotonic() + timeout_s
    while not condition():
        if monotonic() > deadline:
            return False
        sleep(interval_s)
    return True
