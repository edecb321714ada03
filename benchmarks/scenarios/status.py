"""Reading a study with a large ledger: ``maestro-celery status --json``, ``samples`` and ``failed``."""

from __future__ import annotations

import statistics
import time
import zlib
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Goal, Row
from benchmarks.scenarios.submit import cancel, submit
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import command

__all__ = ["status_rows", "wait_for_manifest"]

_REPEATS = 3
_SUBMIT_LIMIT_S = 30.0


def status_rows(settings: BenchSettings) -> list[Row]:
    """Submit and cancel a study, replace its ledger, and measure its status and its table; return one row for each."""
    size = settings.status_rows
    case = f"status of {size:,} samples"
    say(case)
    try:
        with scratch() as directory, Processes(directory) as processes:
            submit(directory, size, ".npy", settings.slots, processes)
            wait_for_manifest(directory / "results")
            cancel(directory / "results", processes)
            _replace_ledger(directory / "results", size)
            line = [command("maestro-celery"), "status", "--json", directory / "results"]
            time_s = statistics.median(_seconds(line, processes, code=2) for _ in range(_REPEATS))
            rows = [Row(case=case, time_s=time_s, goals=(Goal.at_most("time", time_s, 2.0, " s"),))]
            return [*rows, *_table_rows(directory / "results", size, processes)]
    except BenchmarkError as error:
        return [Row(case=case, note=str(error))]


def _table_rows(study: Path, size: int, processes: Processes) -> list[Row]:
    """Measure the table of samples in files, a condition on all samples, and the groups of failures."""
    output = study.parent / "table"
    words = {
        "csv": ("samples", "-o", f"{output}.csv"),
        "npy": ("samples", "-o", f"{output}.npy"),
        "with --where": ("samples", "-o", f"{output}.csv", "--where", "id % 1000 == 7 and state == 'finished'"),
        "failed": ("failed",),
    }
    return [
        Row(
            case=f"table of {size:,} samples: {name}",
            time_s=_seconds([command("maestro-celery"), *line, study], processes, code=0),
        )
        for name, line in words.items()
    ]


def wait_for_manifest(study: Path) -> None:
    """Wait until the conductor has submitted the study's step."""
    deadline = time.monotonic() + _SUBMIT_LIMIT_S
    while not any(study.glob("merlin_info/records/**/manifest.json")):
        if time.monotonic() > deadline:
            raise ToolFailedError(f"the conductor has not submitted a step after {_SUBMIT_LIMIT_S:.0f} s")
        time.sleep(0.05)


def _seconds(line: list[str | Path], processes: Processes, *, code: int) -> float:
    """Return the seconds of a command; 2 is the code of `status` for a study that was cancelled."""
    begin = time.perf_counter()
    found = processes.start(line).wait()
    if found != code:
        raise ToolFailedError(f"{line[0]}: exit code {found}")
    return time.perf_counter() - begin


def _replace_ledger(study: Path, samples: int) -> None:
    """Replace the ledger of a study by that of two workers that have run all samples."""
    try:
        from maestro_celery_plugin.ledger.entries import SUFFIX, packed_head
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
        entries = _attempts(manifests[0].number, numbers)
        (plan.ledger / f"worker-{worker}{SUFFIX}").write_bytes(packed_head(plan.number) + entries.tobytes())


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
    """Set the check words: the CRC-32 of the other bytes of each entry."""
    size = entries.dtype.fields["check"][1]
    rows = entries.view(np.uint8).reshape(len(entries), -1)
    entries["check"] = [zlib.crc32(row[:size]) for row in rows]
    return entries
