"""The writer of one ledger file."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import numpy as np

from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger.entries import ENTRY, Kind, are_sound, packed, packed_head
from maestro_celery_plugin.ledger.store import STORE, Store

__all__ = ["LedgerWriter"]


class LedgerWriter:
    """The only writer of one ledger file; several threads may use it.

    The writer opens its file once and keeps it open, so that its entries cannot get into a file of the same name that
    a later launch has created. It writes each entry at its place, not at the end of the file: if the file system has
    lost a part of the file, or another process has appended to it, the entries stay aligned. It keeps the entries that
    the file system has not confirmed (`flush`), and writes them again after an error.

    Args:
        path: The file. If it exists (the coordinator's file after a restart), an incomplete last entry is removed.
        study: Number of the study.
        new: Whether the file must not exist.
        to_disk: Whether `flush` also waits until the entries are on the disk.
        store: The file operations.

    Raises:
        FileExistsError: the file exists, and `new` is true.
        LedgerError: the file belongs to another study.
        OSError: the file cannot be opened.
    """

    def __init__(
        self, path: Path, study: int = 0, *, new: bool = False, to_disk: bool = False, store: Store = STORE
    ) -> None:
        self._path, self._to_disk, self._store = path, to_disk, store
        # One lock for the entries, and one for the flush, so that an entry does not wait for a slow file system.
        self._lock, self._flush_lock = threading.Lock(), threading.Lock()
        self._fd = store.open(path, new=new)
        self._size = self._confirmed = store.size(self._fd) // ENTRY.itemsize * ENTRY.itemsize
        self._unconfirmed = bytearray()
        self._must_rewrite = False
        try:
            self._begin(study)
        except BaseException:
            store.close(self._fd)
            if new:  # otherwise no later attempt to create it could succeed
                with contextlib.suppress(OSError):
                    store.remove(path)
            raise

    def _begin(self, study: int) -> None:
        """Write the head of a new file, or check that an existing file belongs to the study."""
        if not self._size:
            self._append(packed_head(study))
            return
        head = np.frombuffer(self._store.head(self._fd, ENTRY.itemsize), ENTRY)
        if are_sound(head)[0] and head["kind"][0] == Kind.HEAD and study not in (0, int(head["start"][0])):
            raise LedgerError(f"The ledger '{self._path}' belongs to another study.")
        self._store.truncate(self._fd, self._size)

    def append(
        self, kind: Kind, record: int, epoch: int, start: int, stop: int = 0, *, code: int = 0, slot: int = 0
    ) -> None:
        """Append one entry; it survives the death of this process when this method returns.

        Raises:
            LedgerError: the whole entry could not be written (a full disk); no part of it remains in the file.
        """
        self._append(packed(kind, record, epoch, start, stop, code=code, slot=slot))

    def _append(self, entry: bytes) -> None:
        with self._lock:
            try:
                self._store.write(self._fd, entry, self._size)
            except OSError as cause:
                # NFS reports an error of an earlier write only once, and perhaps here.
                self._must_rewrite = True
                with contextlib.suppress(OSError):
                    self._store.truncate(self._fd, self._size)
                raise self._error(cause) from cause
            self._size += len(entry)
            self._unconfirmed += entry

    def _error(self, cause: OSError) -> LedgerError:
        return LedgerError(f"The ledger '{self._path}' cannot be written: {cause.strerror}.")

    def flush(self) -> None:
        """Make the appended entries visible to other nodes, and find out whether the file system has stored them.

        Without new entries since the last call, this method does nothing.

        Raises:
            LedgerError: the file system has rejected the entries; the next call writes them again.
        """
        with self._flush_lock:
            with self._lock:
                size = self._size
                if size == self._confirmed:
                    return
                self._rewrite()
            try:
                self._store.flush(self._fd, to_disk=self._to_disk)
            except OSError as cause:
                self._must_rewrite = True
                raise self._error(cause) from cause
            with self._lock:
                if not self._must_rewrite:  # otherwise `append` has received an error that may concern these entries
                    del self._unconfirmed[: size - self._confirmed]
                    self._confirmed = size

    def _rewrite(self) -> None:
        """Write the entries that are not confirmed again, if the file system may have lost them."""
        if not self._must_rewrite:
            return
        try:
            self._store.write(self._fd, bytes(self._unconfirmed), self._confirmed)
        except OSError as cause:
            raise self._error(cause) from cause
        self._must_rewrite = False

    def close(self) -> None:
        """Close the file; entries that `flush` has not confirmed may be lost."""
        with self._flush_lock, self._lock:
            self._store.close(self._fd)
