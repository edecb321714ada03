"""Processes of this machine: whether one still lives, and what a dead worker has left behind."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["ProcessId", "adopt_orphans", "die_with_parent", "end_descendants", "end_marked", "host_name", "wait_until"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """A process, told from a later one with the same number by its start time.

    Attributes:
        pid: Its number.
        start: Its start time in clock ticks since boot (field 22 of /proc/<pid>/stat); 0 when unknown.
    """

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Identify a running process."""
        return cls(pid, _start_time(pid) or 0)

    @property
    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return _start_time(self.pid) == self.start

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or to its process group, if it is alive."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number) if group else os.kill(self.pid, number)


def _start_time(pid: int) -> int | None:
    try:
        # The command, in parentheses, may hold anything; fields are counted from behind it.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def die_with_parent(parent: int) -> None:
    """Let the kernel send this process SIGTERM when its parent dies (Linux; prctl(2), PR_SET_PDEATHSIG).

    Args:
        parent: The parent's pid. If that has died already, this process ends now: no signal would come any more.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies (Linux; prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kill all descendants of this process, generation by generation."""
    while True:
        children = _children(os.getpid())
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def host_name() -> str:
    """Return the name under which this machine is known in heartbeats and locks."""
    return socket.gethostname()


def _marked(marker: bytes) -> Iterator[int]:
    """Yield the processes of this machine whose environment has the line `marker`."""
    own = {os.getpid(), os.getppid()}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in own:
            with contextlib.suppress(OSError):
                if marker in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def end_marked(name: str, value: str, *, spare: frozenset[int] = frozenset(), grace_s: float = 5.0) -> int:
    """End every process that was started with ``name=value`` in its environment.

    Samples of a worker that died carry its name there, whatever process group or session they have made.

    Args:
        name: Name of the environment variable.
        value: Its value.
        spare: Process numbers to leave alone.
        grace_s: Seconds between SIGTERM and SIGKILL.

    Returns:
        The number of processes found at first.
    """
    marker = f"{name}={value}".encode()
    found = [ProcessId.of(pid) for pid in _marked(marker) if pid not in spare]
    for process in found:
        process.signal(signal.SIGTERM)
    wait_until(lambda: not any(process.is_alive for process in found), grace_s)
    for pid in _marked(marker):
        if pid not in spare:
            ProcessId.of(pid).signal(signal.SIGKILL)
    return len(found)


def wait_until(condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.02) -> bool:
    """Wait until a condition holds; return whether it does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
