"""Snakemake on this machine: one rule with a wildcard, and so one job per sample."""

from __future__ import annotations

from benchmarks.processes import Processes
from benchmarks.venvs import SideVenv
from benchmarks.workloads import NullSamples

__all__ = ["Snakemake"]

_VENV = SideVenv("snakemake", ("snakemake==9.27.1",))
_SNAKEFILE = r"""
rule all:
    input: expand("{{number}}/null.out", number=range({count}))

rule sample:
    output: "{{number}}/null.out"
    shell: "cd {{wildcards.number}}; printf '#!/bin/bash\n\necho %d\n' {{wildcards.number}} > null.sh; "
           "exec /bin/bash null.sh > null.out 2> null.err"
"""


class Snakemake:
    """One run of Snakemake with a job per sample."""

    key = "snakemake"
    title = "Snakemake 9.27, --cores"

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Install Snakemake unless it is installed, and write the Snakefile."""
        _VENV.ensure()
        (samples.directory / "Snakefile").write_text(_SNAKEFILE.format(count=samples.count))

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Run all jobs."""
        samples.results.mkdir()
        options = ["--snakefile", samples.directory / "Snakefile", "--directory", samples.results]
        env = {"HOME": str(samples.directory), "PATH": f"{_VENV.bin}:/usr/local/bin:/usr/bin:/bin"}
        processes.run([_VENV.bin / "snakemake", "--cores", str(samples.slots), "--quiet", "all", *options], env=env)
