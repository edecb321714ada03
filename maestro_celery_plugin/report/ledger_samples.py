"""The samples of all step records of a study, from its ledger; each look reads what is new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, by_record, joined, selected
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.report.sample_status import RecordSamples
from maestro_celery_plugin.report.status_cache import UNUSABLE, StatusCache
from maestro_celery_plugin.report.usage import AllocationUsage
from maestro_celery_plugin.study.additions import AdditionFile
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["CACHE", "LedgerSamples"]

# Entries that are applied at once.
_ENTRIES = 1 << 18
# The cache of the status is written after this number of new entries; to read them takes some seconds.
_STORED_ENTRIES = 4_000_000
CACHE = "status.cache"

Array = np.ndarray[Any, Any]


class LedgerSamples:
    """The samples of the step records that were submitted.

    Args:
        plan: The study.
        is_detailed: Whether to store what only a table of all samples needs (`sample_status.py`).

    Attributes:
        records: The step records by number.
        writers: The names of the writers of the ledger.
        usage: The slot time in each allocation.
    """

    def __init__(self, plan: StudyPlan, *, is_detailed: bool) -> None:
        self._plan, self._is_detailed = plan, is_detailed
        self._reader = _reader_of(plan)
        self._additions = AdditionFile(plan)
        self._cache = StatusCache(plan.info / CACHE, plan.number)
        self._is_restored, self._not_stored = is_detailed, 0
        self.records: dict[int, RecordSamples] = {}
        self.writers: list[str] = []
        self.usage = AllocationUsage(plan.settings)

    @property
    def damage(self) -> list[str]:
        """A sentence for each kind of damage of the ledger so far."""
        return self._reader.damage

    def follow(self) -> None:
        """Apply new entries; the states do not depend on the order of entries of different writers."""
        if not self._is_restored:
            self._restore()
        self._is_restored = True
        for entries, writers in self._new_entries():
            # Read after the ledger: the manifest of a step record exists before its first entry.
            self._read_manifests(entries)
            self._apply(entries, writers)
            self._not_stored += len(entries)
        if self._not_stored > _STORED_ENTRIES and not self._is_detailed:
            self.store()

    def _restore(self) -> None:
        """Take over what an earlier command has read, if the ledger is still the same."""
        found = self._cache.read()
        if found is None:
            return
        facts, marks, records = found
        manifests = {manifest.number: manifest for manifest in Manifest.read_all(self._plan.records)}
        try:
            restored = {number: RecordSamples(manifests[number]) for number in records}
            for number, record in restored.items():
                record.restore(records[number])
            usage, writers = AllocationUsage(self._plan.settings), [str(writer) for writer in facts["writers"]]
            usage.restore(facts["usage"])
            if self._reader.go_on_at(marks):
                self.records, self.writers, self.usage = restored, writers, usage
        except UNUSABLE:
            self._reader = _reader_of(self._plan)

    def store(self) -> None:
        """Store what was read for the next command; do nothing if it is stored, or if the ledger is damaged."""
        is_new, self._not_stored = self._not_stored > 0, 0
        marks = self._reader.marks() if is_new else {}
        if marks:
            facts = {"writers": self.writers, "usage": self.usage.stored()}
            self._cache.write(facts, marks, {number: record.stored() for number, record in self.records.items()})

    def _apply(self, entries: Entries, writers: Array) -> None:
        for number, places in by_record(entries):
            record = self.records.get(number)
            if record:
                record.apply(selected(entries, places), writers[places])

    def _new_entries(self) -> Iterator[tuple[Entries, Array]]:
        """Yield new entries, and for each entry the number of its writer in `writers`, at least one time.

        The entries of many writers are yielded together, but not those of all, so that a large ledger needs little
        memory.
        """
        parts, writers = list[Entries](), list[Array]()
        count = 0
        for writer, entries in self._reader.poll():
            if writer not in self.writers:
                self.writers.append(writer)
            self.usage.add(writer, entries)
            parts.append(entries)
            writers.append(np.full(len(entries), self.writers.index(writer), np.uint32))
            count += len(entries)
            if count >= _ENTRIES:
                yield joined(parts), np.concatenate(writers)
                parts, writers, count = [], [], 0
        yield joined(parts), np.concatenate([np.empty(0, np.uint32), *writers])

    def _read_manifests(self, entries: Entries) -> None:
        numbers = np.array([0, *self.records], np.uint32)
        if self.records and np.isin(entries["record"], numbers).all() and not self._has_grown(entries):
            return
        for manifest in Manifest.read_all(self._plan.records):
            if manifest.number in self.records:
                self.records[manifest.number].grow(manifest)
            else:
                self.records[manifest.number] = RecordSamples(manifest, is_detailed=self._is_detailed)

    def _has_grown(self, entries: Entries) -> bool:
        """Whether step records have more samples than before: those that were added to the study."""
        total = self._additions.total()
        counts = np.full(1 + max(self.records), np.iinfo(np.uint64).max, np.uint64)
        for number, record in self.records.items():
            counts[number] = record.manifest.samples
            if record.manifest.sampled and record.manifest.samples < total:
                return True  # the conductor may have changed the manifest since
        return bool((entries["start"] >= counts[entries["record"]]).any())

    def waiting_additions(self) -> int:
        """Return the number of added samples that no step record has."""
        counts = [record.manifest.samples for record in self.records.values() if record.manifest.sampled]
        return max(0, self._additions.total() - max(counts)) if counts else 0


def _reader_of(plan: StudyPlan) -> LedgerReader:
    return LedgerReader(plan.ledger, plan.number)
