"""The byte offsets of the rows of a text file, found in one pass that keeps one block of the file in memory."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import SampleError

__all__ = ["index_rows"]

_BLOCK = 4 << 20  # bytes per read
_BOM = b"\xef\xbb\xbf"

Offsets = np.ndarray[Any, Any]


def index_rows(path: Path, delimiter: str | None) -> Offsets:
    """Return an array (rows, 2) of the offsets of the first byte of each row and of the byte after the row.

    Args:
        path: The file.
        delimiter: The separator of the columns; None for white space.

    Raises:
        SampleError: a row and the first row have different numbers of columns, or the file is not UTF-8 text or
            not valid csv.
    """
    try:
        with path.open("rb") as file:
            _skip_header(file)
            if delimiter is None:
                return _Rows(path, file).by_white_space()
            return _Rows(path, file).quoted(delimiter) if _has_quotes(path) else _Rows(path, file).plain(delimiter)
    except UnicodeDecodeError as cause:
        raise SampleError(f"merlin.samples.file: '{path}' is not UTF-8 text: {cause}") from cause


def _has_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        return any(b'"' in block for block in iter(lambda: file.read(_BLOCK), b""))


def _skip_header(file: io.BufferedReader) -> None:
    """Move to the first line that is neither empty nor a comment in the format of `numpy.savetxt`."""
    if file.read(len(_BOM)) != _BOM:
        file.seek(0)
    while True:
        start, line = file.tell(), file.readline()
        if line and (not line.strip() or line.startswith(b"# ") or line.strip() == b"#"):
            continue
        file.seek(start)
        return


class _Rows:
    """The rows of a file, starting at its current position."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self._path, self._file = path, file
        self._width = 0
        self._count = 0

    def _count_row(self, width: int, offset: int) -> None:
        """Count one more row.

        Raises:
            SampleError: the row and the first row have different numbers of columns.
        """
        self._width = self._width or width
        if width != self._width:
            raise SampleError(
                f"merlin.samples.file: row {self._count} of '{self._path}' (line {self._line_number(offset)}) "
                f"has {width} columns, row 0 has {self._width}; all rows need the same number."
            )
        self._count += 1

    def _line_number(self, offset: int) -> int:
        with self._path.open("rb") as file:
            return 1 + file.read(offset).count(b"\n")

    def by_white_space(self) -> Offsets:
        """Index lines whose columns are separated by white space."""
        offsets, start = array("q"), self._file.tell()
        for line in self._file:
            width = len(line.decode().split())
            if width:
                self._count_row(width, start)
                offsets.extend((start, start + len(line)))
            start += len(line)
        return _as_array(offsets)

    def quoted(self, delimiter: str) -> Offsets:
        """Index rows as Python's `csv` reads them: a row with an open quote continues on the next line."""
        offsets, position = array("q"), [self._file.tell()]
        reader = csv.reader(self._decoded_lines(position), delimiter=delimiter, strict=True)
        while True:
            start = position[0]
            try:
                row = next(reader, None)
            except csv.Error as cause:
                raise SampleError(
                    f"merlin.samples.file: row {self._count} of '{self._path}' (line {self._line_number(start)}) "
                    f"is not valid csv: {cause}; check the quotes."
                ) from cause
            if row is None:
                return _as_array(offsets)
            if len(row) > 1 or "".join(row).strip() or b'"' in self._bytes_between(start, position[0]):
                self._count_row(len(row), start)
                offsets.extend((start, position[0]))

    def _decoded_lines(self, position: list[int]) -> Iterator[str]:
        for line in self._file:
            position[0] += len(line)
            yield line.decode()

    def _bytes_between(self, start: int, stop: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def plain(self, delimiter: str) -> Offsets:
        """Index a file without quotes: every line end is the end of a row."""
        parts, start = [np.empty((0, 2), np.int64)], self._file.tell()
        while block := self._file.read(_BLOCK) + self._file.readline():
            block.decode()
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
        separators = np.flatnonzero(data == ord(delimiter))
        widths = np.searchsorted(separators, ends) - np.searchsorted(separators, starts) + 1
        keep = np.ones(len(starts), bool)
        for line in np.flatnonzero((widths == 1) & (data[starts] <= ord(" "))):
            keep[line] = bool(block[starts[line] : ends[line]].strip())
        starts, ends, widths = starts[keep], ends[keep], widths[keep]
        if len(widths):
            self._width = self._width or int(widths[0])
            ragged = np.flatnonzero(widths != self._width)
            first = int(ragged[0]) if len(ragged) else len(widths)
            self._count += first
            if first < len(widths):
                self._count_row(int(widths[first]), offset + int(starts[first]))
        return np.stack([starts, ends], axis=1) + offset


def _as_array(offsets: array[int]) -> Offsets:
    return np.frombuffer(offsets, np.int64).reshape(-1, 2) if offsets else np.empty((0, 2), np.int64)
