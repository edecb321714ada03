"""The operating system that the code under test sees: the functions of `os`, `io` and `fcntl` for paths below /sim.

Everything else goes to the real functions. The product is unchanged: its file operations, from `Path.touch` to
`os.pwrite`, end here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from simulation import kernel as sim
from simulation.filesystem import Client, Descriptor, FileServer

__all__ = ["FCNTL", "ROOT", "Files", "interpose"]

ROOT = "/sim"
# Descriptors of simulated files begin here.
_FIRST = 1 << 24
_PREFIX = ROOT + "/"


class Files:
    """The open files of a simulation.

    Args:
        server: The file server.
        outside: The client of the harness, which sees the server as it is.
    """

    def __init__(self, server: FileServer, outside: Client) -> None:
        self.server, self.outside = server, outside
        self._numbers = itertools.count(_FIRST)
        self.open: dict[int, Descriptor] = {}

    @property
    def client(self) -> Client:
        """The client of the node on which the present thread runs."""
        process = sim.current()
        if process is None:
            return self.outside
        sim.kernel.operate()
        client: Client = process.node.client
        return client

    def add(self, descriptor: Descriptor) -> int:
        number = next(self._numbers)
        self.open[number] = descriptor
        process = sim.current()
        if process is not None:
            process.descriptors.add(number)
        return number

    def close(self, number: int) -> None:
        descriptor = self._remove(number)
        if descriptor is not None:
            descriptor.client.flush(descriptor)

    def _remove(self, number: int) -> Descriptor | None:
        descriptor = self.open.pop(number, None)
        if descriptor is not None:
            descriptor.inode.locks.discard(descriptor)
        process = sim.current()
        if process is not None:
            process.descriptors.discard(number)
        return descriptor

    def close_all(self, process: sim.Process, *, writes_back: bool = True) -> None:
        """Close the files of a process that has died; its node writes back what it has written."""
        for number in sorted(process.descriptors):
            descriptor = self.open.pop(number, None)
            if descriptor is None:
                continue
            descriptor.inode.locks.discard(descriptor)
            if writes_back:
                with contextlib.suppress(OSError):
                    descriptor.client.write_back(descriptor.inode)
        process.descriptors.clear()


files: Files | None = None


def use(new: Files | None) -> None:
    """Let the functions of `os` serve the files of a simulation."""
    global files
    files = new


def _is_simulated(path: Any) -> bool:
    if files is None or isinstance(path, int):
        return False
    text = path if isinstance(path, str) else os.fspath(path)
    return isinstance(text, str) and (text.startswith(_PREFIX) or text == ROOT)


def _of_paths(real: Callable[..., Any], simulated: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that dispatches on its first argument."""

    def call(path: Any, *args: Any, **options: Any) -> Any:
        if _is_simulated(path):
            return simulated(os.fspath(path), *args, **options)
        return real(path, *args, **options)

    return call


def _of_descriptors(real: Callable[..., Any], simulated: Callable[..., Any]) -> Callable[..., Any]:
    def call(descriptor: Any, *args: Any) -> Any:
        if isinstance(descriptor, int) and descriptor >= _FIRST and files is not None:
            if sim.current() is not None:
                sim.kernel.operate()
            found = files.open.get(descriptor)
            if found is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return simulated(found, *args)
        return real(descriptor, *args)

    return call


# --- paths ---


def _open(path: str, flags: int, mode: int = 0o777, **_: Any) -> int:
    assert files is not None
    return files.add(files.client.open(path, flags))


def _stat(path: str, **_: Any) -> os.stat_result:
    assert files is not None
    return files.client.status_of(path)


def _mkdir(path: str, mode: int = 0o777, **_: Any) -> None:
    assert files is not None
    files.client.make_directory(path)


def _unlink(path: str, **_: Any) -> None:
    assert files is not None
    files.client.unlink(path)


def _rename(path: str, new: Any, **_: Any) -> None:
    assert files is not None
    files.client.rename(path, os.fspath(new))


def _listdir(path: str) -> list[str]:
    assert files is not None
    return sorted(files.client.list(path))


class _Entry:
    def __init__(self, directory: str, name: str, kind: int) -> None:
        self.name, self.path, self._kind = name, f"{directory}/{name}", kind

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind == stat.S_IFDIR

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind == stat.S_IFREG

    def is_symlink(self) -> bool:
        return self._kind == stat.S_IFLNK


class _Scan:
    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[_Entry]:
        return self._entries

    def __next__(self) -> _Entry:
        return next(self._entries)

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


def _scandir(path: str) -> _Scan:
    assert files is not None
    return _Scan([_Entry(path, name, inode.kind) for name, inode in sorted(files.client.list(path).items())])


def _utime(path: str, *_: Any, **__: Any) -> None:
    assert files is not None
    files.client.status_of(path)


def _access(path: str, *_: Any, **__: Any) -> bool:
    try:
        _stat(path)
    except OSError:
        return False
    return True


def _readlink(path: str, **_: Any) -> str:
    assert files is not None
    return files.client.target(path)


# --- descriptors ---


def _write_at_offset(descriptor: Descriptor, data: Any) -> int:
    data = bytes(data)
    place = descriptor.client.size(descriptor.inode) if descriptor.append else descriptor.offset
    count = descriptor.client.write(descriptor, data, place)
    descriptor.offset = place + count
    return count


def _read_at_offset(descriptor: Descriptor, size: int) -> bytes:
    data = descriptor.client.read(descriptor, size, descriptor.offset)
    descriptor.offset += len(data)
    return data


def _dup(descriptor: Descriptor) -> int:
    assert files is not None
    flags = os.O_RDWR if descriptor.writes else 0
    twin = Descriptor(descriptor.client, descriptor.inode, descriptor.path, flags, descriptor.told)
    return files.add(twin)


