"""The byte offsets of the rows of a text file, found in one pass that keeps one block of the file in memory."""

from __future__ import annotations

import csv
import dataclasses
import io
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import SampleError

__all__ = ["BOM", "Offsets", "RowIndex", "index_rows"]

_BLOCK = 4 << 20  # bytes per read
BOM = b"\xef\xbb\xbf"
_SHOWN = 60  # characters of a row in a message

Offsets = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class RowIndex:
    """The rows of a text file.

    Attributes:
        offsets: An array (rows, 2) of the offsets of the first byte of each row and of the byte after the row.
        comments: The comments before the first row, without their ``#``.
        later_comments: The number of comments after the first row.
        hash_line: The number of the first line with a ``#`` within a row; None without one.
    """

    offsets: Offsets
    comments: tuple[str, ...]
    later_comments: int
    hash_line: int | None


def index_rows(path: Path, delimiter: str | None, columns: int) -> RowIndex:
    """Find the rows of a text file. A row that begins with ``#`` is a comment, and is no row; nor is a blank line.

    Args:
        path: The file.
        delimiter: The separator of the columns; None for white space.
        columns: The number of column labels, for messages.

    Raises:
        SampleError: a row and the first row have different numbers of columns, or the file is not UTF-8 text, has a
            NUL, or is not valid csv.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(BOM)) != BOM:
                file.seek(0)
            begin = file.tell()
            rows = _Rows(path, file, delimiter, columns)
            if delimiter is None:
                offsets = rows.by_white_space()
            else:
                offsets = rows.quoted(delimiter) if _has_quotes(path) else rows.plain(delimiter)
            comments = _comments(path, begin, int(offsets[0, 0]) if len(offsets) else 0)
            return RowIndex(offsets, comments, rows.comments - len(comments), rows.hash_line)
    except UnicodeDecodeError as cause:
        raise SampleError(f"merlin.samples.file: '{path}' is not UTF-8 text: {cause}") from cause


def _has_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        return any(b'"' in block for block in iter(lambda: file.read(_BLOCK), b""))


def _comments(path: Path, start: int, stop: int) -> tuple[str, ...]:
    """Return the comments in a part of a file that has no rows."""
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read(max(0, stop - start)).decode().splitlines()
    return tuple(line.strip().lstrip("#").strip() for line in lines if line.strip())


def _is_comment(line: str) -> bool:
    """Tell whether a line begins with ``#``, after any white space that `str.split` knows, such as a no-break space."""
    return line.lstrip().startswith("#")


