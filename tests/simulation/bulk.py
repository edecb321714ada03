"""Sizes that cannot be simulated sample by sample: the real coordinator reads ledgers that a generator writes.

``python -m simulation.bulk --samples 10000000`` writes the ledger of a study as its workers would write it over time,
and lets the step records, the leases and the publisher of the product follow it. It reports the memory of the
coordinator, the time and the input of a look (with the entries of a second, without entries, and of the states of all
step records), the time of a resend after the death of a worker, and what
`maestro-celery status` needs for the result.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from msgspec.structs import replace

from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    StepFacts,
    WorkerGroupSettings,
)
from maestro_celery_plugin.ledger.store import Store
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from simulation.bulk_ledger import BulkLedger, Fleet

__all__ = ["main"]

# Shares of the samples that have finished when looks are measured.
_POINTS = (0.0, 0.1, 0.5, 0.9)
# Looks that are measured at each of these points; each finds the entries of one second.
_LOOKS = 20
# Looks between two points, so that they find the entries of many seconds, and need less time.
_STEPS = 40


class CountingStore(Store):
    """A store that counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_counts: Counter[str] = Counter()

    def _read(self, descriptor: int, offset: int, least: int) -> Any:
        size, data = super()._read(descriptor, offset, least)
        self.read_counts["files"] += 1
        self.read_counts["bytes"] += len(data)
        return size, data


