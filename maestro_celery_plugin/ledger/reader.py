"""The reader of a ledger: it follows the files of all writers."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maestro_celery_plugin import clock
from maestro_celery_plugin.ledger.entries import (
    ENTRY,
    SUFFIX,
    Entries,
    Kind,
    are_sound,
    are_sound_in_old_format,
    by_record,
    is_sound,
    joined,
    selected,
)
from maestro_celery_plugin.ledger.store import STORE, PartStore, Store

__all__ = ["LedgerReader", "Mark", "read_by_record", "read_ledger"]

_SIZE = ENTRY.itemsize
# Bytes after a damaged entry in which the reader looks for the next sound entry at any place.
_SEARCH_LIMIT = 1 << 16


class _Format(enum.Enum):
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
class _File:
    """What the reader knows of a file.

    Attributes:
        offset: The end of the entries that were read.
        format: The format of the file.
        size: The size of the file at the last read that found no entry in it.
        damaged_since: Since when the entry at `offset` is damaged while a sound entry follows (monotonic).
        has_more: Whether the file had more than the part that was read last.
        skippable: The size of the part at `offset` if it has no sound entry, and other parts follow.
    """

    offset: int = 0
    format: _Format = _Format.UNKNOWN
    size: int = -1
    damaged_since: float | None = None
    has_more: bool = False
    skippable: int = 0


class Mark(NamedTuple):
    """A place in a file, up to which a reader has read it."""

    offset: int
    """The end of what was read."""
    is_old: bool
    """Whether the file has the format of release 0.1."""
    entry: bytes
    """The last entry before the place."""


class LedgerReader:
    """Follows all files of a ledger; each call to `poll` yields new entries.

    A damaged part of the file of a live writer may be one that this writer is about to write again, or that is not
    visible yet. The reader waits for it, then continues at the next sound entry, which may be at any place.

    Args:
        directory: The ledger.
        study: Number of the study; files of other studies are ignored. 0 for any study.
        patience_s: Seconds to wait for a damaged part of the file of a live writer.
        is_live: Tells whether a writer may still write. The reader waits for no other writer: what follows the damage
            must count before anyone concludes that a sample has no outcome.
        store: The file operations.

    Attributes:
        damaged: Number of damaged entries so far; they are ignored.
        foreign: Names of the writers of other studies.
    """

    def __init__(
        self,
        directory: Path,
        study: int = 0,
        patience_s: float = 0.0,
        is_live: Callable[[str], bool] = lambda writer: False,
        *,
        store: Store = STORE,
    ) -> None:
        self._directory, self._study, self._patience_s, self._store = directory, study, patience_s, store
        self._is_live = is_live
        self._files: dict[str, _File] = {}
        self.damaged = 0
        self.foreign: set[str] = set()

    def poll(self, skip: Container[str] = (), *, fresh: bool = False) -> Iterator[tuple[str, Entries]]:
        """Yield (writer, new entries in their order in the file); those of a large file in parts.

        Each call opens each file, because NFS guarantees to show new data only after an open (nfs(5)).

        Args:
            skip: Writers to skip in this call, such as workers that have left.
            fresh: Whether to include files that other nodes have created a moment ago; a caller that draws a
                conclusion from missing entries must set it.

        Raises:
            OSError: a file cannot be read.
        """
        for name in sorted(self._store.names(self._directory, fresh=fresh)):
            if not name.endswith(SUFFIX):
                continue
            writer = name.removesuffix(SUFFIX)
            if writer in skip:
                continue
            for entries in self.parts(writer):
                yield writer, entries

    @property
    def damage(self) -> list[str]:
        """A sentence for each kind of damage so far; empty for a sound ledger."""
        found = []
        if self.damaged:
            found.append(
                f"{self.damaged} entries of the ledger '{self._directory}' are damaged; samples run again if these "
                "entries recorded their end."
            )
        if self.foreign:
            names = ", ".join(sorted(self.foreign))
            found.append(f"Files of the ledger '{self._directory}' belong to another study and are ignored: {names}.")
        return found

    def marks(self) -> dict[str, Mark]:
        """Return up to where each file was read, which `go_on_at` takes; empty if a file is damaged or foreign.

        What is damaged now may be written again, or become visible.

        Raises:
            OSError: a file cannot be read.
        """
        if self.damaged or self.foreign:
            return {}
        read = {writer: file for writer, file in self._files.items() if file.offset}
        return {
            writer: Mark(file.offset, file.format is _Format.OLD, self._entry_before(writer, file.offset))
            for writer, file in read.items()
        }

    def go_on_at(self, marks: Mapping[str, Mark]) -> bool:
        """Begin where an earlier reader was; tell whether the files are still the same, otherwise begin at the start.

        Raises:
            OSError: a file cannot be read.
        """
        if not all(self._entry_before(writer, mark.offset) == mark.entry for writer, mark in marks.items()):
            return False
        self._files = {
            writer: _File(mark.offset, _Format.OLD if mark.is_old else _Format.CURRENT)
            for writer, mark in marks.items()
        }
        return True

    def _entry_before(self, writer: str, offset: int) -> bytes:
        _, data = PartStore(_SIZE).read(self._path(writer), offset - _SIZE, _SIZE)
        return data.tobytes()

    def read(self, writer: str) -> Entries:
        """Return the new entries of one writer; none for a writer of another study.

        Raises:
            OSError: the file cannot be read.
        """
        return joined(list(self.parts(writer)))

    def parts(self, writer: str) -> Iterator[Entries]:
        """Yield the new entries of one writer, as `read`, but those of a large file in parts.

        Raises:
            OSError: the file cannot be read.
        """
        if writer in self.foreign:
            return
        state = self._files.setdefault(writer, _File())
        while len(entries := self._read_next(state, writer)):
            yield entries
            if not state.has_more:
                return

    def _read_next(self, state: _File, writer: str) -> Entries:
        """Return the new entries of a file, or of the next part of it that has some."""
        entries = self._read_part(state, writer)
        while not len(entries) and self._skip(state, writer):
            entries = self._read_part(state, writer)
        return entries

    def _read_part(self, state: _File, writer: str) -> Entries:
        """Return the new entries of a file, or of the next part of it."""
        size, data = self._store.read(self._path(writer), state.offset, _SIZE)
        state.has_more = state.offset + len(data) < size
        # The bytes may change while the size does not: they may not be visible yet. A long rest is not searched again.
        is_known = len(data) > _SEARCH_LIMIT and size == state.size
        if len(data) < _SIZE or (is_known and not self._are_sound(state, data[:_SIZE].view(ENTRY))[0]):
            return np.empty(0, ENTRY)
        if state.format is _Format.UNKNOWN and not self._recognise(state, writer, data):
            return np.empty(0, ENTRY)
        parts = list(self._sound_parts(state, data, patience_s=self._patience_s if self._is_live(writer) else 0.0))
        entries = joined(parts)
        state.size = -1 if len(entries) else size
        state.skippable = 0 if parts or not state.has_more else len(data) // _SIZE * _SIZE
        is_head = entries["kind"] == Kind.HEAD
        return selected(entries, ~is_head) if is_head.any() else entries

    def _skip(self, state: _File, writer: str) -> bool:
        """Go on behind a part of a file that has no sound entry at all, if others follow; tell whether they do.

        A hole behind it, which a file system or a user has made, is not read; it may be larger than all disks.
        """
        if not state.skippable or not _has_waited(state, self._patience_s if self._is_live(writer) else 0.0):
            return False
        place = state.offset + state.skippable
        following = self._store.next_data(self._path(writer), place)
        if following is None:
            return False
        gap = state.skippable + (following - place) // _SIZE * _SIZE
        self.damaged += gap // _SIZE
        state.offset += gap
        state.skippable, state.size, state.damaged_since = 0, -1, None
        return True

    def _path(self, writer: str) -> Path:
        return self._directory / f"{writer}{SUFFIX}"

    def _recognise(self, state: _File, writer: str, data: np.ndarray[Any, Any]) -> bool:
        """Find the format of a file; return whether the file belongs to the study."""
        head = data[:_SIZE].view(ENTRY)
        if not are_sound(head)[0] or head["kind"][0] != Kind.HEAD:
            state.format = _Format.OLD
        elif self._study in (0, int(head["start"][0])):
            state.format = _Format.CURRENT
        else:
            state.format = _Format.FOREIGN
            self.foreign.add(writer)
        return state.format is not _Format.FOREIGN

    def _sound_parts(self, state: _File, data: np.ndarray[Any, Any], *, patience_s: float) -> Iterator[Entries]:
        """Yield the sound parts of the new bytes of a file, and advance its offset."""
        at = 0
        while len(data) - at >= _SIZE:
            entries = data[at : at + (len(data) - at) // _SIZE * _SIZE].view(ENTRY)
            sound = self._are_sound(state, entries)
            good = len(sound) if sound.all() else int(np.argmin(sound))
            if good:
                yield entries[:good]
                at += good * _SIZE
                state.offset += good * _SIZE
                state.damaged_since = None
            if good == len(sound):
                return
            following = int(np.argmax(sound[good:])) * _SIZE  # 0 if no entry is sound
            gap = _next_sound(data[at : at + (following or _SEARCH_LIMIT) + _SIZE].tobytes()) or following
            if not gap or not _has_waited(state, patience_s):
                return
            self.damaged += -(-gap // _SIZE)
            at += gap
            state.offset += gap
            state.damaged_since = None

    @staticmethod
    def _are_sound(state: _File, entries: Entries) -> np.ndarray[Any, Any]:
        sound = are_sound(entries)
        return sound | are_sound_in_old_format(entries) if state.format is _Format.OLD else sound


def _has_waited(state: _File, patience_s: float) -> bool:
    """Tell whether the reader has waited long enough for a damaged part."""
    now = clock.monotonic()
    state.damaged_since = now if state.damaged_since is None else state.damaged_since
    return now - state.damaged_since >= patience_s


def _next_sound(data: bytes) -> int:
    """Return the first place after the beginning where a sound entry begins; 0 without one."""
    places = range(1, len(data) - _SIZE + 1)
    return next((at for at in places if is_sound(data[at : at + _SIZE])), 0)


def read_ledger(directory: Path, study: int = 0) -> Entries:
    """Return all entries of a small ledger; those of one writer are in order.

    Args:
        directory: The ledger.
        study: Number of the study; files of other studies are ignored. 0 for any study.

    Raises:
        OSError: a file cannot be read.
    """
    return joined([entries for _, entries in LedgerReader(directory, study).poll()])


def read_by_record(directory: Path, study: int) -> Iterator[tuple[int, Entries]]:
    """Yield (number of a step record, entries about it) in parts, so that a large ledger needs little memory.

    Args:
        directory: The ledger.
        study: Number of the study; files of other studies are ignored.

    Raises:
        OSError: a file cannot be read.
    """
    for _, entries in LedgerReader(directory, study).poll():
        for number, places in by_record(entries):
            yield number, selected(entries, places)
