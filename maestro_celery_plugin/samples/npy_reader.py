"""Sample tables in NumPy's `.npy` files: memory-mapped, and never unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.samples.table import SampleTable

__all__ = ["NpyReader"]

Array = np.ndarray[Any, Any]


class NpyReader:
    """Reader of NumPy's `.npy` files."""

    def open(self, path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
        """Memory-map the array; see `hookspecs.open_samples`."""
        if path.suffix != ".npy":
            return None
        array = _mapped(path)
        if array.dtype.names:
            return _StructuredTable(array, labels, path)
        if array.ndim == 0 or array.ndim > 2:
            raise SampleError(
                f"merlin.samples.file: '{path}' has {array.ndim} dimensions; an array of rows and columns is needed."
            )
        return _ArrayTable(array, path)


def _mapped(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            dtype = _header(file)[2]
            if dtype.hasobject:
                raise SampleError(
                    f"merlin.samples.file: '{path}' contains Python objects, which are pickled code and are not read; "
                    "save an array of numbers or text (`array.astype(str)`)."
                )
            file.seek(0)
            if 0 in _header(file)[0]:  # an empty array cannot be mapped
                return np.empty((0, 0))
        # A plain array is faster to index than `np.memmap`; it keeps the map open.
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, OSError, EOFError) as cause:
        raise SampleError(f"merlin.samples.file: '{path}' cannot be read as .npy: {cause}") from cause


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of the array in a file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


class _ArrayTable:
    """A table in a plain array; an array with one dimension is one column."""

    def __init__(self, array: Array, path: Path) -> None:
        self._array, self._path = array if array.ndim == 2 else array[:, None], path
        self._has_python_text = array.dtype.kind in "biu" or array.dtype == np.float64

    def __len__(self) -> int:
        return len(self._array)

    @property
    def width(self) -> int:
        return int(self._array.shape[1])

    def row(self, index: int) -> Sequence[str]:
        values = self._array[index]
        if self._has_python_text:  # Python's numbers have the same text as NumPy's and are faster to format
            return [str(value) for value in values.tolist()]
        return [_text(value, index, self._path) for value in values]


class _StructuredTable:
    """A table in a structured array; each label is the name of a field."""

    def __init__(self, array: Array, labels: Sequence[str], path: Path) -> None:
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
        self._array, self._labels, self._path = array.reshape(-1), tuple(labels), path

    def __len__(self) -> int:
        return len(self._array)

    @property
    def width(self) -> int:
        return len(self._labels)

    def row(self, index: int) -> Sequence[str]:
        record = self._array[index]
        return [_text(record[label], index, self._path) for label in self._labels]


def _text(value: Any, row: int, path: Path) -> str:
    """Return the shortest text that reads back as the same value of its type: ``0.1``, ``3``, ``text``."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError as cause:
        raise SampleError(f"merlin.samples.file: row {row} of '{path}' is not UTF-8 text: {cause}") from cause