def make_study(root: Path, fleet: Fleet) -> tuple[StudyPlan, list[Manifest]]:
    """Make the files of a study; return its plan and the manifests of its step records."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    group = WorkerGroupSettings(task_queues=("merlin",))
    settings = EnsembleSettings(
        batch=BatchSettings(type="slurm", nodes=fleet.workers, walltime="24:00:00"),
        steps={"sim": StepFacts(queues=("merlin",), sampled=True)},
        resources=ResourceSettings(workers={"w": group}),
    )
    plan = StudyPlan(root=root, timestamp="20270115-080000", settings=settings, id="1")
    (root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    plan.info.mkdir()
    plan.ledger.mkdir()
    Session.create(plan.session)
    first = Manifest(
        number=1, name="sim_1", step="sim", workspace=str(root / "sim" / "1"), script="sim", cmd="cmd", restart="restart",
        shell="/bin/bash", sampled=True, samples=fleet.samples, labels=[], table=None, index_cache=str(root),
        level_max_dirs=25, task_queue="merlin", max_retries=2, retry_delay_s=0.0, study_id=plan.id,
    )  # fmt: skip
    names = [(f"sim_{number}", str(root / "sim" / str(number))) for number in range(1, fleet.records + 1)]
    return plan, [replace(first, name=name, workspace=workspace) for name, workspace in names]


class BulkCoordinator:
    """The part of the coordinator that follows the ledger and sends samples, with the real parts of the product."""

    def __init__(self, plan: StudyPlan, manifests: list[Manifest], ledger: BulkLedger) -> None:
        self.store = CountingStore()
        groups = plan.settings.resources.workers
        self.records = StepRecords(plan, groups, self.store)
        self.publisher = Publisher(
            plan, Session(plan.session), self.records, {"merlin"}, lambda writer: True, lambda writer: None
        )
        self.messages = 0
        self._ledger = ledger
        sender: Any = SimpleNamespace(send=self._send)
        self.publisher._sender = sender
        for manifest in manifests:
            record = self.records.register(manifest)
            record.begin(cancelled=False)
            self.publisher.send(record, record.unassigned(self.records.leased(record)))

    def _send(self, task: Any, task_queue: str, level: int) -> None:
        self._ledger.sent.append(task)
        self.messages += 1

    def look(self) -> float:
        """Look at the ledger as `Coordinator._refresh` and `Coordinator._has_news` do; return the seconds of the CPU."""
        begin = time.process_time()
        self.records.follow()
        for record in self.records.changed():
            self.records.state(record)
        self.records.flush()
        return time.process_time() - begin

    def look_at_all(self) -> float:
        """Look at each step record, as the coordinator does once per second; return the seconds of the CPU."""
        begin = time.process_time()
        for record in self.records:
            self.records.state(record)
        return time.process_time() - begin

    def lose(self, writer: str) -> tuple[float, int]:
        """Count a worker as dead and send its samples again; return the seconds of the CPU and the number of messages."""
        begin, before = time.process_time(), self.messages
        self.records.mark_lost([writer], is_elsewhere=True)
        self.publisher.resend_lost()
        return time.process_time() - begin, self.messages - before


def memory() -> int:
    """Return the resident memory of this process in bytes, after free memory was given back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(root: Path, fleet: Fleet, *, keeps: bool, until: float = 1.0) -> None:
    """Run a study of a size until a share of its samples has ended, and print what it costs."""
    plan, manifests = make_study(root, fleet)
    with BulkLedger(plan.ledger, plan.number, fleet, keeps=keeps) as ledger:
        before, begin = memory(), time.process_time()
        coordinator = BulkCoordinator(plan, manifests, ledger)
        print(f"{fleet}: submitted in {time.process_time() - begin:.1f} s, {memory() - before:,} bytes", flush=True)
        for point in [point for point in _POINTS if point <= until]:
            _advance(coordinator, ledger, fleet, int(point * fleet.total))
            _print_looks(coordinator, ledger, point, before)
        if until == 1:
            _advance(coordinator, ledger, fleet, fleet.total)
    print(f"  {coordinator.messages:,} messages; peak {_peak() / 1e6:,.0f} MB", flush=True)
    if until < 1:
        return
    used = memory() - before
    complete = sum(record.samples.is_complete for record in coordinator.records)
    print(f"  100 %: {used / 1e6:,.0f} MB, {used / fleet.total:.2f} bytes per finished sample; {complete} records complete")
    assert complete == fleet.records


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _advance(coordinator: BulkCoordinator, ledger: BulkLedger, fleet: Fleet, target: int) -> None:
    """Let samples run until so many have ended."""
    step = max(fleet.per_second, fleet.total // _STEPS)
    while ledger.ended < target:
        ledger.run(min(step, target - ledger.ended))
        coordinator.look()


def _print_looks(coordinator: BulkCoordinator, ledger: BulkLedger, point: float, before: int) -> None:
    """Measure looks that find the entries of a second each, and one resend."""
    times, all_times = [], []
    coordinator.store.read_counts.clear()
    for _ in range(_LOOKS):
        ledger.run(min(ledger.fleet.per_second, ledger.fleet.total - ledger.ended))
        times.append(1000 * coordinator.look())
        all_times.append(1000 * coordinator.look_at_all())
    counts = coordinator.store.read_counts.copy()
    idle = [1000 * coordinator.look() for _ in range(_LOOKS)]
    times.sort()
    used, total = memory() - before, ledger.fleet.total
    lost_s, messages = 0.0, 0
    if point == 0.5:
        lost_s, messages = coordinator.lose(ledger.lose_worker())
    print(
        f"  {100 * point:3.0f} %: {used / 1e6:,.0f} MB, {used / total:.2f} bytes per sample; look "
        f"{statistics.median(times):.1f} ms (largest {times[-1]:.0f}), without entries {statistics.median(idle):.1f} ms, "
        f"at all step records {statistics.median(all_times):.1f} ms, {counts['files'] / _LOOKS:.0f} files and "
        f"{counts['bytes'] / _LOOKS / 1e3:,.0f} kB"
        + (f"; a worker dies: {1000 * lost_s:.0f} ms, {messages} messages" if lost_s else ""),
        flush=True,
    )


def status(root: Path) -> None:
    """Measure `maestro-celery status` of the study."""
    command = [str(Path(sys.executable).with_name("maestro-celery")), "status", "--json", str(root)]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    print(f"  status: {seconds:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s CPU), peak {usage.ru_maxrss / 1e3:,.0f} MB")


def main() -> int:
    """Measure one size."""
    parser = argparse.ArgumentParser(prog="python -m simulation.bulk", description=__doc__)
    parser.add_argument("--records", type=int, default=1, help="number of step records")
    parser.add_argument("--samples", type=int, default=1_000_000, help="number of samples of each step record")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=64, help="slots of a worker")
    parser.add_argument("--root", type=Path, default=Path("/dev/shm/maestro-celery-bulk"), help="directory of the study")
    parser.add_argument("--forget", action="store_true", help="free what the coordinator has read; no status then")
    parser.add_argument("--until", type=float, default=1.0, help="share of the samples that end")
    options = parser.parse_args()
    fleet = Fleet(options.records, options.samples, options.workers, options.slots)
    try:
        measure(options.root, fleet, keeps=not options.forget, until=options.until)
        if not options.forget:
            status(options.root)
    finally:
        shutil.rmtree(options.root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
