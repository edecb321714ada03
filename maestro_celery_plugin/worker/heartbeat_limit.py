"""The heartbeat limit: how long a worker may live without a heartbeat.

The conductor declares a worker on another machine dead when its heartbeat has not changed for `SILENCE_LIMIT_S`, and
another worker then runs its samples again. The worker may be alive: stopped for a while, or cut off from the file
system. So that no two attempts at a sample run at once, a worker that could not write its heartbeat for
`HEARTBEAT_LIMIT_S` starts no sample, and its supervisor ends it and its samples. This happens before the silence limit,
because the time begins before the heartbeat is written, and the silence after the conductor has read it; each machine
measures with its own clock. Nothing here reads or writes a file, because the file system may not answer.
"""

from __future__ import annotations

import mmap
import struct

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S

__all__ = ["HEARTBEAT_LIMIT_S", "HeartbeatLimit"]

HEARTBEAT_LIMIT_S = SILENCE_LIMIT_S - 10.0
_LAYOUT = struct.Struct("dd")


class HeartbeatLimit:
    """The limit of a worker, in memory that its supervisor and the processes of its pool share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _LAYOUT.size)
        self.suspend()

    def renew(self, since: float) -> None:
        """Begin the time again.

        Args:
            since: When the worker began to write its last heartbeat (`clock.since_boot`).
        """
        _LAYOUT.pack_into(self._memory, 0, since, 1.0)

    def suspend(self) -> None:
        """Suspend the limit: the conductor can see on its own machine which processes live."""
        _LAYOUT.pack_into(self._memory, 0, 0.0, 0.0)

    @property
    def is_exceeded(self) -> bool:
        """Whether the conductor may soon count the worker as dead."""
        since, applies = _LAYOUT.unpack_from(self._memory)
        return bool(applies) and clock.since_boot() - since > HEARTBEAT_LIMIT_S
