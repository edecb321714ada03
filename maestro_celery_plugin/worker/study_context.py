"""A study in a worker: its manifests, the ledger file of the worker, and the entries of other writers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, SUFFIX, Entries, Kind, are_sound
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.worker.attempt import Runner

__all__ = ["StudyContext"]


class StudyContext:
    """A study in a worker process; several threads may use it.

    Args:
        root: The study's workspace.
        writer: Name of the ledger file of the process.

    Attributes:
        plan: The plan of the study.
        ledger: The ledger file of the process.
        decision: Lock that a slot takes while it decides from the ledger whether a sample runs again.
    """

    def __init__(self, root: Path, writer: str) -> None:
        self.plan = StudyPlan.read(root)
        self.ledger = LedgerWriter(self.plan.ledger / f"{writer}{SUFFIX}")
        self.decision = threading.Lock()
        self._lock = threading.Lock()
        self._runners: dict[str, tuple[Manifest, Runner]] = {}
        self._fence_file = str(self.plan.ledger / f"{COORDINATOR}{SUFFIX}")
        self._fence_offset = 0
        self._fences: dict[int, list[tuple[int, int, int]]] = {}
        self._ends: dict[int, list[tuple[int, int, int]]] = {}
        self._history = LedgerReader(self.plan.ledger)
        self._sample_states: dict[int, SampleStates] = {}
        self._unread: dict[int, list[Entries]] = {}

    def runner(self, relative: str) -> tuple[Manifest, Runner]:
        """Return the manifest and the runner of a step record; the first call reads the files.

        Raises:
            SampleError: the sample table cannot be read any more.
        """
        with self._lock:
            if relative not in self._runners:
                manifest = Manifest.read(self.plan.records / relative / "manifest.json")
                self._runners[relative] = manifest, _runner_of(manifest)
            return self._runners[relative]

    def is_invalid(self, record: int, epoch: int, sample: int) -> bool:
        """Tell whether a sample must not start: the coordinator has sent or cancelled it under a later epoch."""
        self._follow_coordinator()
        for fence, start, stop in reversed(self._fences.get(record, ())):
            if fence <= epoch:  # epochs never decrease, so that the later epochs are at the end
                return False
            if start <= sample < stop:
                return True
        return False

    def must_end(self, record: int, epoch: int, sample: int) -> bool:
        """Tell whether a running attempt must end: the coordinator has cancelled it, or has declared it lost.

        If the coordinator sends a sample again, the attempt continues: the coordinator may not have seen its start, and
        no other worker runs the sample before the attempt has ended.
        """
        self._follow_coordinator()
        return any(e > epoch and start <= sample < stop for e, start, stop in self._ends.get(record, ()))

    def _follow_coordinator(self) -> None:
        try:
            size = os.stat(self._fence_file).st_size  # noqa: PTH116 (a Path costs time, for each sample)
        except FileNotFoundError:
            return
        if size >= self._fence_offset + ENTRY.itemsize:
            with self._lock:
                self._read_fences()

    def _read_fences(self) -> None:
        entries = np.fromfile(self._fence_file, dtype=ENTRY, offset=self._fence_offset)
        self._fence_offset += len(entries) * ENTRY.itemsize
        for entry in entries[are_sound(entries)]:
            kind, record, epoch = Kind(entry["kind"]), int(entry["record"]), int(entry["epoch"])
            start, stop = int(entry["start"]), int(entry["stop"])
            if kind in (Kind.SENT, Kind.CANCELLED):
                self._fences.setdefault(record, []).append((epoch, start, stop))
            if kind is Kind.CANCELLED:
                self._ends.setdefault(record, []).append((epoch, start, stop))
            elif kind is Kind.LOST:
                self._ends.setdefault(record, []).append((epoch + 1, start, start + 1))

    def sample_states(self, manifest: Manifest) -> SampleStates:
        """Return the states of the samples of a step record from the whole ledger."""
        with self._lock:
            for _, entries in self._history.poll():
                for number in np.unique(entries["record"]):
                    self._unread.setdefault(int(number), []).append(entries[entries["record"] == number])
            if manifest.number not in self._sample_states:
                self._sample_states[manifest.number] = SampleStates(manifest.samples, manifest.max_retries)
            states = self._sample_states[manifest.number]
            for entries in self._unread.pop(manifest.number, []):
                states.apply(entries)
            return states


def _runner_of(manifest: Manifest) -> Runner:
    if manifest.table is None:
        return Runner(manifest, lambda sample: ())
    return Runner(manifest, open_table(Path(manifest.table), manifest.labels, Path(manifest.index_cache)).row)
