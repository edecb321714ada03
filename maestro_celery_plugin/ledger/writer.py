"""The writer of one ledger file."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger.entries import ENTRY, Kind, packed

__all__ = ["LedgerWriter"]


class LedgerWriter:
    """The only writer of one ledger file; several threads may use it.

    Args:
        path: The file. If it exists (the coordinator's file after a restart), an incomplete last entry is removed.
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
        """Append one entry; it counts when this method returns.

        Raises:
            LedgerError: the whole entry could not be written (a full disk); no part of it remains in the file.
        """
        entry = packed(kind, record, epoch, start, stop, code=code, slot=slot)
        with self._lock:
            try:
                written = os.write(self._fd, entry)
                if written != len(entry):
                    os.ftruncate(self._fd, self._size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as cause:
                raise LedgerError(f"The ledger '{self._path}' cannot be written: {cause.strerror}.") from cause
            self._size += written
            self._is_dirty = True

    def flush(self) -> None:
        """Make the appended entries visible to other nodes: NFS writes back when a file is closed (nfs(5)).

        Without new entries since the last call, this method does nothing.

        Raises:
            LedgerError: the file cannot be opened again, or the file system has rejected the entries.
        """
        with self._lock:
            if not self._is_dirty:
                return
            previous = self._fd
            try:
                self._open()  # first, so that no other file can reuse the number of the old descriptor
                os.close(previous)
                self._is_dirty = False
            except OSError as cause:
                raise LedgerError(f"The ledger '{self._path}' cannot be written: {cause.strerror}.") from cause

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._fd)
