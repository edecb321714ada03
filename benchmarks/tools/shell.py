"""Command-line tools: xargs and GNU parallel."""

from __future__ import annotations

import shutil

from benchmarks.errors import MissingToolError
from benchmarks.processes import Processes
from benchmarks.workloads import NullSamples

__all__ = ["GnuParallel", "Xargs"]

# The commands of one sample, whose number is $1: the shell writes the script, then executes it in the same process.
_SAMPLE = (
    r"cd $1; printf '#!/bin/bash\n\necho %d\n' $1 > null.sh; "
    "exec /bin/bash null.sh > null.out 2> null.err"
)


class _ShellTool:
    """A shell command that creates all directories at once, and passes the numbers of the samples to the tool."""

    command: str
    line: str

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Check that the tool is installed."""
        if shutil.which(self.command) is None:
            raise MissingToolError(f"no '{self.command}' on PATH")

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Run the shell command in the directory of the results."""
        samples.results.mkdir()
        numbers = f"seq 0 {samples.count - 1}"
        line = f"{numbers} | xargs mkdir && {numbers} | {self.line.format(slots=samples.slots)}"
        env = {"PARALLEL_SHELL": "/bin/sh", "SAMPLE": _SAMPLE, "HOME": str(samples.directory)}
        processes.run(["/bin/sh", "-c", line], env=env, cwd=samples.results)


class Xargs(_ShellTool):
    """``xargs -P``."""

    key = "xargs"
    title = "xargs -P"
    command = "xargs"
    line = 'xargs -P {slots} -n 1 /bin/sh -c "$SAMPLE" sample'


class GnuParallel(_ShellTool):
    """GNU parallel."""

    key = "parallel"
    title = "GNU parallel -j"
    command = "parallel"
    line = "parallel --will-cite -j {slots} 'set -- {{}}; eval \"$SAMPLE\"'"
