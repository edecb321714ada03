"""The reader of a ledger: it follows the files of all writers."""

from __future__ import annotations

import errno
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
from maestro_celery_plugin.ledger.file_state import FileState, Format, Mark, NewBytes
from maestro_celery_plugin.ledger.store import STORE, PartStore, Store

__all__ = ["LedgerReader", "read_by_record", "read_ledger"]

_SIZE = ENTRY.itemsize
# Bytes after a damaged entry in which the reader looks for the next sound entry at any place.
_SEARCH_LIMIT = 1 << 16
# Bytes of several files that are checked together.
_BATCH_SIZE = 1 << 21
_HEAD = int(Kind.HEAD)


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
        must_be_stored: Tells whether a writer may run on this node, so that what the file system shows of its entries
            may be lost later; such entries count when they are stored.
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
        must_be_stored: Callable[[str], bool] = lambda writer: False,
        *,
        store: Store = STORE,
    ) -> None:
        self._directory, self._study, self._patience_s, self._store = directory, study, patience_s, store
        self._is_live, self._must_be_stored = is_live, must_be_stored
        self._files: dict[str, FileState] = {}
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
        names = sorted(self._store.names(self._directory, fresh=fresh))
        writers = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
        for parts in self._batches(writer for writer in writers if writer not in skip):
            yield from self._entries_of(parts)

    def _batches(self, writers: Iterable[str]) -> Iterator[list[NewBytes]]:
        """Yield the new bytes of files, those of many files together.

        Raises:
            OSError: a file cannot be read; the bytes of all others come first.
        """
        parts: list[NewBytes] = []
        size = 0
        error: OSError | None = None
        for writer in writers:
            if writer in self.foreign:
                continue
            try:
                part = self._read_bytes(writer)
            except OSError as cause:
                error = error or cause
                if cause.errno == errno.ETIMEDOUT:
                    break  # the file server does not answer: each further file would take as long
                continue  # one file, which may be lost, must not hide the others
            if len(part.data) < _SIZE:
                continue
            parts.append(part)
            size += len(part.data)
            if size >= _BATCH_SIZE:
                yield parts
                parts, size = [], 0
        if parts:
            yield parts
        if error is not None:
            raise error

    def _entries_of(self, parts: list[NewBytes]) -> Iterator[tuple[str, Entries]]:
        """Yield (writer, new entries) for the new bytes of files; the checksums of all of them are computed at once."""
        whole = [part.data[: len(part.data) // _SIZE * _SIZE] for part in parts]
        together = np.concatenate(whole).view(ENTRY)
        is_plain = are_sound(together) & (together["kind"] != _HEAD)
        all_plain, begin = bool(is_plain.all()), 0
        for part, data in zip(parts, whole, strict=True):
            end = begin + len(data) // _SIZE
            has_more = part.file.has_more
            if part.file.offset != part.offset:  # the caller has read this file since
                entries, has_more = together[:0], True
            elif part.file.format is Format.CURRENT and (all_plain or is_plain[begin:end].all()):
                entries = together[begin:end]
                part.file.advance(len(data))
            else:
                entries = self._find_sound(part)
                has_more = part.file.has_more and len(entries) > 0
            begin = end
            if len(entries):
                yield part.writer, entries
            for more in self.parts(part.writer) if has_more else ():
                yield part.writer, more

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
            writer: Mark(file.offset, file.format is Format.OLD, self._entry_before(writer, file.offset))
            for writer, file in read.items()
        }

    def go_on_at(self, marks: Mapping[str, Mark]) -> bool:
        """Begin where an earlier reader was; tell whether the files are still the same, otherwise begin at the start.

        Raises:
            OSError: a file cannot be read.
        """
        if not all(self._entry_before(writer, mark.offset) == mark.entry for writer, mark in marks.items()):
            return False
        self._files = {}
        for writer, mark in marks.items():
            file = self._files[writer] = self._new_file(writer)
            file.offset, file.format = mark.offset, Format.OLD if mark.is_old else Format.CURRENT
        return True

    def _entry_before(self, writer: str, offset: int) -> bytes:
        _, data = PartStore(_SIZE).read(self._directory / f"{writer}{SUFFIX}", offset - _SIZE, _SIZE)
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
        while len(entries := self._find_sound(self._read_bytes(writer))):
            yield entries
            if not self._files[writer].has_more:
                return

    def _read_bytes(self, writer: str) -> NewBytes:
        """Return the new bytes of a file, or of the next part of it."""
        file = self._files.get(writer)
        if file is None:
            file = self._files[writer] = self._new_file(writer)
        read = self._store.read_stored if self._must_be_stored(writer) else self._store.read
        size, data = read(file.path, file.offset, _SIZE)
        file.has_more = file.offset + len(data) < size
        return NewBytes(writer, file, file.offset, size, data)

    def _new_file(self, writer: str) -> FileState:
        return FileState(self._directory / f"{writer}{SUFFIX}")

    def _find_sound(self, part: NewBytes) -> Entries:
        """Return the new entries of a file; go on behind a part without a sound one."""
        entries = self._sound_entries(part)
        while not len(entries) and self._skip(part.file, part.writer):
            part = self._read_bytes(part.writer)
            entries = self._sound_entries(part)
        return entries

    def _sound_entries(self, part: NewBytes) -> Entries:
        writer, state, _, size, data = part
        # The bytes may change while the size does not: they may not be visible yet. A long rest is searched once, and
        # again only if its first bytes have become an entry.
        was_searched = len(data) > _SEARCH_LIMIT and size == state.size
        if len(data) < _SIZE or (was_searched and not self._are_sound(state, data[:_SIZE].view(ENTRY))[0]):
            return np.empty(0, ENTRY)
        if state.format is Format.UNKNOWN and not self._recognise(state, writer, data):
            return np.empty(0, ENTRY)
        parts = list(self._sound_parts(state, data, patience_s=self._patience_s if self._is_live(writer) else 0.0))
        entries = joined(parts)
        state.size = -1 if len(entries) else size
        state.skippable = 0 if parts or not state.has_more else len(data) // _SIZE * _SIZE
        is_head = entries["kind"] == _HEAD
        return selected(entries, ~is_head) if is_head.any() else entries

    def _skip(self, state: FileState, writer: str) -> bool:
        """Go on behind a part of a file that has no sound entry at all, if others follow; tell whether they do.

        A hole behind it, which a file system or a user has made, is not read; it may be larger than all disks.
        """
        if not state.skippable or not _has_waited(state, self._patience_s if self._is_live(writer) else 0.0):
            return False
        place = state.offset + state.skippable
        following = self._store.next_data(state.path, place)
        if following is None:
            return False
        gap = state.skippable + (following - place) // _SIZE * _SIZE
        self.damaged += gap // _SIZE
        state.offset += gap
        state.skippable, state.size, state.damaged_since = 0, -1, None
        return True

    def _recognise(self, state: FileState, writer: str, data: np.ndarray[Any, Any]) -> bool:
        """Find the format of a file; return whether the file belongs to the study."""
        head = data[:_SIZE].view(ENTRY)
        if not are_sound(head)[0] or head["kind"][0] != _HEAD:
            state.format = Format.OLD
        elif self._study in (0, int(head["start"][0])):
            state.format = Format.CURRENT
        else:
            state.format = Format.FOREIGN
            self.foreign.add(writer)
        return state.format is not Format.FOREIGN

    def _sound_parts(self, state: FileState, data: np.ndarray[Any, Any], *, patience_s: float) -> Iterator[Entries]:
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
    def _are_sound(state: FileState, entries: Entries) -> np.ndarray[Any, Any]:
        sound = are_sound(entries)
        return sound | are_sound_in_old_format(entries) if state.format is Format.OLD else sound


def _has_waited(state: FileState, patience_s: float) -> bool:
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
