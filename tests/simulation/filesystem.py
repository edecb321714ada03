"""A file server and its clients, as nfs(5) and close(2) describe them.

A client (one per node) buffers what it writes until a descriptor of the file is closed; only then it learns of a full
disk. It sees flushed bytes when it opens a file. It caches attributes of files and names of directories for seconds, and
forgets the names of a directory that it changes itself. Exclusive creation and renaming are atomic on the server.

Without `Caching`, the file system is that of one machine: all changes are visible at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import random
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Caching", "Client", "Descriptor", "FileServer", "Inode"]

_FILE, _DIRECTORY, _LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
# When the kernel has written to the disk what nobody has synced (vm.dirty_expire_centisecs).
_ON_DISK_AFTER_NS = 30 * 10**9


class Inode:
    """A file, a directory or a symbolic link on the server."""

    __slots__ = ("change", "data", "entries", "kind", "locks", "mode", "mtime_ns", "number", "sizes", "synced", "target")

    def __init__(self, number: int, kind: int, mtime_ns: int, target: str = "") -> None:
        self.number, self.kind, self.mtime_ns, self.target = number, kind, mtime_ns, target
        self.data = bytearray()
        self.synced = 0
        # The size after each write of the last half minute, and after the last one before, with its time in ns.
        self.sizes: deque[tuple[int, int]] = deque()
        self.entries: dict[str, Inode] = {}
        self.change = 0
        self.mode = 0o755
        self.locks: set[Descriptor] = set()

    @property
    def is_removed(self) -> bool:
        return self.change < 0


@dataclasses.dataclass(frozen=True)
class Caching:
    """How long a client may show old values, in seconds (nfs(5): acregmin, acregmax, acdirmin, acdirmax)."""

    file_s: tuple[float, float] = (3.0, 60.0)
    directory_s: tuple[float, float] = (30.0, 60.0)


class FileServer:
    """The files of all nodes.

    Args:
        now: Returns the time of the server in Unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._numbers = itertools.count(2)
        self.root = Inode(1, _DIRECTORY, 0)
        self.is_full = False
        self.operations = 0
        # Operations for samples and the ledger, by kind.
        self.kinds: Counter[str] = Counter()

    def _mtime(self) -> int:
        return int(self._now() * 1e9)

    def new(self, kind: int, target: str = "") -> Inode:
        return Inode(next(self._numbers), kind, self._mtime(), target)

    def touch(self, inode: Inode) -> None:
        inode.mtime_ns = self._mtime()

    def enter(self, directory: Inode, name: str, inode: Inode) -> None:
        replaced = directory.entries.get(name)
        if replaced is not None and replaced is not inode:
            replaced.change = -1
        directory.entries[name] = inode
        directory.change += 1
        self.touch(directory)

    def remove(self, directory: Inode, name: str) -> None:
        directory.entries.pop(name).change = -1
        directory.change += 1
        self.touch(directory)

    def note_size(self, inode: Inode) -> None:
        """Note the size of a file that was written: half a minute later, the kernel has written it to the disk."""
        now, sizes = self._mtime(), inode.sizes
        sizes.append((now, len(inode.data)))
        while len(sizes) > 1 and sizes[1][0] <= now - _ON_DISK_AFTER_NS:
            sizes.popleft()

    def on_disk(self, inode: Inode) -> int:
        """Return how many bytes of a file are on the disk."""
        latest = self._mtime() - _ON_DISK_AFTER_NS
        return max([inode.synced, *(size for time, size in inode.sizes if time <= latest)])

    def lose_power(self, rng: random.Random) -> int:
        """Lose ends of files that are not on the disk; return the number of lost bytes. What is left is on the disk."""
        lost = 0
        for inode in (inode for _, inode in self.walk() if inode.kind == _FILE):
            on_disk = self.on_disk(inode)
            if len(inode.data) > on_disk and rng.random() < 0.5:
                size = rng.randint(on_disk, len(inode.data))
                lost += len(inode.data) - size
                del inode.data[size:]
            inode.synced = len(inode.data)
            inode.sizes.clear()
        return lost

    def walk(self, directory: Inode | None = None, prefix: str = "") -> Iterator[tuple[str, Inode]]:
        """Yield all files with their paths."""
        for name, inode in (directory or self.root).entries.items():
            yield f"{prefix}/{name}", inode
            if inode.kind == _DIRECTORY:
                yield from self.walk(inode, f"{prefix}/{name}")


