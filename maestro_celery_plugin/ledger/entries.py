"""The entries of the ledger: what they record, and their layout in a file.

Each writer (a worker process, or the coordinator) has one file of entries of fixed size. The first entry, the head,
names the study. A reader ignores entries with a wrong checksum, and an incomplete last entry, which remains when a
writer dies.
"""

from __future__ import annotations

import enum
import functools
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin import clock

__all__ = [
    "COORDINATOR",
    "ENTRY",
    "SUFFIX",
    "Entries",
    "Kind",
    "are_sound",
    "are_sound_in_old_format",
    "by_record",
    "is_sound",
    "joined",
    "kind_mask",
    "packed",
    "packed_head",
    "selected",
]

Entries = np.ndarray[Any, np.dtype[np.void]]


class Kind(enum.IntEnum):
    """What an entry records. `start` and `stop` are a range of samples [start, stop), unless stated otherwise."""

    HEAD = 0
    """The first entry of a file: it belongs to the study with the number `start`, in the format `epoch`."""
    SENT = 1
    """Coordinator: the range was sent to the task queue under this epoch; earlier epochs are invalid for it."""
    CANCELLED = 2
    """Coordinator: no sample of the range may run under this or an earlier epoch."""
    LOST = 3
    """Coordinator: the worker of the attempt at sample `start` under this epoch was lost; `code` is 1 when the
    sample cannot be the cause, for example because the conductor had ended as well."""
    RERUN = 4
    """Coordinator: outcomes of the range under this or an earlier epoch are invalid, also of finished samples; its
    samples run again. `stop` is 0 for a range of one sample. `code` is 1 when they run `cmd`, because their inputs have
    changed."""
    TAKEN = 5
    """Worker: a slot has taken the range; `code` is the series of the message (`claims.py`)."""
    PASSED = 6
    """Worker: the slot sends this last part of its range to the task queue; `code` is the series of the message."""
    RELEASED = 7
    """Worker: the slot has released the whole range."""
    STARTED = 8
    """Worker: an attempt at sample `start` begins; `code` is 1 when the attempt runs `restart`."""
    ENDED = 9
    """Worker: the attempt at sample `start` has ended with `code`; `stop` is its duration in microseconds."""
    STOPPED = 10
    """Worker: the worker has ended the attempt at sample `start` after `stop` microseconds; it counts as lost."""
    KEPT = 11
    """Worker: the part that the slot has passed was not sent; the slot keeps it. `code` is the series of the part."""
    NOT_RUN = 12
    """Worker: sample `start` could not run because of a fault of the worker or its machine: `code` is that of
    `states.py`, `stop` the number of the machine. The sample has no outcome."""
    GAVE_UP = 13
    """Coordinator: sample `start` fails with `code`, because no worker could run it."""
    INVALID = 14
    """Coordinator: outcomes of the range under this or an earlier epoch are invalid, because their worker counts as
    dead; it may have run samples of the range whose entries were not visible then."""


# Little-endian, packed: kind, reserved, slot, code, record, epoch, start, stop, time (Unix seconds, of the
# clock of the file system if that of the writer differs), check (CRC-32 of the other bytes).
_STRUCT = struct.Struct("<BBHiIIQQd")
_CHECK = struct.Struct("<I")
_FORMAT = 2

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
# The name of the coordinator as a writer; all other writers are workers.
COORDINATOR = "coordinator"


def kind_mask(*kinds: Kind) -> np.ndarray[Any, Any]:
    """Return a table that tells for each number of a kind whether it is one of these kinds.

    ``entries[kind_mask(Kind.SENT)[entries["kind"]]]`` selects entries in a tenth of the time of `numpy.isin`.
    """
    table = np.zeros(256, bool)
    table[list(kinds)] = True
    return table


# Entries without their fields: NumPy copies them in a seventh of the time.
_BYTES = np.dtype(f"V{ENTRY.itemsize}")


def selected(entries: Entries, which: slice | np.ndarray[Any, Any]) -> Entries:
    """Return the entries in a mask, or at these places."""
    chosen: Entries = entries.view(_BYTES)[which].view(ENTRY)
    return chosen


