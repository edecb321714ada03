"""Sample tables in NumPy's `.npy` files, which are read row by row, and never unpickled."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.files import TRANSIENT_ERRORS
from maestro_celery_plugin.samples.npy_file import Array, NpyFile
from maestro_celery_plugin.samples.table import FileIdentity, SampleTable

__all__ = ["NpyReader"]

# Elements that are read at once.
_BLOCK = 1 << 14


class NpyReader:
    """Reader of NumPy's `.npy` files."""

    def open(self, path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
        """Open the array; see `hookspecs.open_samples`.

        Raises:
            OSError: the file cannot be read now, because of a fault of the machine.
        """
        if path.suffix != ".npy":
            return None
        array = _opened(path)
        _check_texts_once(array, path, cache)
        if array.dtype.names:
            return _StructuredTable(array, labels, path)
        dimensions = len(array.shape)
        if dimensions not in (1, 2):
            raise SampleError(
                f"merlin.samples.file: '{path}' has {dimensions} dimensions; an array of rows and columns is needed."
            )
        return _ArrayTable(array, path)


def _opened(path: Path) -> NpyFile:
    try:
        array = NpyFile(path)
    except (ValueError, OSError, EOFError) as cause:
        if isinstance(cause, OSError) and cause.errno in TRANSIENT_ERRORS:
            raise
        raise SampleError(f"merlin.samples.file: '{path}' cannot be read as .npy: {cause}") from cause
    if array.dtype.hasobject:
        raise SampleError(
            f"merlin.samples.file: '{path}' contains Python objects, which are pickled code and are not read; "
            "save an array of numbers or text (`array.astype(str)`), or let generate.cmd write a new file."
        )
    return array


def _check_texts_once(array: NpyFile, path: Path, cache: Path) -> None:
    """Check all texts when the table is opened first: otherwise, a sample would find the fault.

    Raises:
        SampleError: a value is no text that a script can contain.
    """
    names = [name for name in array.dtype.names or () if array.dtype[name].kind in "SU"]
    if not names and array.dtype.kind not in "SU":
        return
    checked = cache / f"{FileIdentity.of(path).content_key}.checked"
    if checked.exists():
        return
    count = math.prod(array.shape)
    for start in range(0, count, _BLOCK):
        values = array.read(start, min(_BLOCK, count - start))
        for column in [values[name] for name in names] or [values]:
            for place, value in enumerate(_values(column, _row_of(array, start), path), start):
                _text(value, _row_of(array, place), path)
    with contextlib.suppress(OSError):  # such as a full disk: the next process checks it again
        checked.touch()


def _row_of(array: NpyFile, place: int) -> int:
    """Return the row of the element at a place of the file."""
    if len(array.shape) < 2:
        return place
    rows, width = array.shape[:2]
    return place % rows if array.is_fortran else place // width


class _ArrayTable:
    """A table in a plain array; an array with one dimension is one column."""

    def __init__(self, array: NpyFile, path: Path) -> None:
        self._array, self._path = array, path
        self._count, self.width = array.shape if len(array.shape) == 2 else (*array.shape, 1)
        self._has_python_text = array.dtype.kind in "biu" or array.dtype == np.float64

    def __len__(self) -> int:
        return self._count if self.width else 0

    def row(self, index: int) -> Sequence[str]:
        if self._array.is_fortran and self.width > 1:
            values = np.concatenate([self._array.read(column * self._count + index) for column in range(self.width)])
        else:
            values = self._array.read(index * self.width, self.width)
        if self._has_python_text:  # Python's numbers have the same text as NumPy's and are faster to format
            return [str(value) for value in values.tolist()]
        return [_text(value, index, self._path) for value in _values(values, index, self._path)]

    def rows(self, start: int, stop: int) -> list[Sequence[str]]:
        """Return the rows [start, stop), which are read at once."""
        if not self._has_python_text:
            return [self.row(index) for index in range(start, stop)]
        count = stop - start
        if self._array.is_fortran and self.width > 1:
            columns = [self._array.read(column * self._count + start, count) for column in range(self.width)]
            values = np.stack(columns, axis=1)
        else:
            values = self._array.read(start * self.width, count * self.width).reshape(count, self.width)
        return [[str(value) for value in row] for row in values.tolist()]


class _StructuredTable:
    """A table in a structured array; each label is the name of a field."""

    def __init__(self, array: NpyFile, labels: Sequence[str], path: Path) -> None:
        fields = array.dtype.names or ()
        for label in labels:
            if label not in fields:
                raise SampleError(
                    f"merlin.samples.column_labels: '{path}' has no field '{label}'; "
                    f"its fields are {', '.join(fields)}."
                )
            if array.dtype[label].shape or array.dtype[label].names:
                raise SampleError(
                    f"merlin.samples.file: the field '{label}' of '{path}' has several values per row; one is needed."
                )
        self._array, self._labels, self._path = array, tuple(labels), path
        self._is_fortran = array.is_fortran and len(array.shape) > 1

    def __len__(self) -> int:
        return math.prod(self._array.shape)

    @property
    def width(self) -> int:
        return len(self._labels)

    def row(self, index: int) -> Sequence[str]:
        position = index
        if self._is_fortran:
            shape = self._array.shape
            position = int(np.ravel_multi_index(np.unravel_index(index, shape), shape, order="F"))
        record = self._array.read(position)
        values = (_values(record[label], index, self._path)[0] for label in self._labels)
        return [_text(value, index, self._path) for value in values]


def _text(value: Any, row: int, path: Path) -> str:
    """Return the shortest text that reads back as the same value of its type: ``0.1``, ``3``, ``text``.

    Raises:
        SampleError: the value is no text that a script can contain.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except UnicodeError as cause:
        raise SampleError(f"merlin.samples.file: row {row} of '{path}' is not UTF-8 text: {cause}") from cause
    if "\0" in text:
        raise SampleError(f"merlin.samples.file: row {row} of '{path}' has a NUL character, which a shell would drop.")
    return text


def _values(array: Array, row: int, path: Path) -> list[Any]:
    """Return the elements of an array.

    Raises:
        SampleError: an element is text with characters that Unicode does not have.
    """
    try:
        return list(array)
    except (SystemError, ValueError) as cause:  # NumPy does not check the code points in a file
        raise SampleError(f"merlin.samples.file: row {row} of '{path}' is not Unicode text: {cause}") from cause
