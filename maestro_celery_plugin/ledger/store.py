"""The store: all file operations of the ledger and its claims, in one object that a test replaces.

On a network file system, the nodes see each other's changes late. These operations rely on four guarantees of NFS
(nfs(5), open(2), close(2)), and of every file system that is more strict:

- Creating a link or a new file is exclusive and atomic.
- Whoever opens a file sees all bytes that another node had written when it closed a descriptor of this file.
- A node that changes a directory sees the current entries of this directory.
- Whoever closes a file that is open for writing learns whether the file server has stored what this node has written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.files import refresh_directory
from maestro_celery_plugin.ledger.entries import ENTRY

__all__ = ["STORE", "PartStore", "Store"]


class Store:
    """The operations of this node. All methods raise `OSError`.

    Attributes:
        limit: The largest number of bytes that one call of `read` returns, however large a file is, or claims to be.
    """

    limit = (1 << 18) * ENTRY.itemsize

    # --- directories ---

    def names(self, directory: Path, *, fresh: bool = False) -> list[str]:
        """Return the names in a directory; empty without the directory.

        Args:
            directory: The directory.
            fresh: Whether to include files that other nodes have created a moment ago. This costs two operations on
                the file server.
        """
        if fresh:
            self.refresh(directory)
        try:
            return [entry.name for entry in os.scandir(directory)]
        except FileNotFoundError:
            return []

    def refresh(self, directory: Path) -> None:
        """Change a directory, so that this node sees its current entries; do nothing without the directory."""
        refresh_directory(directory)

    def make_directory(self, path: str) -> None:
        """Make a directory, whose parent exists; do nothing if it exists."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)  # noqa: PTH102 (a Path costs time, as in `link`)

    # --- links ---

    def link(self, target: str, path: str) -> None:
        """Create a symbolic link."""
        os.symlink(target, path)  # noqa: PTH211

    def target(self, path: str) -> str:
        """Return the target of a symbolic link."""
        return os.readlink(path)  # noqa: PTH115

    # --- files ---

    def read(self, path: Path, offset: int, least: int) -> tuple[int, np.ndarray[Any, Any]]:
        """Open a file, and return its size and its bytes from an offset; no bytes if there are fewer than `least`.

        If there are more than `limit`, the result has the first ones.

        What is not a regular file, such as a pipe, has the size 0.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return self._read(descriptor, offset, least)
        finally:
            os.close(descriptor)

    def read_stored(self, path: Path, offset: int, least: int) -> tuple[int, np.ndarray[Any, Any]]:
        """Return what `read` returns, but no bytes if the file server rejects any of them now.

        A network file system also shows a node what its other processes have written, and what the file server may
        reject later, because the disk is full. Closing a file that is open for writing sends these bytes, and reports
        their rejection since the file was opened (close(2), nfs(5)).
        """
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            size, data = self._read(descriptor, offset, least)
        except BaseException:
            os.close(descriptor)
            raise
        try:
            os.close(descriptor)
        except OSError:
            return offset, np.empty(0, np.uint8)
        return size, data

    def _read(self, descriptor: int, offset: int, least: int) -> tuple[int, np.ndarray[Any, Any]]:
        status = os.fstat(descriptor)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        data = os.pread(descriptor, min(size - offset, self.limit), offset) if size - offset >= least else b""
        return size, np.frombuffer(data, np.uint8)

    def next_data(self, path: Path, offset: int) -> int | None:
        """Return the place of the next byte, from an offset, that is not in a hole of a sparse file (lseek(2)).

        None if only a hole follows. A file system that does not tell holes has none.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno == errno.EINVAL:
                return offset
            raise
        finally:
            os.close(descriptor)

    def open(self, path: Path, *, new: bool) -> int:
        """Open a file to write, and return its descriptor; `new` is whether the file must not exist."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | (os.O_EXCL if new else 0), 0o644)

    def size(self, descriptor: int) -> int:
        """Return the size of an open file."""
        return os.fstat(descriptor).st_size

    def head(self, descriptor: int, size: int) -> bytes:
        """Return the first bytes of an open file."""
        return os.pread(descriptor, size, 0)

    def write(self, descriptor: int, data: bytes, place: int) -> None:
        """Write bytes at a place; they survive the death of this process."""
        if os.pwrite(descriptor, data, place) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def truncate(self, descriptor: int, size: int) -> None:
        """Remove the bytes of an open file from a place."""
        os.ftruncate(descriptor, size)

    def flush(self, descriptor: int, *, to_disk: bool) -> None:
        """Write back the bytes of an open file, so that other nodes can see them.

        A network file system writes back when a descriptor is closed, and only then reports a full disk or an exhausted
        quota (close(2), nfs(5)). Closing a duplicate of the descriptor does this, and keeps the file open.

        Args:
            descriptor: The file.
            to_disk: Whether to wait until the bytes are on the disk.
        """
        os.close(os.dup(descriptor))
        if to_disk:
            os.fsync(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        path.unlink(missing_ok=True)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)


class PartStore(Store):
    """A store that reads a file in parts of another size.

    Args:
        limit: The largest number of bytes that one call of `read` returns.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit


# The store of this process.
STORE = Store()
