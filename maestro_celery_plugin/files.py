"""Files on a shared file system: atomic replacement, repeated reads, the end of a log, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin import clock

__all__ = ["TAIL_BYTES", "is_locked", "read_text", "shared_lock", "tail", "write_atomically"]

# Bytes of the end of a log that a message shows.
TAIL_BYTES = 1500
_STALE_ATTEMPTS = 5


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step, so that a reader sees either the old or the new text.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)


def read_text(path: Path) -> str:
    """Return the text of a file that another node may replace at the same time.

    NFS may then report a stale file handle, ESTALE (open(2), nfs(5)); this function repeats the read a few times.

    Raises:
        OSError: the file cannot be read.
    """
    for _ in range(_STALE_ATTEMPTS - 1):
        try:
            return path.read_text()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_text()


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """Return the last bytes of a log as text, stripped of white space; empty text when it cannot be read.

    The function reads only these bytes, even of a long log.

    Args:
        path: The log; bytes that are not UTF-8 are replaced.
        size: The largest number of bytes.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size).decode(errors="replace").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def shared_lock(path: Path, timeout_s: float = 0.0) -> Iterator[bool]:
    """Lock a file of `filelock` against writers, but not against other readers.

    A `FileLock` would create the file, need write permission, and report another reader as a writer.

    Args:
        path: The lock file; a file that does not exist is not locked.
        timeout_s: Seconds to wait for the writer.

    Yields:
        Whether no writer holds the lock.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock(descriptor, clock.monotonic() + timeout_s)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Tell whether a writer holds the lock."""
    with shared_lock(path) as is_free:
        return not is_free


def _lock(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if clock.monotonic() >= deadline:
                return False
            clock.sleep(0.01)
