"""The study of a test, which runs with the real commands, and helpers that inspect it."""

from __future__ import annotations

import contextlib
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

from maestro_celery_plugin.host.conductors import RESTART_LIMIT
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.status_csv import read_rows

# Without `..`, where zsh finds no commands.
BIN = Path(os.path.normpath(Path(sys.executable).parent))
ROOT = Path(__file__).parent.parent
# After this time, a test fails that waits. No claim may depend on it: a machine under load is several times slower. It is
# shorter than what tests use as "for ever": samples of 300 s and more, the idle limit of workers (300 s), walltimes.
PATIENCE_S = 200.0
# Runs `maestro` as if this package were not installed.
WITHOUT_PLUGIN = (
    "import pkgutil, sys\n"
    "found = pkgutil.iter_modules\n"
    "pkgutil.iter_modules = lambda *a, **k: [m for m in found(*a, **k) if 'celeryscriptadapter' not in m[1]]\n"
    "from maestrowf.maestro import main\n"
    "main()\n"
)


def prepare_study(specification: Path, study: Path) -> None:
    """Launch a study without a conductor, so that none of its steps run."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(specification.parent)}
    command = [BIN / "maestro", "run", "-n", "-o", study, specification]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def needed(command: str, *more_places: str) -> str:
    """Return the path of a command; if it is not installed, skip the test, or fail it in CI."""
    path = shutil.which(command, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", *more_places]))
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{command} is not installed; CI needs it")
        pytest.skip(f"{command} is not installed")
    return path


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until a condition is true; fail the test after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"timed out after {timeout_s} s: {what}")
        time.sleep(0.05)


def processes_of(text: str) -> dict[int, str]:
    """Return the command lines that contain `text`, by process; zombies are left out."""
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
    """The study of a test: its directory, and the real commands that use it."""

    path: Path
    environment: dict[str, str]
    output: str = ""
    code: int = 0

    def command(self, *words: str, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a command that is installed in the Python environment of the tests."""
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
        return {row.name: row.state for row in read_rows(self.path)}

    def status(self) -> dict:
        """Return the output of `maestro-celery status --json`."""
        answer = self.command("maestro-celery", "status", "--json", str(self.path))
        assert answer.stdout, answer.stderr
        return json.loads(answer.stdout)

    def processes(self, what: str = "") -> dict[int, str]:
        """Return the processes whose command line contains the path of this study and `what`."""
        return {pid: line for pid, line in processes_of(str(self.path)).items() if what in line}

    def server(self) -> list[int]:
        """Return the server of the private broker, which is a child of the session's host."""
        children: list[int] = []
        for host in self.processes("maestro_celery_plugin.host"):
            with contextlib.suppress(OSError):  # it has ended since it was found
                children += map(int, Path(f"/proc/{host}/task/{host}/children").read_text().split())
        servers = processes_of("-server")  # `valkey-server` or `redis-server`
        return [pid for pid in children if pid in servers]

    def kill_conductor(self) -> None:
        """Kill the conductor, which the host of the session has already started again once before."""
        members = Members(self.path / "merlin_info" / "session")
        for member in members.all():
            members.change(member.id, restarts=RESTART_LIMIT)
        kill(*self.processes("bin/conductor"))

    def log(self) -> str:
        """Return the logs and the output of the conductor."""
        return "".join(path.read_text() for path in [*self.path.glob("logs/*.log"), *self.path.glob("*.txt")])

    def outputs(self, pattern: str) -> list[str]:
        """Return the contents of output files, sorted by path."""
        return [path.read_text() for path in sorted(self.path.glob(pattern))]

    def await_end(self, timeout_s: float = PATIENCE_S) -> Study:
        """Wait until the study and all its processes have ended."""
        wait_for(lambda: not self.processes() or self._is_over(), "the end of the study", timeout_s)
        wait_for(lambda: not self.processes(), f"the end of all processes of {self.path}: {self.processes()}")
        return self

    def _is_over(self) -> bool:
        states = self.states()
        return bool(states) and all(s in ("FINISHED", "FAILED", "CANCELLED") for s in states.values())

    def iterations(self) -> list[Study]:
        """Return the studies that this one and its relatives have started, in their order."""
        members = Members(self.path / "merlin_info" / "session").all()
        return [Study(Path(member.root), self.environment) for member in members[1:]]

    def await_session(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until all studies of the session have ended, and all processes in the directory of this one."""
        members, around = Members(self.path / "merlin_info" / "session"), str(self.path.parent)
        wait_for(lambda: not members.living() and not processes_of(around), "the end of the session", timeout_s)

    def await_text(self, pattern: str, text: str = "", count: int = 1, timeout_s: float = PATIENCE_S) -> None:
        """Wait until `count` files that match `pattern` contain `text`."""
        wait_for(
            lambda: sum(text in path.read_text() for path in self.path.glob(pattern)) >= count,
            f"{count} files '{pattern}' with {text!r}",
            timeout_s,
        )


def kill(*pids: int) -> None:
    """Kill processes; ignore a process that has already ended."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