def joined(parts: Sequence[Entries]) -> Entries:
    """Return the entries of all parts in one array."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty(0, _BYTES), *(part.view(_BYTES) for part in parts)]).view(ENTRY)


def by_record(entries: Entries) -> Iterator[tuple[int, slice | np.ndarray[Any, Any]]]:
    """Yield (number of a step record, places of the entries about it, in their order), which `selected` takes."""
    numbers = entries["record"]
    if not len(numbers):
        return
    if (numbers == numbers[0]).all():
        yield int(numbers[0]), slice(None)
        return
    # NumPy sorts numbers of 16 bits in linear time.
    is_small = int(numbers.max()) <= np.iinfo(np.uint16).max
    order = np.argsort(numbers.astype(np.uint16) if is_small else numbers, kind="stable")
    edges = np.flatnonzero(np.diff(numbers[order])) + 1
    for places in np.split(order, edges):
        yield int(numbers[places[0]]), places


def packed(kind: Kind, record: int, epoch: int, start: int, stop: int = 0, *, code: int = 0, slot: int = 0) -> bytes:
    """Return the bytes of an entry with the current time."""
    body = _STRUCT.pack(kind, 0, slot, code, record, epoch, start, stop, clock.shared_now())
    return body + _CHECK.pack(zlib.crc32(body))


def packed_head(study: int) -> bytes:
    """Return the bytes of the head of a file, for the study with this number."""
    return packed(Kind.HEAD, 0, _FORMAT, study)


# Number of entries from which the check of all entries at once is faster than one by one.
_MANY = 200
_BLOCK = 8192


# Begun with this value, the CRC-32 of a sound entry and its checksum is this value again; so is that of any number of
# sound entries. (The CRC is an affine function of the value with which it begins; this is its fixed point.) A damaged
# entry always changes it; two of them would have to change it by the same 32 bits.
_FIXED_POINT = 0x101868C1


def are_sound(entries: Entries) -> np.ndarray[Any, Any]:
    """Return a mask of the entries with the correct checksum."""
    if zlib.crc32(np.ascontiguousarray(entries).data, _FIXED_POINT) == _FIXED_POINT:  # a tenth of the time
        return np.ones(len(entries), bool)
    mask: np.ndarray[Any, Any] = _checksums(entries) == entries["check"]
    return mask


def is_sound(entry: bytes) -> bool:
    """Tell whether the bytes of one entry have the correct checksum."""
    return entry[_STRUCT.size :] == _CHECK.pack(zlib.crc32(entry[: _STRUCT.size]))


def _checksums(entries: Entries) -> np.ndarray[Any, Any]:
    """Return the CRC-32 of entries."""
    if len(entries) >= _MANY:
        return _checksums_at_once(entries)
    data = memoryview(entries.tobytes())  # one copy: to copy each entry takes longer than to check it
    places = range(0, len(data), ENTRY.itemsize)
    return np.array([zlib.crc32(data[place : place + _STRUCT.size]) for place in places], np.uint32)


def _checksums_at_once(entries: Entries) -> np.ndarray[Any, Any]:
    """Return the CRC-32 of many entries at once.

    For messages of equal length, the CRC is an affine function of their bits. So the CRC of a message is the exclusive
    or of the CRC of zeros and of one term for each byte, which depends on its place and its value.
    """
    tables, of_zeros = _tables()
    places = entries.view(np.uint8).reshape(len(entries), ENTRY.itemsize)
    sums = np.full(len(entries), of_zeros, np.uint32)
    for begin in range(0, len(entries), _BLOCK):  # blocks that fit into the cache
        block = np.ascontiguousarray(places[begin : begin + _BLOCK].T)
        for table, values in zip(tables, block, strict=False):
            sums[begin : begin + _BLOCK] ^= table[values]
    return sums


@functools.cache
def _tables() -> tuple[np.ndarray[Any, Any], int]:
    """Return the terms by place and value of a byte, and the CRC of zeros."""
    size = _STRUCT.size
    of_zeros = zlib.crc32(bytes(size))
    terms = [
        [zlib.crc32(bytes(place) + bytes([value]) + bytes(size - place - 1)) ^ of_zeros for value in range(256)]
        for place in range(size)
    ]
    return np.array(terms, np.uint32), of_zeros


# The check word of release 0.1: the exclusive or of this number and of the other words. It does not detect two words
# that have changed places.
_OLD_SEED = 0x5EED1ED6


def are_sound_in_old_format(entries: Entries) -> np.ndarray[Any, Any]:
    """Return a mask of the entries that are sound in the format of release 0.1, which has no head and no CRC."""
    words = entries.view(np.uint32).reshape(len(entries), ENTRY.itemsize // 4)
    mask: np.ndarray[Any, Any] = np.bitwise_xor.reduce(words, axis=1) == _OLD_SEED
    return mask
