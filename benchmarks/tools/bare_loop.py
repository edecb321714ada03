"""The bare fork/exec loop, the reference for all other tools."""

from __future__ import annotations

import sys

from benchmarks.processes import Processes
from benchmarks.venvs import ROOT
from benchmarks.workloads import NullSamples

__all__ = ["BareLoop"]


class BareLoop:
    """Threads that create the files of a sample, start its process and wait for its end."""

    key = "loop"
    title = "bare fork/exec loop"

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Do nothing: the loop needs no preparation."""

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Run the loop in a separate process."""
        driver = ROOT / "benchmarks" / "drivers" / "bare_loop.py"
        processes.run([sys.executable, driver, samples.results, str(samples.count), str(samples.slots)])
