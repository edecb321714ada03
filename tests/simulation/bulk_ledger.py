"""The ledger of many workers, written by a generator in a process of its own: no sample and no worker exists.

Its slots do what those of the product do: a slot takes a message, sends the rest of its range as one message, runs one
sample, and releases the range. Each entry has its time and its checksum.
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import resource
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import ENTRY, SUFFIX, Kind, _checksums, packed_head

__all__ = ["BulkLedger", "Fleet"]

# Seconds of a sample in the mean.
_SAMPLE_S = 10.0
_KEEP_SIZE_AND_PUNCH_HOLE = 3  # fallocate(2)
_ROW = (Kind.ENDED, Kind.RELEASED, Kind.TAKEN, Kind.PASSED, Kind.STARTED)


@dataclasses.dataclass(frozen=True)
class Fleet:
    """The size of a study: samples of each of some step records, workers, and slots of a worker."""

    records: int
    samples: int
    workers: int
    slots: int

    @property
    def total(self) -> int:
        """The number of all samples."""
        return self.records * self.samples

    @property
    def per_second(self) -> int:
        """How many samples end in a second."""
        return max(1, int(self.workers * self.slots / _SAMPLE_S))

    @property
    def parts(self) -> int:
        """Into how many ranges the waiting slots have split a step record."""
        return min(self.samples, -(-self.workers * self.slots // self.records))


class BulkLedger:
    """The ledger files of the workers of a fleet; the process that writes them lives until the end of the context.

    Args:
        directory: The ledger.
        study: Number of the study.
        fleet: The fleet.
        keeps: Whether the files keep what was written before the last call of `run`.

    Attributes:
        fleet: The fleet.
        ended: How many samples have ended.
        sent: Messages for the next call of `run`.
    """

    def __init__(self, directory: Path, study: int, fleet: Fleet, *, keeps: bool) -> None:
        self.fleet, self.ended = fleet, 0
        self.sent: list[Any] = []
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_serve, args=(other, directory, study, fleet, keeps), daemon=True)
        self._process.start()

    def __enter__(self) -> BulkLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.send(("end",))
        self._process.join()

    def run(self, count: int) -> None:
        """Let slots take the messages that were sent, until so many samples have ended."""
        tasks = [(task.record, task.start, task.stop, task.epoch) for task in self.sent]
        self.sent.clear()
        self._pipe.send(("run", count, tasks))
        self.ended += self._pipe.recv()

    def lose_worker(self) -> str:
        """Let a worker die; return its name."""
        self._pipe.send(("lose",))
        name: str = self._pipe.recv()
        return name


def _serve(pipe: Any, directory: Path, study: int, fleet: Fleet, keeps: bool) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    writer = _Writer(directory, study, fleet, keeps=keeps)
    while (command := pipe.recv())[0] != "end":
        pipe.send(writer.run(*command[1:]) if command[0] == "run" else writer.lose())


class _Writer:
    """What the slots of a fleet do, and the files of its workers."""

    def __init__(self, directory: Path, study: int, fleet: Fleet, *, keeps: bool) -> None:
        self._fleet, self._keeps = fleet, keeps
        self._random = np.random.default_rng(1)
        self._time = 1.8e9
        head = packed_head(study)
        paths = [directory / f"w-{number}{SUFFIX}" for number in range(1, fleet.workers + 1)]
        self._files = [os.open(path, os.O_WRONLY | os.O_CREAT, 0o644) for path in paths]
        for file in self._files:
            os.write(file, head)
        self._sizes = np.full(fleet.workers, len(head))
        count = fleet.workers * fleet.slots
        self._is_lost = np.zeros(count, bool)
        # The message of each slot: record, start, stop, epoch; `stop` is 0 in a free slot.
        self._slots = np.zeros((count, 4), np.int64)
        # The messages that wait, in their order.
        self._waiting = np.zeros((0, 4), np.int64)

    def run(self, count: int, tasks: list[tuple[int, int, int, int]]) -> int:
        """Take messages, and end `count` samples; return how many have ended."""
        if not self._keeps:
            self._forget()
        if tasks:
            self._receive(np.array(tasks, np.int64))
        self._turn(np.zeros(0, np.intp))
        ended = 0
        while ended < count:
            busy = np.flatnonzero(self._slots[:, 2])
            if not len(busy):
                break
            ending = np.sort(self._random.permutation(busy)[: count - ended])
            self._turn(ending)
            ended += len(ending)
        return ended

    def lose(self) -> str:
        """Let the last worker die with its samples."""
        self._is_lost[-self._fleet.slots :] = True
        self._slots[-self._fleet.slots :] = 0
        return f"w-{self._fleet.workers}"

    def _receive(self, tasks: np.ndarray[Any, Any]) -> None:
        """Let one slot split the range of each message, as all slots together do in a few rounds."""
        parts = []
        for record, start, stop, epoch in tasks.tolist():
            count = min(self._fleet.parts, stop - start)
            edges = np.linspace(start, stop, count + 1).astype(np.int64)
            part = np.column_stack([np.full(count, record), edges[:-1], edges[1:], np.full(count, epoch)])
            entries = np.zeros(count + 2, ENTRY)
            entries["kind"] = Kind.PASSED
            entries["kind"][[0, -1]] = Kind.TAKEN, Kind.RELEASED
            entries["record"], entries["epoch"] = record, epoch
            entries["start"], entries["stop"] = [start, *part[:, 1], start], [stop, *part[:, 2], stop]
            self._append(entries, np.array([0, len(entries)]), np.array([0]))
            parts.append(part)
        new = np.concatenate(parts)
        # Messages of many step records wait together.
        self._waiting = np.concatenate([self._waiting, new[self._random.permutation(len(new))]])

    def _turn(self, ending: np.ndarray[Any, Any]) -> None:
        """Let the samples of some slots end; let free slots take messages."""
        ended = self._slots[ending]
        self._slots[ending] = 0
        free = np.flatnonzero((self._slots[:, 2] == 0) & ~self._is_lost)[: len(self._waiting)]
        taken, self._waiting = self._waiting[: len(free)], self._waiting[len(free) :]
        self._slots[free] = taken
        rest = taken[taken[:, 1] + 1 < taken[:, 2]] + np.array([0, 1, 0, 0])
        self._waiting = np.concatenate([self._waiting, rest])
        self._write(ending, ended, free, taken)
        self._time += len(ending) / self._fleet.per_second

    def _write(
        self,
        ending: np.ndarray[Any, Any],
        ended: np.ndarray[Any, Any],
        free: np.ndarray[Any, Any],
        taken: np.ndarray[Any, Any],
    ) -> None:
        slots = np.union1d(ending, free)
        rows = np.zeros((len(slots), len(_ROW)), ENTRY)
        rows["kind"], rows["time"] = _ROW, self._time
        rows["slot"] = (slots % self._fleet.slots)[:, None]
        used = np.zeros(rows.shape, bool)
        at = np.searchsorted(slots, ending)
        used[at, :2] = True
        for place, message, columns in ((at, ended, (0, 1)), (np.searchsorted(slots, free), taken, (2, 3, 4))):
            for column in columns:
                for index, name in enumerate(("record", "start", "stop", "epoch")):
                    rows[name][place, column] = message[:, index]
        at_taken = np.searchsorted(slots, free)
        used[at_taken[:, None], [2, 4]] = True
        used[at_taken, 3] = taken[:, 1] + 1 < taken[:, 2]
        rows["start"][:, 3] += 1
        rows["stop"][:, 4] = 0
        rows["stop"][:, 0] = self._random.exponential(_SAMPLE_S * 1e6, len(slots))
        workers = slots // self._fleet.slots
        numbers, firsts = np.unique(workers, return_index=True)
        counts = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
        self._append(rows[used], counts[[*firsts, len(slots)]], numbers)

    def _append(self, entries: np.ndarray[Any, Any], edges: np.ndarray[Any, Any], workers: np.ndarray[Any, Any]) -> None:
        """Append entries to the files of workers: those of the first one until `edges[1]`, and so on."""
        entries["time"] = np.where(entries["time"], entries["time"], self._time)
        entries["check"] = _checksums(entries)
        data = memoryview(entries.tobytes())
        for number, begin, end in zip(workers.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = data[begin * ENTRY.itemsize : end * ENTRY.itemsize]
            os.pwrite(self._files[number], part, self._sizes[number])
            self._sizes[number] += len(part)

    def _forget(self) -> None:
        """Free the blocks of what was written before; the sizes of the files stay."""
        libc = ctypes.CDLL(None, use_errno=True)
        for file, size in zip(self._files, self._sizes.tolist(), strict=True):
            place, length = ctypes.c_long(0), ctypes.c_long(size // 4096 * 4096)
            if length.value:
                libc.fallocate(file, _KEEP_SIZE_AND_PUNCH_HOLE, place, length)
