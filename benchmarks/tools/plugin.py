"""This plugin: the real ``maestro run`` of the environment that runs the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.errors import MissingToolError
from benchmarks.processes import Processes
from benchmarks.workloads import NullSamples, Study, write_table

__all__ = ["Plugin", "SyncedPlugin", "command", "run_in_foreground"]


def command(name: str) -> Path:
    """Return a command of the environment that runs the benchmark.

    Raises:
        MissingToolError: the environment does not have the command.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise MissingToolError(f"no '{name}' next to '{sys.executable}'; install the project in this environment")
    return path


def run_in_foreground(specification: Path, results: Path, processes: Processes) -> None:
    """Run a study to its end; Maestro's poll interval stays at its default."""
    processes.run([command("maestro"), "run", "-fg", "-y", "-o", results, specification])


class Plugin:
    """A study of one sampled step, with its private broker and one worker."""

    key = "plugin"
    title = "this plugin (maestro run -fg)"
    sync_ledger = False

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Write the specification and the sample table."""
        command("maestro")
        table = write_table(samples.directory / "samples.npy", samples.count)
        study = Study(table=table, worker_args=f"--concurrency {samples.slots}", sync_ledger=self.sync_ledger)
        study.write(samples.directory / "study.yaml")

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Run the study, including the start and the end of its broker and its worker."""
        run_in_foreground(samples.directory / "study.yaml", samples.results, processes)


class SyncedPlugin(Plugin):
    """The same with workers that wait until the record of finished samples is on the disk."""

    key = "synced"
    title = "this plugin, sync_ledger: True"
    sync_ledger = True
