"""Files on a shared file system: atomic replacement, reads that cannot block, the end of a log, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import DamagedFileError, StudyError

__all__ = [
    "LIMIT_BYTES",
    "TAIL_BYTES",
    "TRANSIENT_ERRORS",
    "check_writable",
    "file_system_now",
    "is_locked",
    "open_regular",
    "parsed_json",
    "read_json",
    "read_text",
    "refresh_directory",
    "replaced",
    "revoke",
    "share_clock",
    "shared_lock",
    "tail",
    "write_atomically",
]

# Bytes of the end of a log that a message shows.
TAIL_BYTES = 1500
# The largest file of a study that is read as a whole; the largest of them has a few hundred bytes per step record.
LIMIT_BYTES = 1 << 26
# Error numbers (errno(3)) that say something about the machine or its network, and nothing about the file: the same
# call may succeed later, or on another machine. A file with such an error is neither missing nor damaged.
# A full disk (ENOSPC, EDQUOT) is not among them, because it lasts until a person makes room.
TRANSIENT_ERRORS = frozenset(
    {
        errno.EAGAIN,  # no process, or no lock, is free now
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,  # what a client of a network file system reports while it has lost its server
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOLCK,
        errno.ENOMEM,
        errno.ENOTCONN,  # what FUSE reports when its server has died
        errno.ESHUTDOWN,  # what a Lustre client reports after its eviction
        errno.ESTALE,  # another node has replaced the file: open(2), nfs(5)
        errno.ETIMEDOUT,
    }
)
# Seconds before each further attempt to read a file after a transient error.
_READ_DELAYS_S = (0.01, 0.03, 0.1, 0.3)
# Clocks that differ less are equal: machines in a network differ by milliseconds; times of files may be whole seconds.
_CLOCK_TOLERANCE_S = 2.0


def write_atomically(path: Path, text: str, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace a file in one step, so that a reader sees either the old or the new text.

    Args:
        path: The file.
        text: Its new text, which is stored as UTF-8 in every locale.
        mode: Its mode, from which the umask removes bits.
        durable: Whether the text must survive a power cut. Otherwise the file may be empty after it (rename(2) does not
            wait for the data), which is no loss for a file that is written every few seconds.

    Raises:
        OSError: the file cannot be written.
    """
    data = text.encode()
    with replaced(path, mode, durable=durable) as file:
        file.write(data)


