"""The heartbeat limit: how long a worker may live without a heartbeat.

The conductor declares a worker on another machine dead when its heartbeat has not changed for `SILENCE_LIMIT_S`, and
another worker then runs its samples again. The worker may be alive: stopped for a while, or cut off from the file
system. So that no two attempts at a sample run at once, a worker that could not write its heartbeat for
`HEARTBEAT_LIMIT_S` starts no sample, and its supervisor ends it and its samples. This happens before the silence limit,
because the time begins before the heartbeat is written, and the silence after the conductor has read it; each machine
measures with its own clock. Nothing here reads or writes a file, because the file system may not answer.

Each process of a pool has its own heartbeat, and therefore its own limit: it may be stopped alone.
"""

from __future__ import annotations

import math

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S
from maestro_celery_plugin.worker.shared_memory import shared_numbers

__all__ = ["HEARTBEAT_LIMIT_S", "HeartbeatLimit", "is_over"]

HEARTBEAT_LIMIT_S = SILENCE_LIMIT_S - 10.0


class HeartbeatLimit:
    """The limit of a process of a worker. It is suspended until the process can take samples.

    Args:
        since: Memory that the supervisor shares.

    Attributes:
        lapses: How often the limit was exceeded when a heartbeat was written again. What this process has taken before
            may run elsewhere.
    """

    def __init__(self, since: memoryview[float] | None = None) -> None:
        self.lapses = 0
        self._since = shared_numbers(1) if since is None else since
        self.suspend()

    def renew(self, since: float) -> None:
        """Begin the time again.

        Args:
            since: When the worker began to write its last heartbeat (`clock.since_boot`).
        """
        self.lapses += self.is_exceeded  # before the time begins again
        self._since[0] = since

    def suspend(self) -> None:
        """Suspend the limit: the conductor can see on its own machine which processes live."""
        self._since[0] = math.inf

    @property
    def is_suspended(self) -> bool:
        """Whether there is no limit now."""
        return math.isinf(self._since[0])

    @property
    def is_exceeded(self) -> bool:
        """Whether the conductor may soon count the worker as dead."""
        return is_over(self._since[0])


def is_over(since: float) -> bool:
    """Tell whether a limit is exceeded that has run since some time (`clock.since_boot`)."""
    return clock.since_boot() - since > HEARTBEAT_LIMIT_S
