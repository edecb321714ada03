"""Leases: the part of a range that each slot of each worker has taken and not released; and the waiting messages."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.claims import MessageName
from maestro_celery_plugin.ledger.entries import Entries, Kind

__all__ = ["Lease", "Leases"]

# The fields of an entry that make up the name of a message, in the order of `MessageName`.
_NAME_FIELDS = ("record", "epoch", "start", "stop", "code")
_RELEVANT = (Kind.SENT, Kind.TAKEN, Kind.PASSED, Kind.KEPT, Kind.RELEASED)


@dataclasses.dataclass
class Lease:
    """The samples [start, stop) of a step record that a slot has taken under an epoch and not released."""

    record: int
    epoch: int
    start: int
    stop: int


class Leases:
    """The leases of all slots, by writer, and the messages that were sent and that no slot has taken."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[int, Lease]] = {}
        self._waiting: dict[int, set[MessageName]] = defaultdict(set)
        # Messages that a slot has taken, although the entry about their sending is not visible yet.
        self._taken_early: set[MessageName] = set()

    def apply(self, writer: str, entries: Entries) -> None:
        """Apply entries of one writer, in their order."""
        slots = self._leases.setdefault(writer, {})
        for entry in entries[np.isin(entries["kind"], _RELEVANT)]:
            slot, kind = int(entry["slot"]), entry["kind"]
            name = MessageName(*(int(entry[field]) for field in _NAME_FIELDS))
            if kind == Kind.SENT:
                self._send(name)
            elif kind == Kind.TAKEN:
                self._take(name)
                slots[slot] = Lease(name.record, name.epoch, name.start, name.stop)
            elif kind == Kind.RELEASED:
                slots.pop(slot, None)
            elif kind == Kind.PASSED:
                self._send(name)
                if slot in slots:
                    slots[slot].stop = min(slots[slot].stop, name.start)
            else:
                self._take(name)
                if slot in slots:
                    slots[slot].stop = max(slots[slot].stop, name.stop)

    def _send(self, name: MessageName) -> None:
        if name in self._taken_early:
            self._taken_early.remove(name)
        else:
            self._waiting[name.record].add(name)

    def _take(self, name: MessageName) -> None:
        if name in self._waiting[name.record]:
            self._waiting[name.record].remove(name)
        else:
            self._taken_early.add(name)

    def waiting(self, record: int) -> list[MessageName]:
        """Return the messages about a step record that were sent and that no slot has taken."""
        return list(self._waiting[record])

    def forget(self, name: MessageName) -> None:
        """Remove a waiting message, which no slot can take any more."""
        self._waiting[name.record].discard(name)

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
        return (lease for slots in self._leases.values() for lease in slots.values() if lease.record == record)

    def mask(self, record: int, size: int) -> np.ndarray[Any, Any]:
        """Return a mask of the samples of a step record that have a lease.

        Args:
            record: Number of the step record.
            size: Number of samples of the step record.
        """
        return _mask_of(self.of_record(record), size)

    def waiting_mask(self, record: int, size: int) -> np.ndarray[Any, Any]:
        """Return a mask of the samples of a step record about which a message waits.

        Args:
            record: Number of the step record.
            size: Number of samples of the step record.
        """
        return _mask_of(self._waiting[record], size)

    def revoke(self, writer: str) -> list[Lease]:
        """Remove the leases of a dead writer, and return them."""
        return list(self._leases.pop(writer, {}).values())


def _mask_of(ranges: Collection[MessageName] | Iterator[Lease], size: int) -> np.ndarray[Any, Any]:
    mask = np.zeros(size, bool)
    for one in ranges:
        mask[one.start : one.stop] = True
    return mask
