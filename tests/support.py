"""Studies run by the real commands, for tests to look at."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
# Runs `maestro` as if this package were not installed.
WITHOUT_PLUGIN = (
    "import pkgutil, sys\n"
    "found = pkgutil.iter_modules\n"
    "pkgutil.iter_modules = lambda *a, **k: [m for m in found(*a, **k) if 'celeryscriptadapter' not in m[1]]\n"
    "from maestrowf.maestro import main\n"
    "main()\n"
)


def needed(command: str, *more_places: str) -> str:
    """Return the path of a server; skip the test when it is missing, or fail it in CI."""
    path = shutil.which(command, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", *more_places]))
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{command} is not installed; CI needs it")
        pytest.skip(f"{command} is not installed")
    return path


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Wait until a condition holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain for: {what}")
        time.sleep(0.05)


def processes_of(text: str) -> dict[int, str]:
    """Return the processes of this machine whose command line has `text`, and what they are."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text in line and state not in "ZX":
                found[int(entry.name)] = line
    return found


@dataclasses.dataclass
class Study:
    """A study of a test: its directory, and the real commands on it."""

    path: Path
    environment: dict[str, str]
    output: str = ""
    code: int = 0

    def command(self, *words: str, timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
        """Run one of the commands of this environment."""
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            cwd=self.path.parent,
        )

    def states(self) -> dict[str, str]:
        """Return Maestro's state of each step record."""
        try:
            with (self.path / "status.csv").open() as file:
                return {row["Step Name"]: row["State"] for row in csv.DictReader(file)}
        except FileNotFoundError:
            return {}

    def status(self) -> dict:
        """Return what `maestro-celery status --json` says."""
        answer = self.command("maestro-celery", "status", "--json", str(self.path))
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    def processes(self, what: str = "") -> dict[int, str]:
        """Return the processes that carry this study's path in their command line."""
        return {pid: line for pid, line in processes_of(str(self.path)).items() if what in line}

    def server(self) -> list[int]:
        """Return the process of the private broker."""
        keepers = self.processes("broker.supervisor")
        return [
            int(pid)
            for keeper in keepers
            for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        ]

    def log(self) -> str:
        """Return everything the conductor has said."""
        return "".join(path.read_text() for path in [*self.path.glob("logs/*.log"), *self.path.glob("*.txt")])

    def outputs(self, pattern: str) -> list[str]:
        """Return the contents of output files, sorted by path."""
        return [path.read_text() for path in sorted(self.path.glob(pattern))]

    def await_end(self, timeout_s: float = 90.0) -> Study:
        """Wait until the conductor and all that belongs to it are gone."""
        wait_for(lambda: not self.processes() or self._is_over(), "the study's end", timeout_s)
        wait_for(lambda: not self.processes(), f"no process of {self.path} left: {self.processes()}", 30)
        return self

    def _is_over(self) -> bool:
        states = self.states()
        return bool(states) and all(s in ("FINISHED", "FAILED", "CANCELLED") for s in states.values())

    def await_text(self, pattern: str, text: str = "", count: int = 1, timeout_s: float = 60.0) -> None:
        """Wait until so many files match and hold a text."""
        wait_for(
            lambda: sum(text in path.read_text() for path in self.path.glob(pattern)) >= count,
            f"{count} files {pattern} with {text!r}",
            timeout_s,
        )


def kill(*pids: int) -> None:
    """Kill processes that this test has started."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
