"""Processes of one measurement: started, weighed and ended, also those that detach themselves.

Every process is started with a marker in its environment, which its descendants inherit. So a daemon
(the private broker, a Celery worker) is found although it has left the process tree.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.errors import ToolFailedError

__all__ = ["PeakMemory", "Processes", "high_water_mb"]

_MARKER = "MAESTRO_BENCHMARK_RUN"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MB = 1e6
_GRACE_S = 15.0
_TIME_LIMIT_S = 600.0


class Processes:
    """The processes of one measurement; all have ended when the context is left.

    Args:
        directory: Where their output goes, as ``<name>.log``.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._value = uuid.uuid4().hex
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in the background; `env` is added to this process's environment."""
        with self._log(command).open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd or self._directory,
                env={**os.environ, **(env or {}), _MARKER: self._value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Run a command to its end.

        Raises:
            ToolFailedError: it does not end with code 0, or not in time.
        """
        process = self.start(command, env=env, cwd=cwd)
        try:
            code = process.wait(_TIME_LIMIT_S)
        except subprocess.TimeoutExpired as cause:
            raise ToolFailedError(f"{Path(command[0]).name}: not done after {_TIME_LIMIT_S:.0f} s") from cause
        if code != 0:
            raise ToolFailedError(f"{Path(command[0]).name}: exit code {code}; {self.last_line(command)}")

    def _log(self, command: Sequence[str | Path]) -> Path:
        return self._directory / f"{Path(command[0]).name}.log"

    def last_line(self, command: Sequence[str | Path]) -> str:
        """Return the last line that a command has printed."""
        lines = self._log(command).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

    def pids(self) -> set[int]:
        """Return every live process of the measurement.

        It is marked, works below the directory, was started here, or descends from one of these: Redis and
        Valkey write their title over their environment, marker included.
        """
        line = f"{_MARKER}={self._value}".encode()
        parents = dict(_parents())
        found = {pid for pid in parents if line in _environment(pid) or self._works_here(pid)}
        found |= {process.pid for process in self._started if process.poll() is None}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def _works_here(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self._directory)
        except OSError:
            return False

    def memory_mb(self) -> float:
        """Return the sum of the resident memory of all processes, in 10^6 bytes."""
        return sum(_resident_mb(pid) for pid in self.pids())

    def wait(self, limit_s: float) -> int:
        """Wait until all processes have ended by themselves; return how many have not."""
        deadline = time.monotonic() + limit_s
        while (left := len(self.pids())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def end(self) -> None:
        """End all processes: SIGTERM, and SIGKILL for those that stay."""
        for number, limit_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if not self.wait(limit_s):
                break


def _parents() -> Iterator[tuple[int, int]]:
    """Yield (process, its parent) for all processes but zombies."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command, in parentheses, may hold anything; fields are counted from behind it.
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    yield int(entry.name), int(fields[1])


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE / _MB
    except (OSError, IndexError):
        return 0.0


def high_water_mb(pid: int) -> float:
    """Return the peak resident memory of one process so far, in 10^6 bytes; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / _MB for line in lines if line.startswith("VmHWM:")), 0.0)


class PeakMemory:
    """The highest sum of resident memory seen while the context is open.

    Attributes:
        peak_mb: In 10^6 bytes.
    """

    INTERVAL_S = 0.25

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def _watch(self) -> None:
        while not self._over.wait(self.INTERVAL_S):
            self.peak_mb = max(self.peak_mb, self._processes.memory_mb())

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
