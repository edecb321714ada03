"""The reader of a ledger: it follows the files of all writers."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np

from maestro_celery_plugin.ledger.entries import ENTRY, SUFFIX, Entries, are_sound

__all__ = ["LedgerReader", "read_ledger"]


class LedgerReader:
    """Follows all files of a ledger; each call to `poll` yields new entries.

    Attributes:
        damaged: Number of entries with a wrong check word so far; they are ignored.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[str, int] = {}
        self.damaged = 0

    def poll(self, skip: Container[str] = ()) -> Iterator[tuple[str, Entries]]:
        """Yield (writer, new entries in their order in the file).

        Each call opens each file, because NFS guarantees to show new data only after an open (nfs(5)).

        Args:
            skip: Writers to skip in this call, such as workers that have left.
        """
        try:
            files = sorted(entry.name for entry in os.scandir(self._directory) if entry.name.endswith(SUFFIX))
        except FileNotFoundError:
            return
        for name in files:
            writer = name.removesuffix(SUFFIX)
            if writer in skip:
                continue
            entries = self._read(name)
            if len(entries):
                yield writer, entries

    def _read(self, name: str) -> Entries:
        path, offset = self._directory / name, self._offsets.get(name, 0)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            count = (size - offset) // ENTRY.itemsize
            if count <= 0:
                return np.empty(0, ENTRY)
            entries = np.fromfile(file, dtype=ENTRY, count=count, offset=offset)
        self._offsets[name] = offset + len(entries) * ENTRY.itemsize
        return self._checked(entries)

    def _checked(self, entries: Entries) -> Entries:
        sound = are_sound(entries)
        if sound.all():
            return entries
        self.damaged += int(len(entries) - sound.sum())
        kept: Entries = entries[sound]
        return kept


def read_ledger(directory: Path) -> Entries:
    """Return all entries of a ledger; those of one writer are in order."""
    parts = [entries for _, entries in LedgerReader(directory).poll()]
    return np.concatenate(parts) if parts else np.empty(0, ENTRY)
