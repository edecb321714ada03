"""The sample table: rows of text, read in place, never loaded whole.

An `.npy` file is memory-mapped. Text files are indexed once, when the study is launched: the index
holds the byte offset of each row, so that a worker reads only the rows it runs.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.hookspecs import SampleTable, hookimpl

__all__ = ["CsvReader", "NpyReader", "TabReader", "open_table"]

_CHUNK = 16 << 20  # bytes of a text file that are looked at in one go


def open_table(path: Path, labels: Sequence[str], cache: Path) -> SampleTable:
    """Open the sample table and check that it has rows and one column per label.

    Raises:
        SampleError: there is no such file, no reader for it, no row in it, or the columns do not fit.
    """
    from maestro_celery_plugin.plugins import plugin_manager

    if not path.is_file():
        raise SampleError(f"merlin.samples.file: there is no file '{path}'; generate.cmd has to write it.")
    table: SampleTable | None = plugin_manager().hook.open_samples(path=path, labels=labels, cache=cache)
    if table is None:
        raise SampleError(
            f"merlin.samples.file: no reader for '{path.name}'; files ending in .npy, .csv and .tab can be read."
        )
    if len(table) == 0:
        raise SampleError(f"merlin.samples.file: '{path}' holds no samples.")
    if table.width != len(labels):
        raise SampleError(
            f"merlin.samples.column_labels: {len(labels)} labels ({', '.join(labels)}), "
            f"but '{path}' has {table.width} columns; there must be one label per column."
        )
    return table


class NpyReader:
    """Reader of NumPy's `.npy` files."""

    @hookimpl
    def open_samples(self, path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
        """Memory-map the array; see `hookspecs.open_samples`."""
        if path.suffix != ".npy":
            return None
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as cause:
            raise SampleError(f"merlin.samples.file: '{path}' cannot be read as .npy: {cause}") from cause
        if array.dtype.names:
            return _StructuredTable(array, labels, path)
        if array.ndim == 0 or array.ndim > 2:
            raise SampleError(
                f"merlin.samples.file: '{path}' has {array.ndim} dimensions; an array of rows and columns is needed."
            )
        return _ArrayTable(array)


class _ArrayTable:
    """A plain array; one dimension is one column."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array if array.ndim == 2 else array[:, None]

    def __len__(self) -> int:
        return len(self._array)

    @property
    def width(self) -> int:
        return int(self._array.shape[1])

    def row(self, index: int) -> Sequence[str]:
        return [_text(value) for value in self._array[index]]


class _StructuredTable:
    """A structured array; labels name its fields."""

    def __init__(self, array: np.ndarray[Any, Any], labels: Sequence[str], path: Path) -> None:
        fields = array.dtype.names or ()
        unknown = [label for label in labels if label not in fields]
        if unknown:
            raise SampleError(
                f"merlin.samples.column_labels: '{path}' has no field '{unknown[0]}'; "
                f"its fields are {', '.join(fields)}."
            )
        self._array, self._labels = array.reshape(-1), tuple(labels)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def width(self) -> int:
        return len(self._labels)

    def row(self, index: int) -> Sequence[str]:
        return [_text(self._array[label][index]) for label in self._labels]


def _text(value: Any) -> str:
    """Return the shortest text that reads back as the same value: ``0.1``, ``3``, ``text``."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.floating):
        return np.format_float_positional(value, trim="0") if 1e-4 <= abs(value) < 1e16 else str(value)
    return str(value)


class CsvReader:
    """Reader of comma-separated text; values keep their text.

    Quoting is as in Python's `csv`: a field in double quotes may hold commas and line ends. Leading
    lines that start with ``# ``, as `numpy.savetxt` writes them, are a header and skipped; so are empty
    lines.
    """

    suffix: ClassVar[str] = ".csv"
    delimiter: ClassVar[str | None] = ","

    @hookimpl
    def open_samples(self, path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
        """Index the file, unless that has been done; see `hookspecs.open_samples`."""
        if path.suffix != self.suffix:
            return None
        index = cache / f"{path.name}.index.npy"
        if not index.exists():
            offsets = _index(path, self.delimiter, len(labels))
            partial = cache / f".{path.name}.index.{os.getpid()}.npy"
            np.save(partial, offsets)
            partial.replace(index)
        return _TextTable(path, np.load(index, mmap_mode="r"), self.delimiter)


class TabReader(CsvReader):
    """Reader of text in columns separated by white space."""

    suffix = ".tab"
    delimiter = None


class _TextTable:
    """Rows of a text file, found by their offsets; the last offset is the end of the last row."""

    def __init__(self, path: Path, offsets: np.ndarray[Any, Any], delimiter: str | None) -> None:
        self._path, self._offsets, self._delimiter = path, offsets, delimiter
        if len(offsets) > 1 and path.stat().st_size < int(offsets[-1, 1]):
            raise SampleError(f"merlin.samples.file: '{path}' has become shorter since the study was launched.")

    def __len__(self) -> int:
        return len(self._offsets)

    @functools.cached_property
    def _fd(self) -> int:
        return os.open(self._path, os.O_RDONLY)

    @functools.cached_property
    def width(self) -> int:
        return len(self.row(0)) if len(self) else 0

    def row(self, index: int) -> Sequence[str]:
        start, stop = (int(offset) for offset in self._offsets[index])
        return _split(os.pread(self._fd, stop - start, start).decode(), self._delimiter)


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return next(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter))


def _index(path: Path, delimiter: str | None, width: int) -> np.ndarray[Any, Any]:
    """Return an array (rows, 2) of the first byte of each row and the byte behind it.

    Raises:
        SampleError: a row has another number of columns than the first one, or is no UTF-8.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        plain = delimiter is not None and not any((part == ord('"')).any() for part in _chunks(data))
        rows = _plain_rows(data, path, delimiter) if plain else _quoted_rows(path, delimiter)
    except UnicodeDecodeError as cause:
        raise SampleError(f"merlin.samples.file: '{path}' is no UTF-8 text: {cause}") from cause
    return rows


def _chunks(data: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    return (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))


def _positions(data: np.ndarray[Any, Any], byte: int) -> np.ndarray[Any, Any]:
    """Return where `byte` stands in `data`, looking at one chunk at a time."""
    found = [np.flatnonzero(part == byte) + number * _CHUNK for number, part in enumerate(_chunks(data))]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _plain_rows(data: np.ndarray[Any, Any], path: Path, delimiter: str | None) -> np.ndarray[Any, Any]:
    """Index a file without quotes: every line end ends a row."""
    ends = _positions(data, ord("\n"))
    if len(data) and data[-1] != ord("\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts
    lengths = lengths - ((lengths > 0) & (data[np.maximum(ends - 1, 0)] == ord("\r")))
    keep = lengths > 0
    for line in range(len(starts)):
        if not keep[line]:
            continue
        if bytes(data[starts[line] : starts[line] + 2]) not in (b"# ", b"#\n"):
            break
        keep[line] = False
    starts, lengths = starts[keep], lengths[keep]
    _check_widths(data, starts, starts + lengths, path, ord(delimiter or ","))
    return np.stack([starts, starts + lengths], axis=1)


def _check_widths(
    data: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], path: Path, delimiter: int
) -> None:
    commas = _positions(data, delimiter)
    widths = np.searchsorted(commas, ends) - np.searchsorted(commas, starts) + 1
    ragged = np.flatnonzero(widths != widths[0]) if len(widths) else widths
    if len(ragged):
        _raise_ragged(path, int(ragged[0]), int(widths[ragged[0]]), int(widths[0]))


def _raise_ragged(path: Path, row: int, width: int, expected: int) -> None:
    raise SampleError(
        f"merlin.samples.file: row {row} of '{path}' has {width} columns, row 0 has {expected}; "
        "all rows need the same."
    )


def _quoted_rows(path: Path, delimiter: str | None) -> np.ndarray[Any, Any]:
    """Index a file row by row, as Python's `csv` reads it."""
    offsets: list[tuple[int, int]] = []
    expected = 0
    with path.open("rb") as file:
        for start, lines in _logical_rows(file, quoted=delimiter is not None):
            text = lines.decode().rstrip("\r\n")
            if not text.strip() or (not offsets and (text + " ").startswith("# ")):
                continue
            width = len(_split(text, delimiter))
            expected = expected or width
            if width != expected:
                _raise_ragged(path, len(offsets), width, expected)
            offsets.append((start, start + len(text.encode())))
    return np.array(offsets, dtype=np.int64).reshape(-1, 2)


def _logical_rows(file: io.BufferedReader, *, quoted: bool) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of each row; a row goes on while a double quote is open."""
    start, row = 0, b""
    for line in file:
        row += line
        if quoted and row.count(b'"') % 2:
            continue
        yield start, row
        start, row = start + len(row), b""
    if row:
        yield start, row
