"""The heartbeat limits of the processes of a worker's pool: each may be stopped, or cut off from its files, alone."""

from __future__ import annotations

import dataclasses
import os
import struct
import threading
from collections.abc import Iterator

from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.worker.heartbeat_limit import HeartbeatLimit, is_over
from maestro_celery_plugin.worker.shared_memory import shared_numbers

__all__ = ["PoolLimits", "PoolProcess"]

# The largest number of processes of a pool whose limits the supervisor watches.
_MOST = 2048
# The numbers of a process in the shared memory: since when its limit runs, its start time, its pid.
_SINCE, _START, _PID, _NUMBERS = range(4)
# The number of an entry. All of them together fit into the buffer of a pipe (PIPE_BUF).
_ENTRY = struct.Struct("H")


@dataclasses.dataclass(frozen=True)
class PoolProcess:
    """A process of a worker's pool, as its supervisor sees it.

    Attributes:
        entry: Number of its entry in the shared memory.
        process: The process, which may have ended.
        is_exceeded: Whether it could not write its heartbeat for too long.
    """

    entry: int
    process: ProcessId
    is_exceeded: bool


class PoolLimits:
    """The limits of the processes of a worker's pool, in memory that these processes share with the supervisor.

    A process claims an entry when it starts. The supervisor frees the entry when the process and its samples have
    ended; until then, no later process uses it.
    """

    def __init__(self) -> None:
        self._numbers = shared_numbers(_NUMBERS * _MOST)
        # A pipe with the free entries: each is read by one process only, even if several start at the same time.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.write(self._writer, b"".join(map(_ENTRY.pack, range(_MOST))))
        self._lock, self._closed = threading.Lock(), False

    def claim(self, process: ProcessId) -> HeartbeatLimit:
        """Return the limit of a process that has just started; without a free entry, only this process knows it."""
        try:
            (entry,) = _ENTRY.unpack(os.read(self._reader, _ENTRY.size))
        except BlockingIOError:
            return HeartbeatLimit()
        numbers = self._of(entry)
        limit = HeartbeatLimit(numbers[_SINCE : _SINCE + 1])
        numbers[_START] = process.start
        numbers[_PID] = process.pid  # last: from now on, the supervisor sees the entry
        return limit

    def _of(self, entry: int) -> memoryview[float]:
        return self._numbers[_NUMBERS * entry : _NUMBERS * (entry + 1)]

    def processes(self) -> Iterator[PoolProcess]:
        """Yield the processes that have claimed an entry."""
        for entry in range(_MOST):
            numbers = self._of(entry)
            if numbers[_PID]:
                process = ProcessId(int(numbers[_PID]), int(numbers[_START]))
                yield PoolProcess(entry, process, is_over(numbers[_SINCE]))

    def free(self, one: PoolProcess) -> None:
        """Free the entry of a process that has ended."""
        with self._lock:
            numbers = self._of(one.entry)
            if not self._closed and numbers[_PID] == one.process.pid:
                numbers[_PID] = 0.0
                os.write(self._writer, _ENTRY.pack(one.entry))

    def close(self) -> None:
        """Close the pipe after the end of the worker."""
        with self._lock:
            self._closed = True
            os.close(self._reader)
            os.close(self._writer)
