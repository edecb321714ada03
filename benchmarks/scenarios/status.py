"""Status: ``maestro-celery status --json`` of a study with a large ledger."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Goal, Row
from benchmarks.scenarios.submit import cancel, submit
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import command

__all__ = ["status_rows"]

_REPEATS = 3
_SUBMIT_LIMIT_S = 30.0


def status_rows(settings: BenchSettings) -> list[Row]:
    """Submit and cancel a study, replace its ledger, and measure its status; return one row."""
    size = settings.status_rows
    case = f"status of {size:,} samples"
    say(case)
    try:
        with scratch() as directory, Processes(directory) as processes:
            submit(directory, size, ".npy", settings.slots, processes)
            _wait_for_manifest(directory / "results")
            cancel(directory / "results", processes)
            _replace_ledger(directory / "results", size)
            line = [command("maestro-celery"), "status", "--json", directory / "results"]
            time_s = statistics.median(_seconds(line, processes) for _ in range(_REPEATS))
    except BenchmarkError as error:
        return [Row(case=case, note=str(error))]
    return [Row(case=case, time_s=time_s, goals=(Goal.at_most("time", time_s, 2.0, " s"),))]


def _wait_for_manifest(study: Path) -> None:
    """Wait until the conductor has submitted the study's step."""
    deadline = time.monotonic() + _SUBMIT_LIMIT_S
    while not any(study.glob("merlin_info/records/**/manifest.json")):
        if time.monotonic() > deadline:
            raise ToolFailedError(f"the conductor has not submitted a step after {_SUBMIT_LIMIT_S:.0f} s")
        time.sleep(0.05)


def _seconds(line: list[str | Path], processes: Processes) -> float:
    begin = time.perf_counter()
    processes.run(line)
    return time.perf_counter() - begin


def _replace_ledger(study: Path, samples: int) -> None:
    """Replace the ledger of a study by that of two workers that have run all samples."""
    try:
        from maestro_celery_plugin.ledger.entries import SUFFIX
        from maestro_celery_plugin.study.manifest import Manifest
        from maestro_celery_plugin.study.plan import StudyPlan
    except ImportError as cause:
        raise ToolFailedError(f"the plugin is not installed here: {cause}") from cause
    plan = StudyPlan.read(study)
    manifests = Manifest.read_all(plan.records)
    if not manifests:
        raise ToolFailedError("the study was cancelled before its step was submitted")
    for file in plan.ledger.iterdir():
        file.unlink()
    for worker, numbers in enumerate(np.array_split(np.arange(samples), 2)):
        _attempts(manifests[0].number, numbers).tofile(plan.ledger / f"worker-{worker}{SUFFIX}")


def _attempts(record: int, samples: np.ndarray) -> np.ndarray:
    """Return the entries of samples that ran one after another, each for a millisecond."""
    from maestro_celery_plugin.ledger.entries import ENTRY, Kind

    entries = np.zeros((len(samples), 2), ENTRY)
    entries["kind"] = [Kind.STARTED, Kind.ENDED]
    entries["record"], entries["epoch"] = record, 1
    entries["start"] = samples[:, None]
    entries["stop"][:, 1] = 1000  # the end of an attempt stores the duration in this field, in microseconds
    entries["time"] = time.time() + samples[:, None] / 1000
    return _with_checks(entries.reshape(-1))


def _with_checks(entries: np.ndarray) -> np.ndarray:
    """Set the check words: the xor of all words of an entry is the seed of the ledger."""
    from maestro_celery_plugin.ledger import entries as layout

    words = entries.view(np.uint32).reshape(len(entries), -1)
    entries["check"] = np.bitwise_xor.reduce(words, axis=1) ^ np.uint32(layout._SEED)
    return entries