class Descriptor:
    """An open file of a process."""

    __slots__ = ("append", "client", "inode", "is_locked", "offset", "path", "told", "writes")

    def __init__(self, client: Client, inode: Inode, path: str, flags: int, told: list[int]) -> None:
        self.client, self.inode, self.path, self.told = client, inode, path, told
        self.offset, self.is_locked = 0, False
        self.writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
        self.append = bool(flags & os.O_APPEND)


class _Names:
    """What a client has cached of a directory."""

    __slots__ = ("change", "expires", "found", "listing")

    def __init__(self, change: int, expires: float) -> None:
        self.change, self.expires = change, expires
        self.found: dict[str, Inode | None] = {}
        self.listing: dict[str, Inode] | None = None


@functools.lru_cache(maxsize=20_000)
def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in os.path.normpath(path).split("/") if part)


class Client:
    """The file system as a node shows it.

    Args:
        server: The server.
        caching: How long old values are shown; None for a local file system.
        monotonic: Returns the seconds of the node.
        rng: Decides how long each value is cached.
        fault: Called with the kind of each operation and its path; may raise an error or let the thread wait.
    """

    def __init__(
        self,
        server: FileServer,
        caching: Caching | None,
        monotonic: Callable[[], float],
        rng: random.Random,
        fault: Callable[[str, str], None],
    ) -> None:
        self.server, self._caching, self._monotonic, self._random = server, caching, monotonic, rng
        self._fault = fault
        self._names: dict[Inode, _Names] = {}
        self._attributes: dict[Inode, tuple[float, int, int]] = {}
        self._dirty: dict[Inode, list[tuple[int, bytes]]] = {}
        # Errors of bytes that the kernel has sent by itself; the next flush of the file reports them, once.
        # As the Linux kernel does (errseq_t): each open file learns of each error once, whoever else has learned of it; a
        # file that is opened later learns of those that nobody has learned of so far.
        self._errors: dict[Inode, list[OSError]] = {}
        self._told: dict[Inode, int] = {}

    # --- names ---

    def _operate(self, kind: str, path: str) -> None:
        self.server.operations += 1
        if "/session" not in path:
            self.server.kinds[kind] += 1
        self._fault(kind, path)

    def _cached_names(self, directory: Inode) -> _Names:
        now = self._monotonic()
        names = self._names.get(directory)
        assert self._caching is not None
        if names is None or now >= names.expires:
            expires = now + self._random.uniform(*self._caching.directory_s)
            if names is None or names.change != directory.change:
                names = self._names[directory] = _Names(directory.change, expires)
            names.expires = expires
        return names

    def _look_up(self, directory: Inode, name: str) -> Inode | None:
        child = directory.entries.get(name)
        if self._caching is None or (child is not None and child.kind == _DIRECTORY):
            return child
        names = self._cached_names(directory)
        if name not in names.found:
            names.found[name] = names.listing.get(name, child) if names.listing is not None else child
        return names.found[name]

    def _changed(self, directory: Inode) -> None:
        """Forget the names of a directory that this node has changed."""
        self._names.pop(directory, None)

    def _parent(self, path: str) -> tuple[Inode, str]:
        *directories, name = _parts(path)
        inode = self.server.root
        for part in directories:
            found = inode.entries.get(part)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if found.kind != _DIRECTORY:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            inode = found
        return inode, name

    def _find(self, path: str, *, opens: bool = False) -> Inode:
        if not _parts(path):
            return self.server.root
        directory, name = self._parent(path)
        inode = self._look_up(directory, name)
        if inode is not None and inode.is_removed and (opens or not self._has_attributes(inode)):
            self._names.pop(directory, None)  # ESTALE: the kernel looks again
            inode = self._look_up(directory, name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    def _has_attributes(self, inode: Inode) -> bool:
        return inode in self._attributes and self._monotonic() < self._attributes[inode][0]

    def _read_attributes(self, inode: Inode) -> None:
        if self._caching is not None:
            expires = self._monotonic() + self._random.uniform(*self._caching.file_s)
            self._attributes[inode] = expires, len(inode.data), inode.mtime_ns

    def list(self, path: str) -> dict[str, Inode]:
        self._operate("list", path)
        directory = self._find(path)
        if directory.kind != _DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if self._caching is None:
            return dict(directory.entries)
        names = self._cached_names(directory)
        if names.listing is None:
            names.listing = dict(directory.entries)
        return dict(names.listing)

    def make_directory(self, path: str) -> None:
        self._operate("mkdir", path)
        directory, name = self._parent(path)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.server.enter(directory, name, self.server.new(_DIRECTORY))
        self._changed(directory)

    def link(self, target: str, path: str) -> None:
        self._operate("link", path)
        directory, name = self._parent(path)
        self._changed(directory)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.server.enter(directory, name, self.server.new(_LINK, target))
        self._fault("linked", path)

    def target(self, path: str) -> str:
        self._operate("readlink", path)
        inode = self._find(path)
        if inode.kind != _LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return inode.target

    def unlink(self, path: str) -> None:
        self._operate("unlink", path)
        directory, name = self._parent(path)
        if self._look_up(directory, name) is None or name not in directory.entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self.server.remove(directory, name)
        self._changed(directory)

    def rename(self, source: str, path: str) -> None:
        self._operate("rename", path)
        (old, old_name), (new, new_name) = self._parent(source), self._parent(path)
        inode = old.entries.get(old_name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        del old.entries[old_name]
        old.change += 1
        self.server.enter(new, new_name, inode)
        self._changed(old)
        self._changed(new)

    # --- files ---

    def open(self, path: str, flags: int) -> Descriptor:
        self._operate("open" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "read", path)
        if flags & os.O_CREAT:
            directory, name = self._parent(path)
            inode = directory.entries.get(name)
            if inode is not None and flags & os.O_EXCL:
                self._changed(directory)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            if inode is None:
                inode = self.server.new(_FILE)
                self.server.enter(directory, name, inode)
            self._changed(directory)
        else:
            inode = self._find(path, opens=True)
        if flags & os.O_DIRECTORY and inode.kind != _DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self._read_attributes(inode)
        descriptor = Descriptor(self, inode, path, flags, [self._told.get(inode, 0)])
        if flags & os.O_TRUNC:
            self.truncate(descriptor, 0)
        return descriptor

    def size(self, inode: Inode) -> int:
        """Return the size that this node sees."""
        size = len(inode.data)
        if self._caching is not None:
            if not self._has_attributes(inode):
                self._read_attributes(inode)
            size = self._attributes[inode][1]
        return max([size, *(place + len(part) for place, part in self._dirty.get(inode, ()))])

    def status(self, inode: Inode) -> os.stat_result:
        mtime_ns = inode.mtime_ns
        size = self.size(inode)
        if self._caching is not None:
            mtime_ns = self._attributes[inode][2]
        mode = inode.kind | (0o777 if inode.kind == _LINK else inode.mode)
        links = 0 if inode.is_removed else 1
        seconds = mtime_ns / 1e9
        return os.stat_result(
            (mode, inode.number, 7, links, 0, 0, size, int(seconds), int(seconds), int(seconds)),
            {"st_mtime": seconds, "st_mtime_ns": mtime_ns},
        )

    def status_of(self, path: str) -> os.stat_result:
        self._operate("stat", path)
        return self.status(self._find(path))

    def read(self, descriptor: Descriptor, size: int, place: int) -> bytes:
        inode = descriptor.inode
        end = min(self.size(inode), place + size)
        if inode not in self._dirty:
            return bytes(inode.data[place:end])
        data = bytearray(inode.data)
        for at, part in self._dirty[inode]:
            data.extend(bytes(max(0, at - len(data))))
            data[at : at + len(part)] = part
        return bytes(data[place:end])

    def write(self, descriptor: Descriptor, data: bytes, place: int) -> int:
        self._operate("write", descriptor.path)
        inode = descriptor.inode
        if self._caching is None:
            if self.server.is_full and place + len(data) > len(inode.data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), descriptor.path)
            self._store(inode, place, data)
        else:
            self._dirty.setdefault(inode, []).append((place, bytes(data)))
        return len(data)

    def _store(self, inode: Inode, place: int, data: bytes) -> None:
        inode.data.extend(bytes(max(0, place - len(inode.data))))
        inode.data[place : place + len(data)] = data
        self.server.touch(inode)
        self.server.note_size(inode)

    def write_back(self, inode: Inode, count: int | None = None) -> None:
        """Send buffered bytes to the server, the oldest first; after an error, they are lost.

        Raises:
            OSError: the server has no room; each open file learns of this at its next flush.
        """
        parts = self._dirty.get(inode, [])
        sent = parts if count is None else parts[:count]
        rest = [] if count is None else parts[count:]
        if rest:
            self._dirty[inode] = rest
        else:
            self._dirty.pop(inode, None)
        for at, (place, part) in enumerate(sent):
            if self.server.is_full and place + len(part) > len(inode.data):
                self._dirty.pop(inode, None)
                self._read_attributes(inode)
                del sent[at:]
                error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._errors.setdefault(inode, []).append(error)
                raise error
            self._store(inode, place, part)
        if sent:
            self._read_attributes(inode)

    def flush(self, descriptor: Descriptor) -> None:
        """Write back, as the end of a descriptor does."""
        inode = descriptor.inode
        if descriptor.writes and (inode in self._dirty or self._has_error(descriptor)):
            self._operate("flush", descriptor.path)
            self._write_back_of(descriptor)

    def sync(self, descriptor: Descriptor) -> None:
        self._operate("sync", descriptor.path)
        self._write_back_of(descriptor)
        descriptor.inode.synced = len(descriptor.inode.data)

    def _has_error(self, descriptor: Descriptor) -> bool:
        return descriptor.told[0] < len(self._errors.get(descriptor.inode, ()))

    def _write_back_of(self, descriptor: Descriptor) -> None:
        """Write back; report an error that this open file has not learned of."""
        inode = descriptor.inode
        with contextlib.suppress(OSError):
            self.write_back(inode)
        if self._has_error(descriptor):
            errors = self._errors[inode]
            descriptor.told[0] = self._told[inode] = len(errors)
            raise errors[-1]

    def truncate(self, descriptor: Descriptor, size: int) -> None:
        self._operate("truncate", descriptor.path)
        self._write_back_of(descriptor)
        inode = descriptor.inode
        inode.synced = min(self.server.on_disk(inode), size)
        inode.sizes.clear()
        if size < len(inode.data):
            del inode.data[size:]
        else:
            inode.data.extend(bytes(size - len(inode.data)))
        self.server.touch(inode)
        self.server.note_size(inode)
        self._read_attributes(inode)

    # --- faults of the node ---

    def dirty_files(self) -> list[Inode]:
        """Return the files with bytes that the server does not have."""
        return list(self._dirty)

    def crash(self) -> int:
        """Lose what the node has not written back; return the number of lost writes."""
        lost = sum(map(len, self._dirty.values()))
        self._dirty.clear()
        self._errors.clear()
        self._told.clear()
        self._names.clear()
        self._attributes.clear()
        return lost


def entry_kinds(inode: Inode) -> Any:
    """Return the type bits of an inode."""
    return inode.kind
