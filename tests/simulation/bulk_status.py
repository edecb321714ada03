"""What `maestro-celery status` needs for a study of any size, whose ledger a generator writes.

``python -m simulation.bulk_status --samples 100000000`` writes the ledger of a study in its last minutes: each slot runs
the samples of one message, so that a sample has two entries, of 88 bytes. It reports the first status, the process with
which the conductor keeps the status at hand, and the status after that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import ENTRY, SUFFIX, Kind, _checksums, packed_head
from maestro_celery_plugin.report import status_writer
from maestro_celery_plugin.report.ledger_samples import CACHE
from maestro_celery_plugin.study.plan import StudyPlan
from simulation.bulk import make_study
from simulation.bulk_ledger import Fleet

__all__ = ["main"]

_SAMPLE_S, _BEGIN = 10.0, 1.8e9
# The share of samples that fail.
_FAILED = 1e-4


def write_ledger(plan: StudyPlan, fleet: Fleet) -> int:
    """Write the files of all workers; return the number of samples, which is a multiple of the slots."""
    each = fleet.samples // (fleet.workers * fleet.slots)
    random = np.random.default_rng(1)
    for worker in range(fleet.workers):
        entries = _entries_of(worker, each, fleet, random)
        entries["check"] = _checksums(entries)
        path = plan.ledger / f"w-1-{worker + 1}{SUFFIX}"
        path.write_bytes(packed_head(plan.number) + entries.tobytes())
    return each * fleet.workers * fleet.slots


def _entries_of(worker: int, each: int, fleet: Fleet, random: np.random.Generator) -> Any:
    """Return the entries of a worker in their order: a slot takes its range, and starts and ends sample by sample."""
    slots = np.arange(fleet.slots)
    first = (worker * fleet.slots + slots) * each
    taken = np.zeros(fleet.slots, ENTRY)
    taken["kind"], taken["start"], taken["stop"], taken["slot"] = Kind.TAKEN, first, first + each, slots
    taken["time"] = _BEGIN
    rows = np.zeros((each, fleet.slots, 2), ENTRY)
    rows["kind"] = Kind.STARTED, Kind.ENDED
    rows["start"] = (first + np.arange(each)[:, None])[:, :, None]
    rows["slot"] = slots[:, None]
    rows["time"] = _BEGIN + _SAMPLE_S * (np.arange(each)[:, None, None] + [0.0, 0.99])
    rows["stop"][:, :, 1] = random.exponential(_SAMPLE_S * 1e6, (each, fleet.slots))
    rows["code"][:, :, 1] = random.random((each, fleet.slots)) < _FAILED
    entries = np.concatenate([taken, rows.transpose(0, 2, 1).reshape(-1)])
    entries["record"] = entries["epoch"] = 1
    return entries


def measure(name: str, command: list[str]) -> str:
    """Run a command and print what it needs; return its output."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    seconds, cpu = time.monotonic() - begin, usage.ru_utime + usage.ru_stime
    print(f"  {name}: {seconds:.2f} s ({cpu:.2f} s CPU), peak {usage.ru_maxrss / 1e3:,.0f} MB", flush=True)
    return output


def measure_status(name: str, root: Path, ended: int) -> None:
    """Measure a status, and check its numbers."""
    command = [str(Path(sys.executable).with_name("maestro-celery")), "status", "--json", str(root)]
    samples = json.loads(measure(name, command))["steps"][0]["samples"]
    assert samples["finished"] + samples["failed"] == ended, samples


def main() -> int:
    """Measure one size."""
    parser = argparse.ArgumentParser(prog="python -m simulation.bulk_status", description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=64, help="slots of a worker")
    parser.add_argument("--root", type=Path, default=Path("/dev/shm/maestro-celery-bulk-status"))
    parser.add_argument("--keep", action="store_true", help="keep the study")
    options = parser.parse_args()
    fleet = Fleet(1, options.samples, options.workers, options.slots)
    try:
        plan, manifests = make_study(options.root, fleet)
        manifests[0].write(plan.records / "sim" / "1" / "manifest.json")
        count = write_ledger(plan, fleet)
        size = sum(path.stat().st_size for path in plan.ledger.iterdir())
        print(f"{count:,} samples, {size / 1e9:.2f} GB", flush=True)
        measure_status("first status", options.root, count)
        (plan.info / CACHE).unlink(missing_ok=True)
        measure("process of the conductor", [sys.executable, "-m", status_writer.__name__, str(options.root)])
        print(f"  {CACHE}: {(plan.info / CACHE).stat().st_size / 1e6:.2f} MB")
        measure_status("status after it", options.root, count)
    finally:
        if not options.keep:
            shutil.rmtree(options.root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
