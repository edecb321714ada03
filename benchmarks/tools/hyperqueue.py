"""HyperQueue: its PyPI wheel with a local cluster."""

from __future__ import annotations

from benchmarks.processes import Processes
from benchmarks.venvs import ROOT, SideVenv
from benchmarks.workloads import NullSamples

__all__ = ["HyperQueue"]

_VENV = SideVenv("hyperqueue", ("hyperqueue==0.27.0",))


class HyperQueue:
    """One job of HyperQueue with a task per sample."""

    key = "hyperqueue"
    title = "HyperQueue 0.27, LocalCluster"

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Install the wheel unless it is installed."""
        _VENV.ensure()

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Start server and worker, run the job, and stop server and worker."""
        driver = ROOT / "benchmarks" / "drivers" / "hyperqueue_job.py"
        arguments = [samples.results, str(samples.count), str(samples.slots), samples.directory / "server"]
        processes.run([_VENV.bin / "python", driver, *arguments], env={"HOME": str(samples.directory)})
