"""The ledger: the append-only record of attempts, and the only truth about what has run.

Each writer (a worker process, or the coordinator) has one file, in which entries of fixed size follow
each other. A file has one writer, so entries are whole but for the last one, which may be torn when the
writer died; it is ignored, as is any entry whose check word does not fit.
"""

from __future__ import annotations

import enum
import errno
import functools
import operator
import os
import struct
import threading
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import LedgerError

__all__ = ["COORDINATOR", "ENTRY", "SUFFIX", "Kind", "LedgerReader", "LedgerWriter", "are_sound", "read_ledger"]

Entries = np.ndarray[Any, np.dtype[np.void]]


class Kind(enum.IntEnum):
    """What an entry tells. `start` and `stop` are a range of samples [start, stop) unless said otherwise."""

    SENT = 1
    """Coordinator: the range was sent to the task queue under this epoch; earlier epochs are void for it."""
    CANCELLED = 2
    """Coordinator: nothing of the range shall run under this or an earlier epoch."""
    LOST = 3
    """Coordinator: the attempt at sample `start` under this epoch ended with its worker; `code` is 1 when the
    conductor had ended, too, so that the sample cannot have been the reason."""
    REOPENED = 4
    """Coordinator: outcomes of sample `start` under this or an earlier epoch are void; it shall run again."""
    TAKEN = 5
    """Worker: a slot has taken the range."""
    PASSED = 6
    """Worker: the slot has sent this end of its range on."""
    RELEASED = 7
    """Worker: the slot holds nothing of the range any more."""
    STARTED = 8
    """Worker: an attempt at sample `start` begins; `code` is 1 when it runs `restart`."""
    ENDED = 9
    """Worker: the attempt at sample `start` has ended with `code`; `stop` is its duration in microseconds."""
    STOPPED = 10
    """Worker: it has ended the attempt at sample `start` itself, after `stop` microseconds; it counts as lost."""


# Little-endian, packed: kind, reserved, slot, code, record, epoch, start, stop, time (Unix seconds of the
# writer's clock; clocks of different writers are not compared), check (xor of the other words).
_STRUCT = struct.Struct("<BBHiIIQQd")
_WORDS = struct.Struct("<10I")
_CHECK = struct.Struct("<I")
_SEED = 0x5EED1ED6

ENTRY = np.dtype(
    [
        ("kind", "u1"),
        ("reserved", "u1"),
        ("slot", "<u2"),
        ("code", "<i4"),
        ("record", "<u4"),
        ("epoch", "<u4"),
        ("start", "<u8"),
        ("stop", "<u8"),
        ("time", "<f8"),
        ("check", "<u4"),
    ]
)
SUFFIX = ".ledger"
# The writer that is not a worker.
COORDINATOR = "coordinator"


class LedgerWriter:
    """The one writer of one ledger file; safe to use from several threads.

    Args:
        path: The file. When it exists (the coordinator's, after a restart), a torn last entry is cut off.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        self._is_dirty = False
        self._open()
        self._size = os.fstat(self._fd).st_size // ENTRY.itemsize * ENTRY.itemsize
        os.ftruncate(self._fd, self._size)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(
        self, kind: Kind, record: int, epoch: int, start: int, stop: int = 0, *, code: int = 0, slot: int = 0
    ) -> None:
        """Append one entry; it counts when this returns.

        Raises:
            LedgerError: the entry could not be written whole (a full disk); nothing of it is left.
        """
        body = _STRUCT.pack(kind, 0, slot, code, record, epoch, start, stop, time.time())
        check = functools.reduce(operator.xor, _WORDS.unpack(body), _SEED)
        entry = body + _CHECK.pack(check)
        with self._lock:
            try:
                written = os.write(self._fd, entry)
                if written != len(entry):
                    os.ftruncate(self._fd, self._size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as cause:
                raise LedgerError(f"{self._path}: {cause.strerror}") from cause
            self._size += written
            self._is_dirty = True

    def flush(self) -> None:
        """Make what was appended visible to other nodes: closing is what makes NFS write back (nfs(5)).

        Nothing happens when nothing was appended since the last time.

        Raises:
            LedgerError: the file cannot be opened again, or the file system has refused what was appended.
        """
        with self._lock:
            if not self._is_dirty:
                return
            before = self._fd
            try:
                self._open()  # first, so that this writer always has its file, and never another's
                os.close(before)
                self._is_dirty = False
            except OSError as cause:
                raise LedgerError(f"{self._path}: {cause.strerror}") from cause

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._fd)


class LedgerReader:
    """Follows all files of a ledger; each call to `poll` returns what is new.

    Attributes:
        damaged: Number of entries ignored so far because their check word does not fit.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[str, int] = {}
        self.damaged = 0

    def poll(self, but: Container[str] = ()) -> Iterator[tuple[str, Entries]]:
        """Yield (writer, new entries in the order in which they were written).

        Each file is opened each time, which is what makes NFS show what is new.

        Args:
            but: Writers to pass over this time, because they have left.
        """
        try:
            files = sorted(entry.name for entry in os.scandir(self._directory) if entry.name.endswith(SUFFIX))
        except FileNotFoundError:
            return
        for name in files:
            writer = name.removesuffix(SUFFIX)
            if writer in but:
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


def are_sound(entries: Entries) -> np.ndarray[Any, Any]:
    """Return which entries have the check word that fits, as a mask."""
    words = entries.view(np.uint32).reshape(len(entries), ENTRY.itemsize // 4)
    mask: np.ndarray[Any, Any] = np.bitwise_xor.reduce(words, axis=1) == _SEED
    return mask


def read_ledger(directory: Path) -> Entries:
    """Return all entries of a ledger, those of each writer in order."""
    parts = [entries for _, entries in LedgerReader(directory).poll()]
    return np.concatenate(parts) if parts else np.empty(0, ENTRY)
