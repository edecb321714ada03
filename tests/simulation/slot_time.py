"""Where the time of slots goes: samples, and the gaps before, between and after them, from the truth of the samples."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import LedgerReader
from simulation.samples import Attempt

__all__ = ["PARTS", "SlotTime", "slot_time"]

# The parts of the time of slots, which are attributes of `SlotTime`.
PARTS = ("busy", "absent", "before", "inside", "between", "after")


@dataclasses.dataclass
class SlotTime:
    """The seconds of all slots, from the first start of a sample to the last one.

    Attributes:
        busy: Samples run.
        absent: The worker of the slot has not begun to take messages.
        before: The slot waits for its first sample.
        inside: Between two samples of one range.
        between: Between the last sample of a range and the first one of the next.
        after: After the last sample of the slot.
        longest: The longest gap between two ranges.
    """

    busy: float = 0.0
    absent: float = 0.0
    before: float = 0.0
    inside: float = 0.0
    between: float = 0.0
    after: float = 0.0
    longest: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(float(getattr(self, name)) for name in PARTS)

    def share(self, name: str) -> float:
        """Return a part in percent of the whole."""
        return 100 * float(getattr(self, name)) / self.total

    @property
    def busy_of_ready(self) -> float:
        """The share of the time in which samples run, in percent of the time since the worker of a slot is ready."""
        return 100 * self.busy / (self.total - self.absent)


def slot_time(world: Any) -> SlotTime:
    """Add up the time of the slots of a world that has come to its end, one attempt per sample."""
    attempts: dict[int, Attempt] = {key[1]: found[0] for key, found in world.samples.attempts.items()}
    begin = min(one.begin for one in attempts.values())
    last = max(one.begin for one in attempts.values())
    spent = SlotTime()
    slots = _runs(world)
    for (writer, _), ranges in slots.items():
        ready = min(max(world.ready[writer], begin), last)
        spent.absent += ready - begin
        _add(spent, [[attempts[sample] for sample in one] for one in ranges if one], ready, last)
    idle_slots = {writer: world.profile.slots for writer in world.ready}
    for writer, _ in slots:
        idle_slots[writer] -= 1
    for writer, count in idle_slots.items():  # slots that have never run a sample
        ready = min(max(world.ready[writer], begin), last)
        spent.absent += count * (ready - begin)
        spent.before += count * (last - ready)
    return spent


def _add(spent: SlotTime, ranges: list[list[Attempt]], ready: float, last: float) -> None:
    """Add the time of one slot, until `last`."""
    free_since, gap = ready, "before"
    for one in ranges:
        for attempt in one:
            start, end = min(attempt.begin, last), min(attempt.end, last)
            idle = max(0.0, start - free_since)
            setattr(spent, gap, getattr(spent, gap) + idle)
            spent.longest = max(spent.longest, idle if gap == "between" else 0.0)
            spent.busy += end - start
            free_since, gap = end, "inside"
        gap = "between"
    spent.after += last - free_since


def _runs(world: Any) -> dict[tuple[str, int], list[list[int]]]:
    """Return the samples of each range of each slot, from the ledger, in their order."""
    slots: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
    for writer, entries in LedgerReader(world.plan.ledger, world.plan.number).poll():
        kinds = entries["kind"]
        relevant = entries[(kinds == Kind.TAKEN) | (kinds == Kind.STARTED)]
        columns = (relevant[name].tolist() for name in ("kind", "slot", "start"))
        for kind, slot, start in zip(*columns, strict=True):
            if kind == Kind.TAKEN:
                slots[writer, slot].append([])
            else:
                slots[writer, slot][-1].append(start)
    return {place: ranges for place, ranges in slots.items() if any(ranges)}
