"""The memory of a worker process as a study grows: real range tasks with real samples, in a process of its own.

``python -m simulation.worker_memory --samples 1000000 --records 1 --table npy`` makes a study, runs some samples from all
parts of its step records, and prints the resident memory before and after.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.ledger.claims import Claims
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX, Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.additions import open_samples
from maestro_celery_plugin.study.manifest import FILE
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.worker.launch_env import LaunchEnvironment
from maestro_celery_plugin.worker.range_task import RangeTasks
from maestro_celery_plugin.worker.slots import Slots
from simulation.bulk import Size, make_study

__all__ = ["main"]

_SLOTS = 64
# Rows that are written at once.
_ROWS = 1_000_000


def _write_table(path: Path, rows: int) -> None:
    """Write a table of two columns."""
    if path.suffix == ".npy":
        table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(rows, 2))
        for begin in range(0, rows, _ROWS):
            table[begin : begin + _ROWS] = begin
        table.flush()
        return
    with path.open("wb") as file:
        for begin in range(0, rows, _ROWS):
            file.write(b"".join(b"%d,%d\n" % (row, row) for row in range(begin, min(rows, begin + _ROWS))))


def _resident_mb() -> float:
    """Return the resident memory of this process that belongs to it alone, without pages of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1e3


def _make(root: Path, size: Size, suffix: str) -> None:
    """Make the study, and the index of its table, as a launch does."""
    plan, manifests = make_study(root, size)
    table = plan.info / f"samples{suffix}"
    _write_table(table, size.samples)
    coordinator = LedgerWriter(plan.ledger / f"{COORDINATOR}{SUFFIX}", plan.number)
    claims = Claims(plan.claims, plan.number)
    for number, manifest in enumerate(manifests, 1):
        one = replace(
            manifest, number=number, cmd="true", restart="true", labels=["A", "B"], table=str(table),
            index_cache=str(plan.info),
        )  # fmt: skip
        Path(one.workspace).mkdir(parents=True)
        one.write(plan.records / _relative(number) / FILE)
        coordinator.append(Kind.SENT, number, 1, 0, size.samples)
        claims.prepare(number)
        if number == 1:
            open_samples(one)
    coordinator.flush()
    coordinator.close()


def _relative(number: int) -> str:
    return f"sim/{number}"


def main() -> int:
    """Measure one size."""
    parser = argparse.ArgumentParser(prog="python -m simulation.worker_memory", description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000, help="number of samples of each step record")
    parser.add_argument("--records", type=int, default=1)
    parser.add_argument("--runs", type=int, default=500, help="number of samples that run")
    parser.add_argument("--table", choices=("npy", "csv"), default="npy")
    parser.add_argument("--root", type=Path, default=Path("/dev/shm/maestro-celery-worker"), help="directory of the study")
    options = parser.parse_args()
    try:
        size = Size(options.records, options.samples, 1, _SLOTS)
        # In another process, so that its memory is not that of the worker.
        maker = multiprocessing.get_context("fork").Process(target=_make, args=(options.root, size, f".{options.table}"))
        maker.start()
        maker.join()
        plan, count = StudyPlan.read(options.root), options.records
        before, begin = _resident_mb(), time.monotonic()
        tasks = RangeTasks("w-1", Slots(_SLOTS, Deadline(), LaunchEnvironment("w-1")), lambda *message: None)
        for run in range(options.runs):
            number, start = 1 + run * count // options.runs, run * (options.samples // options.runs)
            place = str(plan.root), plan.id, _relative(number), number
            tasks.run(RangeTask(*place, start, start + 1, 1, RunMode.FIRST))
            if not run:
                first_mb, first_s = _resident_mb(), time.monotonic() - begin
        print(
            f"{count:,} step records, {options.samples:,} samples each, {options.table}: first sample +{first_mb - before:.1f} MB "
            f"in {first_s:.2f} s, after {options.runs} samples +{_resident_mb() - before:.1f} MB; "
            f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB",
            flush=True,
        )
    finally:
        shutil.rmtree(options.root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
