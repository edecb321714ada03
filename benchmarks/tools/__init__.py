"""The tools that run null samples: the bare loop, this plugin, and other tools."""

from __future__ import annotations

from typing import Protocol

from benchmarks.processes import Processes
from benchmarks.workloads import NullSamples

__all__ = ["Tool"]


class Tool(Protocol):
    """A way to run null samples.

    Attributes:
        key: Its name on the command line.
        title: Its name in the table.
    """

    key: str
    title: str

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Prepare a run: write the specification, start a server. This time is not measured.

        Raises:
            MissingToolError: the tool is not on this machine.
        """

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Run all samples; return after the last has ended. This time is measured.

        Raises:
            ToolFailedError: the tool has failed, or has not run all samples.
        """
