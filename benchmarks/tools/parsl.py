"""Parsl: its executor for many tasks, HighThroughputExecutor, on this machine."""

from __future__ import annotations

from benchmarks.processes import Processes
from benchmarks.venvs import ROOT, SideVenv
from benchmarks.workloads import NullSamples

__all__ = ["Parsl"]

_VENV = SideVenv("parsl", ("parsl==2026.10.26",))


class Parsl:
    """One app of Parsl that is called once per sample."""

    key = "parsl"
    title = "Parsl 2026.10, HighThroughputExecutor"

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Install the wheel unless it is installed."""
        _VENV.ensure()

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Start the executor, call the app for each sample, and stop the executor."""
        driver = ROOT / "benchmarks" / "drivers" / "parsl_calls.py"
        arguments = [samples.results, str(samples.count), str(samples.slots), samples.directory / "runinfo"]
        # Its pool of workers starts with a command of the same environment.
        env = {"HOME": str(samples.directory), "PATH": f"{_VENV.bin}:/usr/local/bin:/usr/bin:/bin"}
        processes.run([_VENV.bin / "python", driver, *arguments], env=env)
