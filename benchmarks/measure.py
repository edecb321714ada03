"""Measurements: one run of a tool over null samples, and medians over several rounds."""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.errors import ToolFailedError
from benchmarks.processes import PeakMemory, Processes
from benchmarks.tools import Tool
from benchmarks.workloads import NullSamples

__all__ = ["Round", "Run", "measure", "scratch"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a tool.

    Attributes:
        count: The number of samples.
        whole_s: Seconds from the start of the command to its end.
        last_s: Seconds from the start of the command to the output of the last sample.
        memory_mb: Peak of the summed resident memory of all processes of the tool and the samples, in 10^6 bytes.
        entries: Number of files and directories below the results.
    """

    count: int
    whole_s: float
    last_s: float
    memory_mb: float
    entries: int


@dataclasses.dataclass(frozen=True)
class Round:
    """A small and a large run of one tool, one after the other."""

    small: Run
    large: Run

    @property
    def whole_ms(self) -> float:
        """Milliseconds per sample of the large run, with startup and shutdown."""
        return 1000 * self.large.whole_s / self.large.count

    @property
    def marginal_ms(self) -> float:
        """Milliseconds for each additional sample: startup and shutdown cancel out."""
        return 1000 * (self.large.last_s - self.small.last_s) / (self.large.count - self.small.count)

    @property
    def entries(self) -> float:
        """Files and directories for each additional sample."""
        return (self.large.entries - self.small.entries) / (self.large.count - self.small.count)

    @classmethod
    def middle(cls, rounds: list[Round], name: str) -> float:
        """Return the median of an attribute over rounds."""
        return statistics.median(getattr(one, name) for one in rounds)


@contextmanager
def scratch() -> Iterator[Path]:
    """Create a temporary directory, and remove it with its contents."""
    with tempfile.TemporaryDirectory(prefix="maestro-benchmark-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def measure(tool: Tool, count: int, slots: int) -> Run:
    """Run a tool once.

    Raises:
        BenchmarkError: the tool is missing or fails, or a sample has no output.
    """
    with scratch() as directory, Processes(directory) as processes:
        samples = NullSamples(count, slots, directory)
        tool.prepare(samples, processes)
        os.sync()  # so that data of the previous run are not written to disk during this run
        with PeakMemory(processes) as memory:
            begin = time.time()
            tool.run(samples, processes)
            whole_s = time.time() - begin
        processes.end()
        outputs, last, entries = _survey(samples.results)
        if outputs != count:
            raise ToolFailedError(f"{outputs} of {count} samples have output")
        return Run(count, whole_s, last - begin, memory.peak_mb, entries)


def _survey(results: Path) -> tuple[int, float, int]:
    """Return the number of non-empty stdout files, the time of the last write to one, and the number of entries."""
    outputs, last, entries = 0, 0.0, 0
    for directory, directories, files in os.walk(results):
        entries += len(directories) + len(files)
        for name in files:
            if name.startswith("null") and name.endswith(".out"):
                status = Path(directory, name).stat()
                outputs += status.st_size > 0
                last = max(last, status.st_mtime)
    return outputs, last, entries
