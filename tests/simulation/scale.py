"""The profile `scale`: what a study costs as it grows, measured in the simulation of a world without faults."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.conductor.coordinator import Coordinator
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.store import Store
from simulation import kernel as sim
from simulation.filesystem import Caching
from simulation.profiles import Profile
from simulation.slot_time import PARTS, SlotTime, slot_time
from simulation.world import World, running

__all__ = ["SIZES", "Cost", "measure", "report"]

# Samples, workers, slots of a worker.
SIZES = ((640, 1, 64), (5_120, 8, 64), (40_960, 64, 64))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a study has cost.

    Attributes:
        messages: Messages per second in which a slot runs samples.
        operations: Operations of files per sample, by kind; those in the session are not included.
        looks: Number of looks of the coordinator.
        look_ms: Mean and largest processor time of a look, in milliseconds.
        read: Mean number of ledger files, and bytes of them, that a look reads.
        state_bytes: Bytes of memory per sample in the coordinator at the end.
        waiting: The largest number of messages that have waited in the task queue at one time.
        slot_time: Where the time of the slots has gone, until the last sample has started.
    """

    samples: int
    slots: int
    messages: float
    operations: dict[str, float]
    looks: int
    look_ms: tuple[float, float]
    read: tuple[float, float]
    state_bytes: float
    waiting: int
    slot_time: SlotTime


def measure(samples: int, workers: int, slots: int) -> Cost:
    """Simulate a study of samples that take 10 s in the mean, on NFS."""
    profile = Profile(
        name="scale", workers="allocation", nodes=workers, slots=slots, records=1, samples=samples, mean_s=10.0,
        poll_s=60.0, caching=Caching(), operation_s=0.0005, deliver_s=0.002, idle_limit_s=300.0, limit_s=1e6,
        walltime_s=7 * 86_400,
    )  # fmt: skip
    world = World(1, profile)
    looks: list[float] = []
    reads: Counter[str] = Counter()
    with running(world):
        refresh, read = Coordinator._refresh, Store.read

        def timed_refresh(self: Any) -> None:
            begin = time.process_time()
            refresh(self)
            looks.append(1000 * (time.process_time() - begin))

        def counted_read(self: Any, path: Any, offset: int, least: int) -> Any:
            size, data = read(self, path, offset, least)
            process = sim.current()
            if process is not None and process.name == "conductor":
                reads["files"] += 1
                reads["bytes"] += len(data)
            return size, data

        Coordinator._refresh, Store.read = timed_refresh, counted_read  # type: ignore[method-assign]
        try:
            result = world.run(1_000_000_000)
        finally:
            Coordinator._refresh, Store.read = refresh, read  # type: ignore[method-assign]
        assert not result.violations, result.violations[:3]
        return _cost(world, looks, reads)


def _cost(world: World, looks: list[float], reads: Counter[str]) -> Cost:
    profile = world.profile
    attempts = [attempt for found in world.samples.attempts.values() for attempt in found]
    busy_s = sum(attempt.end - attempt.begin for attempt in attempts)
    states: SampleStates = world.record("step0").samples
    return Cost(
        profile.samples,
        profile.nodes * profile.slots,
        world.broker.counts["sent"] / busy_s,
        {kind: count / profile.samples for kind, count in sorted(world.server.kinds.items())},
        len(looks),
        (float(np.mean(looks)), max(looks)),
        (reads["files"] / len(looks), reads["bytes"] / len(looks)),
        states.memory / profile.samples,
        world.broker.longest,
        slot_time(world),
    )


def report(sizes: Sequence[tuple[int, int, int]] = SIZES) -> None:
    """Print the costs of growing studies.

    Args:
        sizes: Samples, workers, and slots of a worker, for each study.
    """
    for size in sizes:
        begin = time.process_time()
        cost = measure(*size)
        used_s = time.process_time() - begin
        print(
            f"{cost.samples:>8,} samples, {cost.slots:>6,} slots: {cost.messages:.3f} messages per busy slot-second, "
            f"at most {cost.waiting:,} wait; {cost.state_bytes:.0f} bytes per sample in the coordinator; "
            f"look {cost.look_ms[0]:.1f} ms (largest {cost.look_ms[1]:.0f}), "
            f"{cost.read[0]:.1f} files and {cost.read[1]:,.0f} bytes per look"
        )
        spent = cost.slot_time
        shares = ", ".join(f"{name} {spent.share(name):.2f} %" for name in PARTS)
        print(f"         slots: {shares}; {spent.busy_of_ready:.2f} % busy since their workers are ready")
        operations = ", ".join(f"{kind} {count:.2f}" for kind, count in cost.operations.items())
        print(f"         operations of files outside of the session per sample: {operations}")
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"         simulated in {used_s:.0f} s of a core and {peak_mb:,.0f} MB", flush=True)
