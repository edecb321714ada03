"""The bare fork/exec loop, which everything else is compared with."""

from __future__ import annotations

import sys

from benchmarks.processes import Processes
from benchmarks.venvs import ROOT
from benchmarks.workloads import NullSamples

__all__ = ["BareLoop"]


class BareLoop:
    """Threads that make the files of a sample, start its process and wait for it."""

    key = "loop"
    title = "bare fork/exec loop"

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Do nothing: it needs nothing."""

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Run the loop in a process of its own."""
        driver = ROOT / "benchmarks" / "drivers" / "bare_loop.py"
        processes.run([sys.executable, driver, samples.results, str(samples.count), str(samples.slots)])
