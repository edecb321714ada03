"""Latency between two steps: from the last sample of a step to the first of the next, from the ledger."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Row
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import run_in_foreground
from benchmarks.workloads import Study, write_table

__all__ = ["latency_rows"]

_SAMPLES = 20


def latency_rows(settings: BenchSettings) -> list[Row]:
    """Run a chain of steps at Maestro's default poll interval; return one row."""
    case = f"latency between two steps, median of {settings.chain - 1}"
    say(case)
    try:
        with scratch() as directory, Processes(directory) as processes:
            table = write_table(directory / "samples.npy", _SAMPLES)
            worker_args = f"--concurrency {settings.slots}"
            Study(table=table, worker_args=worker_args, steps=settings.chain).write(directory / "study.yaml")
            run_in_foreground(directory / "study.yaml", directory / "results", processes)
            gaps = _gaps(directory / "results", settings.chain)
    except BenchmarkError as error:
        return [Row(case=case, note=str(error))]
    return [Row(case=case, time_s=statistics.median(gaps), note=f"longest {max(gaps):.2f} s")]


def _gaps(study: Path, steps: int) -> list[float]:
    """Return the seconds between each step and the next; all times are from the clock of this machine."""
    try:
        from maestro_celery_plugin.ledger.entries import Kind
        from maestro_celery_plugin.ledger.reader import read_ledger
        from maestro_celery_plugin.study.plan import StudyPlan
    except ImportError as cause:
        raise ToolFailedError(f"the plugin is not installed here: {cause}") from cause
    entries = read_ledger(StudyPlan.read(study).ledger)
    started, ended = (entries[entries["kind"] == kind] for kind in (Kind.STARTED, Kind.ENDED))
    spans = sorted(
        (started["time"][started["record"] == number].min(), ended["time"][ended["record"] == number].max())
        for number in set(started["record"].tolist())
    )
    if len(spans) != steps:
        raise ToolFailedError(f"the ledger has {len(spans)} of {steps} steps")
    return [float(begin - end) for (_, end), (begin, _) in pairwise(spans)]