@contextlib.contextmanager
def replaced(path: Path, mode: int = 0o644, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a new file that replaces another one at the end, in one step; after an error, the other one stays.

    Args:
        path: The file that is replaced.
        mode: The mode of the new file, from which the umask removes bits.
        durable: As in `write_atomically`.

    Raises:
        OSError: the file cannot be written.
    """
    # Random, because neither a pid nor the name of a machine is unique among containers with one file system.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Store the new entry of a directory on disk, where the file system supports this."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(directory: Path) -> None:
    """Check that files can be written in a directory: a quota or a full disk shows only when data reaches the disk.

    Raises:
        StudyError: a small file cannot be written.
    """
    try:
        probe = directory / f".probe.{secrets.token_hex(6)}"
        try:
            write_atomically(probe, "x" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as cause:
        raise StudyError(
            f"'{directory}' cannot be written ({cause.strerror}); make room there, or correct its permissions, and try "
            "again."
        ) from cause


def file_system_now(directory: Path) -> float:
    """Return the time of the file system's server in Unix seconds, with which modification times can be compared.

    The clocks of other machines, which write the files, may differ from it and from the clock of this machine. If no
    file can be written, the function uses the clock of this machine.
    """
    probe = directory / f".time.{secrets.token_hex(6)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return clock.now()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def share_clock(directory: Path) -> None:
    """Let `clock.shared_now` be the time of the file system's server, if the clock of this machine differs from it.

    Args:
        directory: A directory of the file system, in which this process may write.
    """
    before = clock.now()
    time = file_system_now(directory)
    after = clock.now()
    is_equal = before - _CLOCK_TOLERANCE_S <= time <= after + _CLOCK_TOLERANCE_S
    clock.adjust(0.0 if is_equal else time - after)


def read_text(path: Path, *, limit: int = LIMIT_BYTES, errors: str = "strict") -> str:
    """Return the text of a file that another node may replace at the same time.

    After a transient error, the function tries again for half a second. It does not wait for the writer of a FIFO, and
    does not read a device.

    Args:
        path: A UTF-8 file.
        limit: The largest number of bytes.
        errors: How to decode bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        OSError: the file cannot be read.
        DamagedFileError: it is no regular file, is too large, or is not UTF-8.
    """
    for delay_s in _READ_DELAYS_S:
        try:
            return _read_once(path, limit, errors)
        except OSError as error:
            if error.errno not in TRANSIENT_ERRORS:
                raise
            clock.sleep(delay_s)
    return _read_once(path, limit, errors)


def _read_once(path: Path, limit: int, errors: str) -> str:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        is_too_large = size > limit
        # Not `limit` at once: the reader reserves memory for all bytes that it may read, which takes longer.
        data = b"" if is_too_large else file.read(size + 1)
        if len(data) > size:  # the file has grown
            data += file.read(limit - size)
    if is_too_large or len(data) > limit:
        raise DamagedFileError.at(path, f"it is larger than {limit} bytes")
    try:
        return data.decode(errors=errors)
    except UnicodeDecodeError as cause:
        raise DamagedFileError.at(path, f"it is not UTF-8 ({cause})") from cause


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: the file cannot be read.
        DamagedFileError: it is not a JSON file.
    """
    try:
        return parsed_json(read_text(path))
    except DamagedFileError:
        raise
    except ValueError as cause:
        raise DamagedFileError.at(path, f"it is not JSON ({cause})") from cause


def parsed_json(text: str) -> Any:
    """Return the value in JSON text.

    Python's parser accepts half of a surrogate pair, such as ``"\\ud800"``, which no file and no terminal takes.

    Raises:
        ValueError: it is not JSON, has too many levels, or has text that is not Unicode.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as cause:
        raise ValueError("it has too many levels") from cause
    return value


def open_regular(path: Path, buffering: int = -1) -> IO[bytes]:
    """Open a regular file for reading, as `open` does, without waiting for the writer of a FIFO.

    Raises:
        OSError: the file cannot be opened.
        DamagedFileError: it is a directory, a FIFO, a socket or a device.
    """
    try:
        # Without O_NONBLOCK, a FIFO would block this process until another process writes to it (open(2)).
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as cause:
        if cause.errno == errno.ENXIO:  # a socket, or a device without hardware
            raise DamagedFileError.at(path, "it is not a regular file") from cause
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFileError.at(path, "it is not a regular file")
    return os.fdopen(descriptor, "rb", buffering)


def refresh_directory(directory: Path) -> None:
    """Change a directory, so that this node sees its current names; do nothing without the directory.

    NFS caches the names in a directory for up to a minute (nfs(5), acdirmax), until the node changes the directory.

    Raises:
        OSError: the directory cannot be changed.
    """
    probe = directory / f".look-{secrets.token_hex(4)}"
    with contextlib.suppress(FileNotFoundError):
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()


def revoke(path: Path) -> None:
    """Remove a request, if there is one, although another node may have made it a moment ago.

    NFS also caches that a file does not exist, and removes no such file.

    Raises:
        OSError: the file cannot be removed.
    """
    with contextlib.suppress(OSError):  # a full disk: the request may be known
        refresh_directory(path.parent)
    path.unlink(missing_ok=True)


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """Return the last bytes of a log as text, without empty lines around it; empty text when it cannot be read.

    The function reads only these bytes, even of a long log.

    Args:
        path: The log; bytes that are not UTF-8 are replaced.
        size: The largest number of bytes.
    """
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size).decode(errors="replace").lstrip("\r\n").rstrip()
    except (OSError, DamagedFileError):
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
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
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
