"""The processes of one measurement, including daemons: start, memory and end.

Every process starts with a marker in its environment, which its descendants inherit. The marker finds daemons (the
private broker, a Celery worker) that have left the process tree.
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
    """The processes of one measurement; the exit of the context ends all of them.

    Args:
        directory: Directory of their output files, ``<name>.log``.
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
            ToolFailedError: the command fails, or does not end within the time limit.
        """
        process = self.start(command, env=env, cwd=cwd)
        try:
            code = process.wait(_TIME_LIMIT_S)
        except subprocess.TimeoutExpired as cause:
            raise ToolFailedError(f"{Path(command[0]).name}: not finished after {_TIME_LIMIT_S:.0f} s") from cause
        if code != 0:
            raise ToolFailedError(f"{Path(command[0]).name}: exit code {code}; {self.last_line(command)}")

    def _log(self, command: Sequence[str | Path]) -> Path:
        return self._directory / f"{Path(command[0]).name}.log"

    def last_line(self, command: Sequence[str | Path]) -> str:
        """Return the last line that a command has printed."""
        lines = self._log(command).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def pids(self) -> set[int]:
        """Return the IDs of all live processes of the measurement.

        A process belongs to the measurement if it has the marker, has its working directory below the directory, was
        started by `start`, or descends from such a process. The marker alone is not sufficient, because Redis and
        Valkey overwrite their environment with their process title.
        """
        line = f"{_MARKER}={self._value}".encode()
        parents = dict(_parents())
        found = {pid for pid in parents if line in _environment(pid) or self._is_below_directory(pid)}
        found |= {process.pid for process in self._started if process.poll() is None}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def _is_below_directory(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self._directory)
        except OSError:
            return False

    def memory_mb(self) -> float:
        """Return the sum of the resident memory of all processes, in 10^6 bytes."""
        return sum(_resident_mb(pid) for pid in self.pids())

    def wait(self, limit_s: float) -> int:
        """Wait until all processes have ended by themselves; return the number of processes that still run."""
        deadline = time.monotonic() + limit_s
        while (left := len(self.pids())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def end(self) -> None:
        """End all processes with SIGTERM, and with SIGKILL those that still run after a grace period."""
        for number, limit_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if not self.wait(limit_s):
                break


def _parents() -> Iterator[tuple[int, int]]:
    """Yield the ID and the parent ID of all processes except zombies."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command, in parentheses, may contain any character; so the fields are counted after it.
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
    """Return the peak resident memory of one process so far, in 10^6 bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / _MB for line in lines if line.startswith("VmHWM:")), 0.0)


class PeakMemory:
    """Measures the peak of the summed resident memory within a context.

    Attributes:
        peak_mb: The peak, in 10^6 bytes.
    """

    INTERVAL_S = 0.25

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def _watch(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            self.peak_mb = max(self.peak_mb, self._processes.memory_mb())

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
