"""Utilisation of an allocation of four nodes, on a real Slurm cluster on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Goal, Row
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import command
from benchmarks.workloads import Study, write_table

__all__ = ["utilisation_rows"]

NODES, SLOTS_PER_NODE = 4, 4
_SECONDS_OF_WORK = 30
_GOAL = 0.95


def utilisation_rows(settings: BenchSettings) -> list[Row]:
    """Run samples of one second on four nodes; return one row."""
    slots = NODES * SLOTS_PER_NODE
    case = f"{NODES} Slurm nodes, {slots} slots, samples of 1 s"
    say(case)
    try:
        share = _measured(slots * _SECONDS_OF_WORK, slots)
    except BenchmarkError as error:
        return [Row(case=case, note=str(error))]
    goal = Goal.at_least("sample seconds / slot seconds", share, _GOAL)
    return [Row(case=case, goals=(goal,), note=f"samples use {100 * share:.1f} % of slot time")]


def _measured(count: int, slots: int) -> float:
    try:
        from tests.slurm_cluster import ClusterError, SlurmCluster
    except ImportError as cause:
        raise ToolFailedError(f"run the benchmark in the root directory of the project: {cause}") from cause
    try:
        with SlurmCluster(cpus=SLOTS_PER_NODE) as cluster, scratch() as directory, Processes(directory) as processes:
            study = Study(
                table=write_table(directory / "samples.npy", count),
                worker_args=f"--concurrency {SLOTS_PER_NODE}",
                cmd="sleep 1; echo $(MERLIN_SAMPLE_ID)",
                batch={"type": "slurm", "nodes": NODES, "walltime": "00:10:00"},
            )
            study.write(directory / "study.yaml")
            run = [command("maestro"), "run", "-fg", "-y", "-o", directory / "results", directory / "study.yaml"]
            processes.run(run, env=cluster.environment)
            return _utilisation(directory / "results", count, slots)
    except ClusterError as cause:
        raise ToolFailedError(f"no cluster: {cause}") from cause


def _utilisation(study: Path, count: int, slots: int) -> float:
    """Return sample seconds divided by slot seconds, from the first start of a sample to the last.

    After the last start, no sample waits for a free slot. All times are from the clock of this machine.
    """
    from maestro_celery_plugin.ledger.entries import Kind
    from maestro_celery_plugin.ledger.reader import read_ledger
    from maestro_celery_plugin.study.plan import StudyPlan

    entries = read_ledger(StudyPlan.read(study).ledger)
    starts = np.sort(entries[entries["kind"] == Kind.STARTED]["time"])
    ended = entries[entries["kind"] == Kind.ENDED]
    if len(ended) != count:
        raise ToolFailedError(f"the ledger has {len(ended)} of {count} samples")
    begin, end = starts[0], starts[-1]
    stops = ended["time"]
    durations = np.minimum(stops, end) - np.maximum(stops - ended["stop"] / 1e6, begin)
    return float(durations.clip(min=0).sum() / (slots * (end - begin)))
