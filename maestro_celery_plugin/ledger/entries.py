"""The entries of the ledger: what they record, and their layout in a file.

Each writer (a worker process, or the coordinator) has one file of entries of fixed size. A reader ignores
entries with a wrong check word, and an incomplete last entry, which remains when a writer dies.
"""

from __future__ import annotations

import enum
import functools
import operator
import struct
from typing import Any

import numpy as np

from maestro_celery_plugin import clock

__all__ = ["COORDINATOR", "ENTRY", "SUFFIX", "Entries", "Kind", "are_sound", "packed"]

Entries = np.ndarray[Any, np.dtype[np.void]]


class Kind(enum.IntEnum):
    """What an entry records. `start` and `stop` are a range of samples [start, stop), unless stated otherwise."""

    SENT = 1
    """Coordinator: the range was sent to the task queue under this epoch; earlier epochs are invalid for it."""
    CANCELLED = 2
    """Coordinator: no sample of the range may run under this or an earlier epoch."""
    LOST = 3
    """Coordinator: the worker of the attempt at sample `start` under this epoch was lost; `code` is 1 when the
    sample cannot be the cause, for example because the conductor had ended as well."""
    RERUN = 4
    """Coordinator: outcomes of sample `start` under this or an earlier epoch are invalid; the sample runs again."""
    TAKEN = 5
    """Worker: a slot has taken the range."""
    PASSED = 6
    """Worker: the slot has sent this last part of its range to the task queue."""
    RELEASED = 7
    """Worker: the slot has released the whole range."""
    STARTED = 8
    """Worker: an attempt at sample `start` begins; `code` is 1 when the attempt runs `restart`."""
    ENDED = 9
    """Worker: the attempt at sample `start` has ended with `code`; `stop` is its duration in microseconds."""
    STOPPED = 10
    """Worker: the worker has ended the attempt at sample `start` after `stop` microseconds; it counts as lost."""


# Little-endian, packed: kind, reserved, slot, code, record, epoch, start, stop, time (Unix seconds of the
# writer's clock; clocks of different writers are not compared), check (exclusive or of the other words).
_STRUCT = struct.Struct("<BBHiIIQQd")
_WORDS = struct.Struct("<10I")
_CHECK = struct.Struct("<I")
_SEED = 0x5EED1ED6

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


def packed(kind: Kind, record: int, epoch: int, start: int, stop: int = 0, *, code: int = 0, slot: int = 0) -> bytes:
    """Return the bytes of an entry with the current time."""
    body = _STRUCT.pack(kind, 0, slot, code, record, epoch, start, stop, clock.now())
    check = functools.reduce(operator.xor, _WORDS.unpack(body), _SEED)
    return body + _CHECK.pack(check)


def are_sound(entries: Entries) -> np.ndarray[Any, Any]:
    """Return a mask of the entries with the correct check word."""
    words = entries.view(np.uint32).reshape(len(entries), ENTRY.itemsize // 4)
    mask: np.ndarray[Any, Any] = np.bitwise_xor.reduce(words, axis=1) == _SEED
    return mask
