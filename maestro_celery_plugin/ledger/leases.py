"""Leases: the part of a range that each slot of each worker has taken and not released.

They are a table of numbers, because a large study has many slots, of which each takes a range every few seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.ledger.sample_set import SampleSet

__all__ = ["Lease", "Leases"]

Array = np.ndarray[Any, Any]

_TAKEN, _PASSED, _KEPT, _RELEASED = int(Kind.TAKEN), int(Kind.PASSED), int(Kind.KEPT), int(Kind.RELEASED)
_IS_RELEVANT = kind_mask(Kind.TAKEN, Kind.PASSED, Kind.KEPT, Kind.RELEASED)
_IS_WHOLE = kind_mask(Kind.TAKEN, Kind.RELEASED)
# The columns of a lease; its slot is the number of the writer, times 2**16, plus the number of the slot.
_SLOT, _RECORD, _EPOCH, _START, _STOP = range(5)
_SLOT_BITS = np.uint64(16)


class Lease(NamedTuple):
    """The samples [start, stop) of a step record that a slot has taken under an epoch and not released."""

    record: int
    epoch: int
    start: int
    stop: int


class Leases:
    """The leases of all slots, by writer."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        # A row for each lease, in the order of the slots.
        self._rows: Array = np.zeros((0, 5), np.uint64)
        # The same rows in the order of their step records, and the numbers of these; None after a change.
        self._by_record: Array | None = None
        self._records: frozenset[int] | None = None

    def apply(self, writer: str, entries: Entries) -> None:
        """Apply entries of one writer, in their order."""
        self.apply_all([writer], [len(entries)], entries)

    def apply_all(self, writers: Sequence[str], counts: Sequence[int], entries: Entries) -> None:
        """Apply entries of several writers.

        Args:
            writers: The writers.
            counts: The number of entries of each of them.
            entries: The entries, in the order of the writers; those of one writer are in their order.
        """
        places = np.flatnonzero(_IS_RELEVANT[entries["kind"]])
        if not len(places):
            return
        owners = np.repeat(np.array([self._number(writer) for writer in writers], np.uint64), counts)[places]
        slots = owners << _SLOT_BITS | entries["slot"][places]
        order = np.argsort(slots, kind="stable")
        self._apply(slots[order], entries, places[order])

    def _number(self, writer: str) -> int:
        if writer not in self._numbers:
            self._numbers[writer] = len(self._names)
            self._names.append(writer)
        return self._numbers[writer]

    def _apply(self, slots: Array, entries: Entries, places: Array) -> None:
        """Apply entries of slots.

        Args:
            slots: The slot of each entry, in ascending order.
            entries: All entries.
            places: The place of each entry in `entries`; those of one slot are in their order.
        """
        kinds = entries["kind"][places]
        is_first = np.append(True, slots[1:] != slots[:-1])
        firsts = np.flatnonzero(is_first)
        of_slot = np.cumsum(is_first) - 1
        # The last entry of each slot that takes or releases a whole range; -1 without one.
        whole = np.maximum.reduceat(np.where(_IS_WHOLE[kinds], np.arange(len(slots)), -1), firsts)
        at, is_known = self._find(slots[firsts])
        rows = np.zeros((len(firsts), 5), np.uint64)
        rows[is_known] = self._rows[at[is_known]]
        is_taken = (whole >= 0) & (kinds[whole] == _TAKEN)
        taken = places[whole[is_taken]]
        rows[:, _SLOT] = slots[firsts]
        for column, name in ((_RECORD, "record"), (_EPOCH, "epoch"), (_START, "start"), (_STOP, "stop")):
            rows[is_taken, column] = entries[name][taken]
        is_part = ~_IS_WHOLE[kinds] & (np.arange(len(slots)) > whole[of_slot])
        _change_stops(rows, of_slot[is_part], kinds[is_part], entries, places[is_part])
        self._store(rows, at, is_known, is_taken | (is_known & (whole < 0)))

    def _find(self, slots: Array) -> tuple[Array, Array]:
        """Return the place of each of these slots among the leases, and whether it has a lease."""
        own = self._rows[:, _SLOT]
        at = np.searchsorted(own, slots)
        is_known = at < len(own)
        is_known[is_known] = own[at[is_known]] == slots[is_known]
        return at, is_known

    def _store(self, rows: Array, at: Array, is_known: Array, is_leased: Array) -> None:
        """Store the leases of slots.

        Args:
            rows: The leases.
            at: The places of the slots, from `_find`.
            is_known: Whether each slot has had a lease.
            is_leased: Whether it has one now.
        """
        stays, ends, begins = is_known & is_leased, is_known & ~is_leased, is_leased & ~is_known
        self._rows[at[stays]] = rows[stays]
        if ends.any() or begins.any():
            self._rows = np.insert(self._rows, at[begins], rows[begins], axis=0)
            if ends.any():
                self._rows = np.delete(self._rows, self._find(rows[ends, _SLOT])[0], axis=0)
        self._by_record = self._records = None

    # --- questions ---

    def holders(self) -> set[str]:
        """Return the writers with at least one lease."""
        return set(self._writers_of(self._rows))

    def holders_of(self, records: Collection[int]) -> list[str]:
        """Return the writers with a lease of one of these step records, in the order in which they have begun."""
        return self._writers_of(self._rows[np.isin(self._rows[:, _RECORD], list(records))]) if records else []

    def _writers_of(self, rows: Array) -> list[str]:
        return [self._names[number] for number in np.unique(rows[:, _SLOT] >> _SLOT_BITS).tolist()]

    def count(self, writer: str) -> int:
        """Return how many slots of a writer have a lease."""
        begin, end = self._edges_of(writer)
        return end - begin

    def _edges_of(self, writer: str) -> tuple[int, int]:
        """Return the place of the first lease of a writer, and that after the last one."""
        number = self._numbers.get(writer, len(self._names))
        edges = np.array([number, number + 1], np.uint64) << _SLOT_BITS
        begin, end = np.searchsorted(self._rows[:, _SLOT], edges).tolist()
        return begin, end

    def has(self, record: int) -> bool:
        """Tell whether a step record has a lease."""
        if self._records is None:
            self._records = frozenset(np.unique(self._rows[:, _RECORD]).tolist())
        return record in self._records

    def of_record(self, record: int) -> list[Lease]:
        """Return the leases of a step record."""
        return _leases(self._rows_of(record))

    def samples(self, record: int) -> SampleSet:
        """Return the samples of a step record that have a lease."""
        rows = self._rows_of(record)
        return SampleSet.of_edges(rows[:, _START], rows[:, _STOP])

    def _rows_of(self, record: int) -> Array:
        if self._by_record is None:
            self._by_record = self._rows[np.argsort(self._rows[:, _RECORD], kind="stable")]
        edges = np.array([record, record + 1], np.uint64)
        begin, end = np.searchsorted(self._by_record[:, _RECORD], edges).tolist()
        return self._by_record[begin:end]

    def of_writer(self, writer: str) -> list[Lease]:
        """Return the leases of a writer."""
        return _leases(self._rows[slice(*self._edges_of(writer))])

    def revoke(self, writer: str) -> None:
        """Remove the leases of a dead writer."""
        begin, end = self._edges_of(writer)
        if begin < end:
            self._rows = np.delete(self._rows, slice(begin, end), axis=0)
            self._by_record = self._records = None


def _change_stops(rows: Array, of_slot: Array, kinds: Array, entries: Entries, places: Array) -> None:
    """Change the stops of leases of which slots have passed parts, or have kept them after all.

    Args:
        rows: The leases.
        of_slot: The lease of each entry.
        kinds: The kind of each entry.
        entries: All entries.
        places: The place of each entry in `entries`.
    """
    if (kinds == _PASSED).all():
        np.minimum.at(rows[:, _STOP], of_slot, entries["start"][places])
        return
    for lease, entry in zip(of_slot.tolist(), entries[places], strict=True):
        stop = rows[lease, _STOP]
        rows[lease, _STOP] = min(stop, entry["start"]) if entry["kind"] == _PASSED else max(stop, entry["stop"])


def _leases(rows: Array) -> list[Lease]:
    return [Lease(*row) for row in rows[:, 1:].tolist()]
