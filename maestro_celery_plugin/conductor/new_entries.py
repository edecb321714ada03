"""New entries of the ledger by step record, and what they change in the step records of the conductor."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.conductor.run_times import IS_END
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask, selected
from maestro_celery_plugin.ledger.joint_states import apply_together

__all__ = ["NewEntries"]

Array = np.ndarray[Any, Any]

_STARTED, _ENDED = int(Kind.STARTED), int(Kind.ENDED)
_HAS_OUTCOME = kind_mask(Kind.ENDED, Kind.GAVE_UP)
_IS_FAULT = kind_mask(Kind.NOT_RUN, Kind.GAVE_UP)


@dataclasses.dataclass(frozen=True)
class NewEntries:
    """New entries in the order of their step records; those of one writer about one of them are in their order.

    Attributes:
        numbers: The numbers of the step records.
        edges: For each of them, the place of its first entry; at the end, the number of entries.
        entries: The entries.
    """

    numbers: list[int]
    edges: Array
    entries: Entries

    @classmethod
    def sorted(cls, entries: Entries) -> NewEntries:
        """Sort entries by step record."""
        order = np.argsort(entries["record"], kind="stable")
        entries = selected(entries, order)
        numbers, firsts = np.unique(entries["record"], return_index=True)
        return cls(numbers.tolist(), np.append(firsts, len(entries)), entries)

    def only(self, known: Container[int]) -> NewEntries:
        """Return those of known step records."""
        unknown = [number for number in self.numbers if number not in known]
        if not unknown:
            return self
        return self.sorted(self.entries[~np.isin(self.entries["record"], unknown)])

    def apply(self, records: Sequence[StepRecord]) -> list[tuple[StepRecord, Array]]:
        """Apply the entries to their step records.

        A manifest of before an addition, restored from a backup, has fewer samples than the ledger: entries about
        others are ignored.

        Args:
            records: The step records with `numbers`.

        Returns:
            The active step records of which attempts have ended; with the samples that may not have succeeded.
        """
        edges, entries = self.edges, self.entries
        owners = np.repeat(np.arange(len(records)), np.diff(edges))
        is_valid = entries["start"] < np.array([record.manifest.samples for record in records], np.uint64)[owners]
        if not is_valid.all():
            entries, owners = entries[is_valid], owners[is_valid]
            edges = np.searchsorted(owners, np.arange(len(records) + 1))
        apply_together([record.samples for record in records], edges, entries)
        return self._change(records, owners, edges, entries)

    @staticmethod
    def _change(
        records: Sequence[StepRecord], owners: Array, edges: Array, entries: Entries
    ) -> list[tuple[StepRecord, Array]]:
        """Change what step records have besides the states of their samples."""
        count, kinds = len(records), entries["kind"]
        is_special = ((kinds == _ENDED) & (entries["code"] != 0)) | _IS_FAULT[kinds]
        ended = []
        for record, start, end, has_started, has_ended, special, first, stop in zip(
            records,
            *_times(owners, entries, count),
            *(_has_any(owners, mask, count) for mask in (kinds == _STARTED, _HAS_OUTCOME[kinds], is_special)),
            edges[:-1].tolist(),
            edges[1:].tolist(),
            strict=True,
        ):
            record.times.include(start, end)
            if not record.active:
                continue
            own = entries[first:stop][is_special[first:stop]] if special else entries[:0]
            record.note(own, has_started=has_started)
            if has_ended:
                ended.append((record, own["start"][_HAS_OUTCOME[own["kind"]]]))
        return ended


def _times(owners: Array, entries: Entries, count: int) -> tuple[list[float], list[float]]:
    """Return the first begin and the last end of attempts of each step record; infinite without one."""
    is_start, is_end = entries["kind"] == _STARTED, IS_END[entries["kind"]]
    starts, ends = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(starts, owners[is_start], entries["time"][is_start])
    np.maximum.at(ends, owners[is_end], entries["time"][is_end])
    return starts.tolist(), ends.tolist()


def _has_any(owners: Array, mask: Array, count: int) -> list[bool]:
    """Return for each step record whether one of its entries is in a mask."""
    found: list[bool] = (np.bincount(owners[mask], minlength=count) > 0).tolist()
    return found