_PATHS: dict[str, Callable[..., Any]] = {
    "open": _open,
    "stat": _stat,
    "lstat": _stat,
    "mkdir": _mkdir,
    "unlink": _unlink,
    "remove": _unlink,
    "rename": _rename,
    "replace": _rename,
    "listdir": _listdir,
    "scandir": _scandir,
    "utime": _utime,
    "chmod": lambda path, mode, **_: None,
    "access": _access,
    "readlink": _readlink,
}
_DESCRIPTORS: dict[str, Callable[..., Any]] = {
    "fstat": lambda d: d.client.status(d.inode),
    "pread": lambda d, size, place: d.client.read(d, size, place),
    "pwrite": lambda d, data, place: d.client.write(d, bytes(data), place),
    "read": _read_at_offset,
    "write": _write_at_offset,
    "ftruncate": lambda d, size: d.client.truncate(d, size),
    "fsync": lambda d: d.client.sync(d),
    "dup": _dup,
}


class _Raw(io.RawIOBase):
    """The file object of a simulated descriptor."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @property
    def _descriptor(self) -> Descriptor:
        assert files is not None
        descriptor = files.open.get(self._number)
        if descriptor is None:  # Python flushes the file of a process that has just died
            raise sim.Died
        return descriptor

    def readinto(self, buffer: Any) -> int:
        data = _read_at_offset(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        return _write_at_offset(self._descriptor, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        descriptor = self._descriptor
        base = (0, descriptor.offset, descriptor.client.size(descriptor.inode))[whence]
        descriptor.offset = base + offset
        return descriptor.offset

    def truncate(self, size: int | None = None) -> int:
        descriptor = self._descriptor
        size = descriptor.offset if size is None else size
        descriptor.client.truncate(descriptor, size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            if files is not None and self._number in files.open:
                process = sim.current()
                if process is None or process.is_alive:
                    files.close(self._number)


class _Reader(io.BufferedReader):
    """A reader that does not reserve memory for the limit of a read."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(-1 if size is None or size > 1 << 16 else size)


def _file_object(
    number: int, mode: str, buffering: int = -1, encoding: str | None = None, errors: str | None = None
) -> Any:
    raw = _Raw(number)
    if buffering == 0:
        return raw
    if "+" in mode:
        binary: Any = io.BufferedRandom(raw)
    elif "r" in mode:
        binary = _Reader(raw)
    else:
        binary = io.BufferedWriter(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding=encoding or "utf-8", errors=errors)


_FLAGS = {"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND}


def _io_open(
    path: str,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    *_: Any,
    **__: Any,
) -> Any:
    flags = _FLAGS[mode[0]]
    if "+" in mode:
        flags = flags & ~os.O_WRONLY | os.O_RDWR
    return _file_object(_open(path, flags), mode, buffering, encoding, errors)


def _flock(descriptor: Any, operation: int) -> None:
    """Lock a file on the server, without waiting."""
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if number < _FIRST or files is None:
        fcntl.flock(descriptor, operation)
        return
    found = files.open[number]
    found.client._operate("lock", found.path)
    if operation & fcntl.LOCK_UN:
        found.inode.locks.discard(found)
        return
    is_exclusive = bool(operation & fcntl.LOCK_EX)
    for other in found.inode.locks:
        if other is not found and (is_exclusive or other.is_locked):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    found.is_locked = is_exclusive
    found.inode.locks.add(found)


FCNTL = SimpleNamespace(
    flock=_flock, LOCK_SH=fcntl.LOCK_SH, LOCK_NB=fcntl.LOCK_NB, LOCK_EX=fcntl.LOCK_EX, LOCK_UN=fcntl.LOCK_UN
)

# The real functions.
_close, _fdopen, _io, _getpid = os.close, os.fdopen, io.open, os.getpid
_symlink, _dup2, _exit = os.symlink, os.dup2, os._exit
_interposed: list[bool] = []


def _close_any(number: int) -> None:
    if number < _FIRST:
        _close(number)
    elif files is not None:
        if sim.current() is not None:
            sim.kernel.operate()
        files.close(number)


def _fdopen_any(number: int, mode: str = "r", *args: Any, **options: Any) -> Any:
    if number < _FIRST:
        return _fdopen(number, mode, *args, **options)
    return _file_object(number, mode, *args, **options)


def _getpid_any() -> int:
    process = sim.current()
    return _getpid() if process is None else process.pid


def _symlink_any(target: Any, path: Any, *args: Any, **options: Any) -> None:
    if _is_simulated(path):
        assert files is not None
        files.client.link(os.fspath(target), os.fspath(path))
    else:
        _symlink(target, path, *args, **options)


def _dup2_any(number: int, other: int, *args: Any) -> int:
    return other if number >= _FIRST else _dup2(number, other, *args)


def _exit_any(code: int) -> None:
    process = sim.current()
    if process is None:
        _exit(code)
    else:
        sim.kernel.leave(process, code)


def interpose() -> None:
    """Let the functions of `os` and `io` serve simulated files; they call the real functions for all others."""
    if _interposed:
        return
    _interposed.append(True)
    for name, simulated in _PATHS.items():
        setattr(os, name, _of_paths(getattr(os, name), simulated))
    for name, simulated in _DESCRIPTORS.items():
        setattr(os, name, _of_descriptors(getattr(os, name), simulated))
    os.close, os.fdopen, os.getpid = _close_any, _fdopen_any, _getpid_any  # type: ignore[assignment]
    os.symlink, os.dup2, os._exit = _symlink_any, _dup2_any, _exit_any  # type: ignore[assignment]
    io.open = _of_paths(_io, _io_open)  # type: ignore[assignment]
