"""The tools that run null samples: the bare loop, this plugin, and its peers."""

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
        """Do what a user has done before: write the specification, start a server. Not measured.

        Raises:
            MissingToolError: the tool is not on this machine.
        """

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Run all samples; return when the last has ended. Measured.

        Raises:
            ToolFailedError: it did not do so.
        """
