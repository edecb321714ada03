"""Simulated clusters for tests: the environment of their commands, and the record of their jobs and launches."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent


class FakeCluster:
    """A simulated cluster on this machine, with the commands of a batch system.

    Args:
        directory: Directory of its state, which this class creates.
        system: `lsf` or `flux`.
        settings: `nodes`, `cores`, `gpus`, `minute_s`, `grace_s`, `memory_s`, `after_s` (`cluster.py`).
    """

    def __init__(self, directory: Path, system: str, **settings: float) -> None:
        self.directory = directory
        directory.mkdir()
        self.commands = HERE / "lsf" if system == "lsf" else HERE / "flux" / "bin"
        self.environment = {"FAKE_CLUSTER": str(directory)}
        self.environment |= {f"FAKE_{name.upper()}": str(value) for name, value in settings.items()}
        self.python = HERE / "flux" / "python" if system == "flux" else None

    def insert_into(self, environment: dict[str, str]) -> dict[str, str]:
        """Return an environment in which the commands of the cluster come first on PATH."""
        result = {**environment, **self.environment, "PATH": f"{self.commands}:{environment.get('PATH', os.defpath)}"}
        if self.python:
            paths = [str(self.python), *filter(None, [environment.get("PYTHONPATH")])]
            result["PYTHONPATH"] = os.pathsep.join(paths)
        return result

    def hold(self) -> None:
        """Keep new jobs pending until `release`."""
        (self.directory / "hold").touch()

    def release(self) -> None:
        """Start the jobs that `hold` has kept pending."""
        (self.directory / "hold").unlink()

    def go_away(self) -> None:
        """Let the batch system give no answer until `come_back`."""
        (self.directory / "away").touch()

    def come_back(self, *, forget_jobs: bool = False) -> None:
        """Start the batch system anew: it answers again, and earlier connections to it are broken.

        Args:
            forget_jobs: Whether it does not know its earlier jobs any more.
        """
        if forget_jobs:
            for path in (self.directory / "jobs").glob("*.json"):
                path.unlink()
        path = self.directory / "restarts"
        path.write_text(str(int(path.read_text()) + 1 if path.exists() else 1))
        (self.directory / "away").unlink(missing_ok=True)

    def end(self, number: int, why: str) -> None:
        """End a job for a reason of the batch system: `preempt`, `node`, `memory`, `admin`, `cancel: a message`, ..."""
        (self.directory / "jobs" / f"{number}.end").write_text(why)

    def lose_rank(self, rank: int) -> bool:
        """Kill all processes that `flux exec` has started on a rank, and tell no one; return whether there were any."""
        found = list(self._processes(f"FAKE_RANK={rank}"))
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def _processes(self, variable: str) -> Iterator[int]:
        """Yield the processes of this cluster with an environment variable."""
        wanted = {variable.encode(), f"FAKE_CLUSTER={self.directory}".encode()}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted.issubset((entry / "environ").read_bytes().split(b"\0")):
                        yield int(entry.name)

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs since the start of the cluster, the oldest first."""
        paths = sorted((self.directory / "jobs").glob("*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in paths]

    def launches(self) -> list[dict[str, Any]]:
        """Return the parallel launches that have ended, each with its tasks, command, begin and end."""
        path = self.directory / "launches"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill all jobs and their supervisors."""
        for pid in list(self._processes(f"FAKE_CLUSTER={self.directory}")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
