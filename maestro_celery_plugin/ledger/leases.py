"""Leases: the part of a range that each slot of each worker has taken and not released."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator

from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.ledger.sample_set import SampleSet

__all__ = ["Lease", "Leases"]

_IS_RELEVANT = kind_mask(Kind.TAKEN, Kind.PASSED, Kind.KEPT, Kind.RELEASED)


@dataclasses.dataclass
class Lease:
    """The samples [start, stop) of a step record that a slot has taken under an epoch and not released."""

    record: int
    epoch: int
    start: int
    stop: int


class Leases:
    """The leases of all slots, by writer."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[int, Lease]] = {}
        # The same leases by step record, because a large study has many workers and many step records.
        self._of_record: dict[int, dict[tuple[str, int], Lease]] = defaultdict(dict)

    def apply(self, writer: str, entries: Entries) -> None:
        """Apply entries of one writer, in their order."""
        slots = self._leases.setdefault(writer, {})
        relevant = entries[_IS_RELEVANT[entries["kind"]]]
        columns = (relevant[name].tolist() for name in ("kind", "slot", "record", "epoch", "start", "stop"))
        for kind, slot, record, epoch, start, stop in zip(*columns, strict=True):
            if kind == Kind.TAKEN:
                self._remove(writer, slot)
                slots[slot] = self._of_record[record][writer, slot] = Lease(record, epoch, start, stop)
            elif kind == Kind.RELEASED:
                self._remove(writer, slot)
            elif slot not in slots:
                continue
            elif kind == Kind.PASSED:
                slots[slot].stop = min(slots[slot].stop, start)
            else:
                slots[slot].stop = max(slots[slot].stop, stop)

    def _remove(self, writer: str, slot: int) -> None:
        lease = self._leases[writer].pop(slot, None)
        if lease is not None:
            self._of_record[lease.record].pop((writer, slot), None)

    def holders(self) -> set[str]:
        """Return the writers with at least one lease."""
        return {writer for writer, slots in self._leases.items() if slots}

    def holders_of(self, records: Collection[int]) -> list[str]:
        """Return the writers with a lease of one of these step records."""
        return [w for w, slots in self._leases.items() if any(lease.record in records for lease in slots.values())]

    def count(self, writer: str) -> int:
        """Return how many slots of a writer have a lease."""
        return len(self._leases.get(writer, ()))

    def of_record(self, record: int) -> Iterator[Lease]:
        """Yield the leases of a step record."""
        return iter(self._of_record[record].values())

    def has(self, record: int) -> bool:
        """Tell whether a step record has a lease."""
        return bool(self._of_record.get(record))

    def samples(self, record: int) -> SampleSet:
        """Return the samples of a step record that have a lease."""
        return SampleSet.of_ranges((lease.start, lease.stop) for lease in self.of_record(record))

    def revoke(self, writer: str) -> list[Lease]:
        """Remove the leases of a dead writer, and return them."""
        leases = dict(self._leases.get(writer, {}))
        for slot in leases:
            self._remove(writer, slot)
        self._leases.pop(writer, None)
        return list(leases.values())
