"""Processes of this machine: their identity, and the termination of processes that a dead worker has left."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from maestro_celery_plugin import clock

__all__ = [
    "ProcessId",
    "adopt_orphans",
    "die_with_parent",
    "end_descendants",
    "end_marked",
    "forget_variable",
    "host_name",
    "usable_cpus",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """A process, distinguished from a later process with the same number by its start time.

    psutil has only start times in Unix seconds, which change when the clock of the machine is set.

    Attributes:
        pid: Number of the process.
        start: Start time in clock ticks since boot (field 22 of /proc/<pid>/stat); 0 when unknown.
    """

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Identify a running process."""
        return cls(pid, _start_time(pid) or 0)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        return _start_time(self.pid) == self.start

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or to its process group, if it is alive."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number) if group else os.kill(self.pid, number)


def _start_time(pid: int) -> int | None:
    try:
        # The command name, in parentheses, may contain any character; split only the fields after it.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Let the kernel send this process a signal when its parent dies (Linux; prctl(2), PR_SET_PDEATHSIG).

    Args:
        parent: The parent's pid. If the parent has already died, this process exits now: no signal would follow.
        number: The signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies (Linux; prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kill all descendants of this process, one generation after the other.

    The orphans of a generation become children of this process (`adopt_orphans`). Only this process can reap them.
    """
    while children := psutil.Process().children():
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children)


def host_name() -> str:
    """Return the name of this machine in heartbeats and locks."""
    return socket.gethostname()


def _marked(name: str, value: str) -> Iterator[int]:
    """Yield the processes of this machine that have ``name=value`` in their environment.

    `psutil.Process.environ` stops at an entry that a process has cleared, for example a password.
    """
    entry = os.fsencode(f"{name}={value}")
    own = {os.getpid(), os.getppid()}
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if pid not in own and entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


def end_marked(name: str, value: str, *, spare: frozenset[int] = frozenset(), grace_s: float = 5.0) -> int:
    """End every process that was started with ``name=value`` in its environment.

    The samples of a worker have the worker's name there, including samples that have left its process group.

    Args:
        name: Name of the environment variable.
        value: Its value.
        spare: Process numbers that receive no signal.
        grace_s: Seconds between SIGTERM and SIGKILL.

    Returns:
        The number of processes that were found before the first signal.
    """
    found = [ProcessId.of(pid) for pid in _marked(name, value) if pid not in spare]
    for process in found:
        process.signal(signal.SIGTERM)
    clock.wait_until(lambda: not any(process.is_alive for process in found), grace_s)
    for pid in _marked(name, value):
        if pid not in spare:
            ProcessId.of(pid).signal(signal.SIGKILL)
    return len(found)


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forget_variable(name: str) -> None:
    """Remove a variable, such as a password, from the environment of this process and of its later children.

    The kernel shows the memory of the first environment in /proc/<pid>/environ, whatever the process removes later
    (proc(5)). On Linux, this function also overwrites the variable there.
    """
    os.environ.pop(name, None)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError, IndexError):
            # Fields 50 and 51; the numbers of the fields after the command name begin with 3.
            fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
            start, end = int(fields[47]), int(fields[48])
            for found in re.finditer(
                rb"(?:^|(?<=\0))" + re.escape(os.fsencode(name)) + rb"=[^\0]*", _memory(start, end)
            ):
                ctypes.memset(start + found.start(), 0, len(found[0]))


def _memory(start: int, end: int) -> bytes:
    return ctypes.string_at(start, end - start) if 0 < start < end else b""
