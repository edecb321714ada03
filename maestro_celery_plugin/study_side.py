"""A study as a worker sees it: its manifests, its own ledger file, and what others have written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from maestro_celery_plugin.ledger import (
    COORDINATOR,
    ENTRY,
    SUFFIX,
    Entries,
    Kind,
    LedgerReader,
    LedgerWriter,
    are_sound,
)
from maestro_celery_plugin.manifest import Manifest
from maestro_celery_plugin.progress import Progress
from maestro_celery_plugin.runner import Runner
from maestro_celery_plugin.samples import open_table
from maestro_celery_plugin.study import StudyPlan

__all__ = ["StudySide"]


class StudySide:
    """A study in a worker process; safe to use from several threads.

    Args:
        root: The study's workspace.
        writer: Names the process's ledger file.

    Attributes:
        plan: What was fixed when the study was launched.
        ledger: The process's ledger file.
        decision: Held while it is decided from the ledger whether a sample runs again.
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
        self._history = LedgerReader(self.plan.ledger)
        self._progress: dict[int, Progress] = {}
        self._unread: dict[int, list[Entries]] = {}

    def runner(self, relative: str) -> tuple[Manifest, Runner]:
        """Return a step record's manifest and runner, read once.

        Raises:
            SampleError: the sample table cannot be read any more.
        """
        with self._lock:
            if relative not in self._runners:
                manifest = Manifest.read(self.plan.records / relative / "manifest.json")
                self._runners[relative] = manifest, _runner_of(manifest)
            return self._runners[relative]

    def is_void(self, record: int, epoch: int, sample: int) -> bool:
        """Tell whether the coordinator has sent or cancelled a sample under a later epoch."""
        try:
            size = os.stat(self._fence_file).st_size  # noqa: PTH116 (a Path costs time, for each sample)
        except FileNotFoundError:
            return False
        if size >= self._fence_offset + ENTRY.itemsize:
            self._read_fences()
        for later, start, stop in reversed(self._fences.get(record, ())):
            if later <= epoch:
                return False
            if start <= sample < stop:
                return True
        return False

    def _read_fences(self) -> None:
        with self._lock:
            entries = np.fromfile(self._fence_file, dtype=ENTRY, offset=self._fence_offset)
            self._fence_offset += len(entries) * ENTRY.itemsize
            entries = entries[are_sound(entries)]
            for entry in entries[(entries["kind"] == Kind.SENT) | (entries["kind"] == Kind.CANCELLED)]:
                fence = int(entry["epoch"]), int(entry["start"]), int(entry["stop"])
                self._fences.setdefault(int(entry["record"]), []).append(fence)

    def progress(self, manifest: Manifest) -> Progress:
        """Return what the whole ledger says of a step record now."""
        with self._lock:
            for _, entries in self._history.poll():
                for number in np.unique(entries["record"]):
                    self._unread.setdefault(int(number), []).append(entries[entries["record"] == number])
            progress = self._progress.setdefault(manifest.number, Progress(manifest))
            for entries in self._unread.pop(manifest.number, []):
                progress.apply(entries)
            return progress


def _runner_of(manifest: Manifest) -> Runner:
    if manifest.table is None:
        return Runner(manifest, lambda sample: ())
    return Runner(manifest, open_table(Path(manifest.table), manifest.labels, Path(manifest.index_cache)).row)
