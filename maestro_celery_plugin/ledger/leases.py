"""Who holds what: the piece of a range that each slot of each worker has taken and not given up."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.reader import Entries, Kind

__all__ = ["Holdings", "Piece"]


@dataclasses.dataclass
class Piece:
    """Samples [start, stop) of a step record in the hands of a slot."""

    record: int
    start: int
    stop: int


class Holdings:
    """The pieces of all slots, by writer."""

    def __init__(self) -> None:
        self._pieces: dict[str, dict[int, Piece]] = {}

    def apply(self, writer: str, entries: Entries) -> None:
        """Take in entries of one writer, in its order."""
        slots = self._pieces.setdefault(writer, {})
        relevant = np.isin(entries["kind"], (Kind.TAKEN, Kind.PASSED, Kind.RELEASED))
        for entry in entries[relevant]:
            slot, kind = int(entry["slot"]), entry["kind"]
            if kind == Kind.TAKEN:
                slots[slot] = Piece(int(entry["record"]), int(entry["start"]), int(entry["stop"]))
            elif kind == Kind.RELEASED:
                slots.pop(slot, None)
            elif slot in slots:
                slots[slot].stop = min(slots[slot].stop, int(entry["start"]))

    def writers(self) -> set[str]:
        """Return the writers that hold something."""
        return {writer for writer, slots in self._pieces.items() if slots}

    def writers_of(self, records: Collection[int]) -> list[str]:
        """Return the writers that hold something of these step records."""
        return [w for w, slots in self._pieces.items() if any(piece.record in records for piece in slots.values())]

    def count(self, writer: str) -> int:
        """Return how many slots of a writer hold something."""
        return len(self._pieces.get(writer, ()))

    def of_record(self, record: int) -> Iterator[Piece]:
        """Yield the pieces of a step record."""
        return (p for slots in self._pieces.values() for p in slots.values() if p.record == record)

    def mask(self, record: int, size: int) -> np.ndarray[Any, Any]:
        """Return which samples of a step record somebody holds."""
        held = np.zeros(size, bool)
        for piece in self.of_record(record):
            held[piece.start : piece.stop] = True
        return held

    def forget(self, writer: str) -> list[Piece]:
        """Return what a writer that is dead held, and drop it."""
        return list(self._pieces.pop(writer, {}).values())
