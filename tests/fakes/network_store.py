"""A file server and its nodes, in memory: the store of the ledger as NFS shows it (nfs(5)).

A node buffers what it writes until it flushes the file. It sees flushed bytes when it opens a file. It caches the
names in a directory for some seconds, unless it changes the directory. Links and new files are exclusive. Any operation
may stall, and all operations of a node that has died raise `NodeDiedError`.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from pathlib import Path

import numpy as np

from maestro_celery_plugin.ledger.store import Store


class NodeDiedError(BaseException):
    """The node of an operation has died."""


class FileServer:
    """The files of all nodes.

    Args:
        listing_s: Seconds for which a node caches the names in a directory.
        stall_s: The longest stall of an operation, in seconds.
        stall_rate: The share of operations that stall.
        seed: Seed of the stalls.
    """

    def __init__(self, listing_s=0.0, stall_s=0.0, stall_rate=0.0, seed=0) -> None:
        self.listing_s, self.stall_s, self.stall_rate, self.seed = listing_s, stall_s, stall_rate, seed
        self.lock = threading.RLock()
        self.files: dict[str, bytearray] = {}
        self.links: dict[str, str] = {}
        self.directories: set[str] = set()

    def node(self, name):
        return NodeStore(self, name)


class NodeStore(Store):
    """The store of one node."""

    def __init__(self, server, name) -> None:
        self._server, self._name = server, name
        self._random = random.Random(f"{server.seed} {name}")
        self._descriptors = itertools.count(3)
        self._open: dict[int, str] = {}
        self._buffers: dict[str, list[tuple[int, bytes]]] = {}
        self._listings: dict[str, tuple[float, list[str]]] = {}
        self.is_dead = False

    def _operate(self):
        """Stall for a random time, then return the lock of the server."""
        server = self._server
        if self._random.random() < server.stall_rate:
            time.sleep(self._random.random() * server.stall_s)
        if self.is_dead:
            raise NodeDiedError
        return server.lock

    def names(self, directory, *, fresh=False):
        with self._operate():
            key = str(directory)
            if fresh:
                self._listings.pop(key, None)
            at, names = self._listings.get(key, (float("-inf"), []))
            if time.monotonic() - at > self._server.listing_s:
                names = [Path(file).name for file in self._server.files if str(Path(file).parent) == key]
                self._listings[key] = time.monotonic(), names
            return names

    def make_directory(self, path):
        with self._operate():
            if str(Path(path).parent) not in self._server.directories:
                raise FileNotFoundError(path)
            self._server.directories.add(path)

    def link(self, target, path):
        with self._operate():
            if str(Path(path).parent) not in self._server.directories:
                raise FileNotFoundError(path)
            if path in self._server.links:
                raise FileExistsError(path)
            self._server.links[path] = target

    def target(self, path):
        with self._operate():
            if path not in self._server.links:
                raise FileNotFoundError(path)
            return self._server.links[path]

    def read(self, path, offset, least):
        with self._operate():
            key = str(path)
            if key not in self._server.files:
                raise FileNotFoundError(path)
            data = bytearray(self._server.files[key])
            for place, part in self._buffers.get(key, ()):
                data[place : place + len(part)] = part
            size = len(data)
            return size, np.frombuffer(bytes(data[offset:]) if size - offset >= least else b"", np.uint8)

    def read_stored(self, path, offset, least):
        self._write_back(str(path))
        return self.read(path, offset, least)

    def open(self, path, *, new):
        with self._operate():
            key = str(path)
            if new and key in self._server.files:
                raise FileExistsError(path)
            self._server.files.setdefault(key, bytearray())
            descriptor = next(self._descriptors)
            self._open[descriptor] = key
            return descriptor

    def size(self, descriptor):
        return len(self._server.files[self._open[descriptor]])

    def head(self, descriptor, size):
        return bytes(self._server.files[self._open[descriptor]][:size])

    def write(self, descriptor, data, place):
        with self._operate():
            self._buffers.setdefault(self._open[descriptor], []).append((place, bytes(data)))

    def truncate(self, descriptor, size):
        with self._operate():
            del self._server.files[self._open[descriptor]][size:]

    def flush(self, descriptor, *, to_disk):
        self._write_back(self._open[descriptor])

    def _write_back(self, key):
        with self._operate():
            file = self._server.files[key]
            for place, part in self._buffers.pop(key, ()):
                file.extend(bytes(max(0, place - len(file))))
                file[place : place + len(part)] = part

    def close(self, descriptor):
        self.flush(descriptor, to_disk=False)
