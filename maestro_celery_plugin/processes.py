"""Processes of this machine: their identity, and the termination of processes that a dead worker has left."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import psutil

from maestro_celery_plugin import clock

__all__ = [
    "ProcessId",
    "adopt_orphans",
    "die_with_parent",
    "end_descendants",
    "end_found",
    "end_marked",
    "exit_at_once",
    "forget_secret_url",
    "forget_variable",
    "marked",
    "set_command_line",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Time in which all descendants of a supervisor must be dead.
_DESCENDANTS_LIMIT_S = 10.0
# Rounds of SIGKILL: a process may start another one between two looks at the list of processes.
_KILL_ROUNDS = 10


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
        """Send a signal to the process, or to its process group, if it is alive and accepts signals of this user."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
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
    The function gives up a process that cannot be killed, because the kernel or another user holds it.
    """
    deadline = clock.monotonic() + _DESCENDANTS_LIMIT_S
    while (children := psutil.Process().children()) and clock.monotonic() < deadline:
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=max(0.0, deadline - clock.monotonic()))


def marked(name: str, value: str) -> Iterator[int]:
    """Yield the processes of this machine whose environment has the variable `name` with a value.

    The caller and its parent are left out. `psutil.Process.environ` stops at an entry that a process has cleared, for
    example a password.

    Args:
        name: Name of the environment variable.
        value: Its value; all values that begin with it, when it ends with a colon.
    """
    entry = os.fsencode(f"{name}={value}")
    own = {os.getpid(), os.getppid()}
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if pid not in own:
                entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if entry in entries or (value.endswith(":") and any(found.startswith(entry) for found in entries)):
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
    found, _ = end_found(lambda: (pid for pid in marked(name, value) if pid not in spare), grace_s)
    return len(found)


def end_found(find: Callable[[], Iterable[int]], grace_s: float) -> tuple[list[int], list[int]]:
    """End the processes that a function finds: first with SIGTERM, then with SIGKILL until it finds none.

    Args:
        find: Finds the processes, again before each round.
        grace_s: Seconds between SIGTERM and SIGKILL.

    Returns:
        The processes that were found before the first signal, and those that cannot be ended.
    """
    found = [ProcessId.of(pid) for pid in find()]
    for process in found:
        process.signal(signal.SIGTERM)
    _await_end(found, grace_s)
    remaining: list[ProcessId] = []
    for _ in range(_KILL_ROUNDS):
        remaining = [process for process in map(ProcessId.of, find()) if process.is_alive]
        if not remaining:
            break
        for process in remaining:
            process.signal(signal.SIGKILL)
        _await_end(remaining, 1.0)
    return [process.pid for process in found], [process.pid for process in remaining if process.is_alive]


def _await_end(processes: list[ProcessId], limit_s: float) -> None:
    clock.wait_until(lambda: not any(process.is_alive for process in processes), limit_s)


def exit_at_once(code: int) -> NoReturn:
    """End this process without the end of the interpreter, for which somebody would wait a tenth of a second."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def forget_variable(name: str) -> None:
    """Remove a variable, such as a password, from the environment of this process and of its later children.

    The kernel shows the memory of the first environment in /proc/<pid>/environ, whatever the process removes later
    (proc(5)). On Linux, this function also overwrites the variable there.
    """
    os.environ.pop(name, None)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError, IndexError):
            start, end = _memory_range(50)
            for found in re.finditer(
                rb"(?:^|(?<=\0))" + re.escape(os.fsencode(name)) + rb"=[^\0]*", _memory(start, end)
            ):
                ctypes.memset(start + found.start(), 0, len(found[0]))


def forget_secret_url(url: str | None) -> None:
    """Overwrite a URL with a password in the command line that other processes see; this process keeps its own copy."""
    if url and "@" in url and sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError, IndexError):
            start, end = _memory_range(48)
            for found in re.finditer(re.escape(os.fsencode(url)), _memory(start, end)):
                ctypes.memset(start + found.start(), ord("*"), len(found[0]))


def set_command_line(words: Sequence[str]) -> None:
    """Replace the command line that other processes see in /proc/<pid>/cmdline (proc(5)).

    A forked process has the command line of its parent there, although it runs another program.

    Args:
        words: The command line, which must not be longer than that of the parent.

    Raises:
        ValueError: the command line is too long.
    """
    start, end = _memory_range(48)
    line = b"\0".join(os.fsencode(word) for word in words)
    if not 0 < start < end or len(line) >= end - start:
        raise ValueError(f"There is no room for a command line of {len(line)} bytes.")
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, line, len(line))


def _memory_range(field: int) -> tuple[int, int]:
    """Return the begin and the end of the command line (field 48) or of the environment (50) in /proc/self/stat."""
    # The numbers of the fields after the command name begin with 3.
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[field - 3]), int(fields[field - 2])


def _memory(start: int, end: int) -> bytes:
    return ctypes.string_at(start, end - start) if 0 < start < end else b""
