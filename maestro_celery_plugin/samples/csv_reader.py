"""Sample tables in text files. An index is built once, so that a worker reads only the rows that it runs."""

from __future__ import annotations

import csv
import functools
import io
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.samples.header import check_comments, is_header
from maestro_celery_plugin.samples.npy_file import NpyFile, write_npy
from maestro_celery_plugin.samples.row_index import BOM, Offsets, RowIndex, index_rows
from maestro_celery_plugin.samples.table import FileIdentity, SampleTable

__all__ = ["CsvReader", "TabReader"]

LOGGER = logging.getLogger(__name__)

_LF = ord("\n")
_BEFORE = len(BOM)  # bytes before a row that show whether it is one


class CsvReader:
    """Reader of comma-separated text; values are not converted.

    Quoting is as in Python's `csv`: a field in double quotes may contain commas and line ends. Blank lines, rows
    that begin with ``#``, and a first row that is equal to the column labels are no samples.
    """

    suffix: ClassVar[str] = ".csv"
    delimiter: ClassVar[str | None] = ","

    def open(self, path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
        """Open the file, and index it if it has no index yet; see `hookspecs.open_samples`.

        Raises:
            OSError: the file cannot be read now, or its index cannot be stored.
        """
        if path.suffix != self.suffix:
            return None
        return _TextTable(path, _Index(path, self.delimiter, labels, cache), self.delimiter)


class _DamagedIndexError(Exception):
    """The offsets of the index are not those of rows."""


class _Index:
    """The offsets of the rows of a text file, in a file that the first reader writes.

    A damaged index is written again: a row of it is only used if it begins and ends where a line does. An index of an
    earlier release may be damaged after a power cut, because it was not on disk.

    Args:
        path: The text file.
        delimiter: The separator of its columns; None for white space.
        labels: The column labels.
        cache: The directory of the index.
    """

    def __init__(self, path: Path, delimiter: str | None, labels: Sequence[str], cache: Path) -> None:
        self._path, self._delimiter, self._labels = path, delimiter, labels
        self._identity = FileIdentity.of(path)
        self._file = cache / f"{self._identity.content_key}.npy"
        offsets = self._stored()
        self._offsets = self._written() if offsets is None else offsets

    def __len__(self) -> int:
        return self._offsets.shape[0]

    def row(self, index: int) -> list[int]:
        """Return the offsets of the first byte of a row and of the byte after the row.

        Raises:
            _DamagedIndexError: they cannot be those of a row.
        """
        start, stop = self._offsets.read(2 * index, 2).tolist()
        if not 0 <= start < stop <= self._identity.size:
            raise _DamagedIndexError
        return [start, stop]

    def rows(self, start: int, stop: int) -> list[list[int]]:
        """Return what `row` returns for each of the rows [start, stop).

        Raises:
            _DamagedIndexError: they cannot be those of rows.
        """
        places = self._offsets.read(2 * start, 2 * (stop - start)).reshape(-1, 2)
        firsts, ends = places[:, 0], places[:, 1]
        is_in_order = (firsts < ends).all() and (ends[:-1] <= firsts[1:]).all()
        if not (is_in_order and firsts[0] >= 0 and ends[-1] <= self._identity.size):
            raise _DamagedIndexError
        found: list[list[int]] = places.tolist()
        return found

    def write_again(self) -> None:
        """Replace a damaged index.

        Raises:
            OSError: it cannot be stored.
            SampleError: the text file is being written, or is damaged.
        """
        count = len(self)
        self._offsets = self._written()
        if len(self) != count:
            raise SampleError(
                f"merlin.samples.file: the index of '{self._path}' was damaged; it is repaired, try again."
            )

    def _stored(self) -> NpyFile | None:
        """Return the stored offsets; None if there are none, or if they are damaged."""
        try:
            offsets = NpyFile(self._file)
        except (FileNotFoundError, ValueError):
            return None
        if offsets.dtype != np.int64 or offsets.is_fortran or len(offsets.shape) != 2 or offsets.shape[1] != 2:
            return None
        return None if offsets.has_more else offsets

    def _written(self) -> NpyFile:
        index = index_rows(self._path, self._delimiter, len(self._labels))
        offsets = self._without_header(index)
        if FileIdentity.of(self._path) != self._identity:
            raise SampleError(f"merlin.samples.file: '{self._path}' is being written; launch when it is complete.")
        if index.later_comments:
            LOGGER.info("%s: %d rows that begin with '#' are comments.", self._path.name, index.later_comments)
        if index.hash_line is not None:
            LOGGER.warning(
                "%s: line %d has a '#' within a row; it is text here, but NumPy, and so Merlin, ignores the rest of "
                "such a row.",
                self._path.name, index.hash_line,
            )  # fmt: skip
        write_npy(self._file, offsets)
        return NpyFile(self._file)

    def _without_header(self, index: RowIndex) -> Offsets:
        """Return the offsets of the samples: a first row that repeats the column labels is no sample."""
        check_comments(index.comments, self._labels, self._delimiter, self._path)
        if not len(index.offsets):
            return index.offsets
        rows = []
        with self._path.open("rb") as file:
            for start, stop in index.offsets[:2].tolist():
                file.seek(start)
                rows.append(_split(file.read(stop - start), self._delimiter))
        first, second = rows[0], rows[1] if len(rows) > 1 else []
        return index.offsets[1:] if is_header(first, second, self._labels, self._path) else index.offsets


class TabReader(CsvReader):
    """Reader of text in columns separated by white space."""

    suffix = ".tab"
    delimiter = None


class _TextTable:
    """Rows of a text file, read at their offsets."""

    def __init__(self, path: Path, index: _Index, delimiter: str | None) -> None:
        self._path, self._index, self._delimiter = path, index, delimiter
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._index)

    @functools.cached_property
    def width(self) -> int:
        return len(self.row(0)) if len(self) else 0

    def row(self, index: int) -> Sequence[str]:
        return self._repaired(lambda: self._read([self._index.row(index)]))[0]

    def rows(self, start: int, stop: int) -> list[Sequence[str]]:
        """Return the rows [start, stop), which are read at once."""
        return self._repaired(lambda: self._read(self._index.rows(start, stop)))

    def _repaired(self, read: Callable[[], list[Sequence[str]]]) -> list[Sequence[str]]:
        try:
            return read()
        except _DamagedIndexError:
            LOGGER.warning("The index of '%s' is damaged; it is written again.", self._path)
            self._index.write_again()
        return read()

    def _read(self, places: list[list[int]]) -> list[Sequence[str]]:
        """Return the rows between offsets.

        Raises:
            _DamagedIndexError: a row does not begin and end where a line does.
            EOFError: another process has truncated the file.
        """
        begin, end = max(0, places[0][0] - _BEFORE), places[-1][1]
        data = os.pread(self._file.fileno(), end + 1 - begin, begin)  # with the bytes around the rows
        if len(data) < end - begin:
            raise EOFError(f"'{self._path}' has been truncated")
        found: list[Sequence[str]] = []
        for first, last in places:
            start, stop = first - begin, last - begin
            is_begin = data[start - 1] == _LF if start else first == 0
            is_end = data[stop - 1] == _LF or stop == len(data) or data[stop] == _LF
            if not is_end or not (is_begin or data[:first] == BOM):
                raise _DamagedIndexError
            found.append(_split(data[start:stop], self._delimiter))
        return found


def _split(row: bytes, delimiter: str | None) -> list[str]:
    """Return the values of a row.

    Raises:
        _DamagedIndexError: it is more than one row, or no text.
    """
    try:
        text = row.decode()
    except UnicodeDecodeError as cause:
        raise _DamagedIndexError from cause
    if "\0" in text:
        raise _DamagedIndexError
    if '"' in text and delimiter is not None:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        if len(rows) != 1:
            raise _DamagedIndexError
        return rows[0]
    text = text.rstrip("\r\n")
    if "\n" in text:
        raise _DamagedIndexError
    return text.split(delimiter)