class _Rows:
    """The rows of a file, starting at its current position.

    Args:
        path: The file.
        file: The open file.
        delimiter: The separator of the columns; None for white space.
        columns: The number of column labels.

    Attributes:
        comments: The number of comments so far.
    """

    def __init__(self, path: Path, file: io.BufferedReader, delimiter: str | None, columns: int) -> None:
        self._path, self._file, self._delimiter, self._columns = path, file, delimiter, columns
        self._width = 0
        self._count = self.comments = 0
        self._first_row = self._first_hash = -1
        self._is_start = False  # of a row, for `quoted`
        self._start = 0

    @property
    def hash_line(self) -> int | None:
        """The number of the first line with a ``#`` within a row; None without one."""
        return None if self._first_hash < 0 else self._line_number(self._first_hash)

    def _note_hash(self, offset: int) -> None:
        if self._first_hash < 0:
            self._first_hash = offset

    def _count_row(self, width: int, offset: int) -> None:
        """Count one more row.

        Raises:
            SampleError: the row and the first row have different numbers of columns.
        """
        if not self._width:
            self._width, self._first_row = width, offset
        if width != self._width:
            raise SampleError(
                f"merlin.samples.file: row {self._count} of '{self._path}' (line {self._line_number(offset)}) "
                f"has {width} columns, row 0 has {self._width}; all rows need the same number. "
                f"{self._cause(width, offset)}"
            )
        self._count += 1

    def _cause(self, width: int, offset: int) -> str:
        """Return the probable cause of a row with another number of columns than the first row."""
        row = self._line_at(offset)
        if width == self._columns:
            text = f"Row 0 is '{_short(self._line_at(self._first_row))}'"
            return f"{text}: begin a title or a header with '#'."
        found = f"The row is '{_short(row)}'"
        if self._delimiter and row.rstrip().endswith(self._delimiter):
            return f"{found}: remove the '{self._delimiter}' at its end."
        if width < self._width:
            return f"{found}: a value is missing, or values are not separated by {_name(self._delimiter)}."
        remedy = "use a .csv file" if self._delimiter is None else "put it in double quotes"
        return f"{found}: if a value contains {_name(self._delimiter)}, {remedy}."

    def _line_number(self, offset: int) -> int:
        with self._path.open("rb") as file:
            return 1 + file.read(offset).count(b"\n")

    def _line_at(self, offset: int) -> str:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.readline().decode(errors="replace").rstrip("\r\n")

    def _decoded(self, data: bytes, offset: int) -> str:
        """Return the text of bytes at an offset.

        Raises:
            SampleError: they have a NUL, which a shell drops in silence.
            UnicodeDecodeError: they are not UTF-8.
        """
        if (at := data.find(0)) >= 0:
            raise SampleError(
                f"merlin.samples.file: line {self._line_number(offset + at)} of '{self._path}' has a NUL character, so "
                "it is no text, or not UTF-8 text."
            )
        return data.decode()

    def by_white_space(self) -> Offsets:
        """Index lines whose columns are separated by white space."""
        offsets, start = array("q"), self._file.tell()
        for line in self._file:
            text = self._decoded(line, start)
            width = len(text.split())
            if _is_comment(text):
                self.comments += 1
            elif width:
                self._count_row(width, start)
                offsets.extend((start, start + len(line)))
                if b"#" in line:
                    self._note_hash(start)
            start += len(line)
        return _as_array(offsets)

    def quoted(self, delimiter: str) -> Offsets:
        """Index rows as Python's `csv` reads them: a row with an open quote continues on the next line."""
        offsets, position = array("q"), [self._file.tell()]
        reader = csv.reader(self._decoded_lines(position), delimiter=delimiter, strict=True)
        while True:
            self._is_start, self._start = True, position[0]
            try:
                row = next(reader, None)
            except csv.Error as cause:
                raise SampleError(
                    f"merlin.samples.file: row {self._count} of '{self._path}' (line {self._line_number(self._start)}) "
                    f"is not valid csv: {cause}; check the quotes."
                ) from cause
            if row is None:
                return _as_array(offsets)
            start = self._start
            if len(row) > 1 or "".join(row).strip() or b'"' in self._bytes_between(start, position[0]):
                self._count_row(len(row), start)
                offsets.extend((start, position[0]))
                if any("#" in value for value in row):
                    self._note_hash(start)

    def _decoded_lines(self, position: list[int]) -> Iterator[str]:
        """Yield the lines of rows; a ``#`` begins a comment only where a row can begin."""
        for line in self._file:
            text, start = self._decoded(line, position[0]), position[0]
            position[0] += len(line)
            if self._is_start and _is_comment(text):
                self.comments += 1
                continue
            if self._is_start:
                self._is_start, self._start = False, start
            yield text

    def _bytes_between(self, start: int, stop: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def plain(self, delimiter: str) -> Offsets:
        """Index a file without quotes: every line end is the end of a row."""
        parts, start = [np.empty((0, 2), np.int64)], self._file.tell()
        while block := self._file.read(_BLOCK) + self._file.readline():
            self._decoded(block, start)
            parts.append(self._index_block(block, delimiter, start))
            start += len(block)
        return np.concatenate(parts)

    def _index_block(self, block: bytes, delimiter: str, offset: int) -> Offsets:
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        if data[-1] != ord("\n"):
            ends = np.append(ends, len(data))
        starts = np.concatenate([[0], ends[:-1] + 1])
        if (returns := np.flatnonzero(data[:-1] == ord("\r"))).size and (data[returns + 1] != ord("\n")).any():
            raise SampleError(
                f"merlin.samples.file: '{self._path}' has carriage returns within lines; end lines with LF."
            )
        widths = _counts(data, delimiter, starts, ends) + 1
        has_hash = _counts(data, "#", starts, ends) > 0
        keep = data[starts] != ord("#")
        # White space is a control character, a blank, or not ASCII.
        may_be_space = (data[starts] <= ord(" ")) | (data[starts] >= 0x80)
        for line in np.flatnonzero(((widths == 1) | has_hash) & may_be_space):
            text = block[starts[line] : ends[line]].decode()
            keep[line] = not (_is_comment(text) or text.isspace() or not text)
        self.comments += int((has_hash & ~keep).sum())
        starts, ends, widths, has_hash = starts[keep], ends[keep], widths[keep], has_hash[keep]
        if has_hash.any():
            self._note_hash(offset + int(starts[has_hash][0]))
        self._count_rows(widths, starts + offset)
        return np.stack([starts, ends], axis=1) + offset

    def _count_rows(self, widths: Offsets, offsets: Offsets) -> None:
        if not len(widths):
            return
        if not self._width:
            self._width, self._first_row = int(widths[0]), int(offsets[0])
        ragged = np.flatnonzero(widths != self._width)
        first = int(ragged[0]) if len(ragged) else len(widths)
        self._count += first
        if first < len(widths):
            self._count_row(int(widths[first]), int(offsets[first]))


def _counts(data: Offsets, character: str, starts: Offsets, ends: Offsets) -> Offsets:
    """Return how often a character occurs in each line of a block."""
    positions = np.flatnonzero(data == ord(character))
    return np.searchsorted(positions, ends) - np.searchsorted(positions, starts)


def _as_array(offsets: array[int]) -> Offsets:
    return np.frombuffer(offsets, np.int64).reshape(-1, 2) if offsets else np.empty((0, 2), np.int64)


def _name(delimiter: str | None) -> str:
    return "a blank" if delimiter is None else f"'{delimiter}'"


def _short(row: str) -> str:
    return row if len(row) <= _SHOWN else f"{row[:_SHOWN]}..."
