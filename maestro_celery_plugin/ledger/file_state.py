"""The state of a file of the ledger: what its reader knows of it, and the bytes that are new."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["FileState", "Format", "Mark", "NewBytes"]


class Format(enum.Enum):
    """The format of a file, from its first entry."""

    UNKNOWN = enum.auto()
    """The file has no complete entry yet."""
    CURRENT = enum.auto()
    """The file begins with a head of this study."""
    OLD = enum.auto()
    """The file has no sound head: it is from release 0.1, or its head is damaged."""
    FOREIGN = enum.auto()
    """The file begins with the head of another study."""


@dataclasses.dataclass
class FileState:
    """What the reader knows of a file.

    Attributes:
        path: Its path.
        offset: The end of the entries that were read.
        format: The format of the file.
        size: The size of the file at the last read that found no entry in it.
        damaged_since: Since when the entry at `offset` is damaged while a sound entry follows (monotonic).
        has_more: Whether the file had more than the part that was read last.
        skippable: The size of the part at `offset` if it has no sound entry, and other parts follow.
    """

    path: Path
    offset: int = 0
    format: Format = Format.UNKNOWN
    size: int = -1
    damaged_since: float | None = None
    has_more: bool = False
    skippable: int = 0

    def advance(self, size: int) -> None:
        """Go on after so many bytes, all of which are sound entries."""
        self.offset += size
        self.size, self.damaged_since, self.skippable = -1, None, 0


class NewBytes(NamedTuple):
    """The new bytes of a file, as they were read."""

    writer: str
    file: FileState
    offset: int
    """Where they begin."""
    size: int
    """The size of the file."""
    data: np.ndarray[Any, Any]


class Mark(NamedTuple):
    """A place in a file, up to which a reader has read it."""

    offset: int
    """The end of what was read."""
    is_old: bool
    """Whether the file has the format of release 0.1."""
    entry: bytes
    """The last entry before the place."""
