"""Sample tables in text files. An index is built once, so that a worker reads only the rows that it runs."""

from __future__ import annotations

import csv
import functools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.samples.row_index import index_rows
from maestro_celery_plugin.samples.table import FileIdentity, SampleTable

__all__ = ["CsvReader", "TabReader"]


class CsvReader:
    """Reader of comma-separated text; values are not converted.

    Quoting is as in Python's `csv`: a field in double quotes may contain commas and line ends. The reader
    skips blank lines, and a header of lines that start with ``# ``, as `numpy.savetxt` writes it.
    """

    suffix: ClassVar[str] = ".csv"
    delimiter: ClassVar[str | None] = ","

    def open(self, path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
        """Open the file, and index it if it has no index yet; see `hookspecs.open_samples`."""
        if path.suffix != self.suffix:
            return None
        identity = FileIdentity.of(path)
        index = cache / f"{identity.content_key}.npy"
        if not index.exists():
            partial = cache / f".{identity.content_key}.{os.getpid()}.npy"
            np.save(partial, index_rows(path, self.delimiter))
            if FileIdentity.of(path) != identity:
                partial.unlink()
                raise SampleError(f"merlin.samples.file: '{path}' is being written; launch when it is complete.")
            partial.replace(index)
        return _TextTable(path, _mapped(index), self.delimiter)


def _mapped(index: Path) -> np.ndarray[Any, Any]:
    """Memory-map an index; an index without rows is only a header of 128 bytes and cannot be mapped."""
    has_rows = index.stat().st_size > 128
    return np.asarray(np.load(index, mmap_mode="r" if has_rows else None, allow_pickle=False))


class TabReader(CsvReader):
    """Reader of text in columns separated by white space."""

    suffix = ".tab"
    delimiter = None


class _TextTable:
    """Rows of a text file, read at their offsets."""

    def __init__(self, path: Path, offsets: np.ndarray[Any, Any], delimiter: str | None) -> None:
        self._offsets, self._delimiter = offsets, delimiter
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._offsets)

    @functools.cached_property
    def width(self) -> int:
        return len(self.row(0)) if len(self) else 0

    def row(self, index: int) -> Sequence[str]:
        start, stop = (int(offset) for offset in self._offsets[index])
        return _split(os.pread(self._file.fileno(), stop - start, start).decode(), self._delimiter)


def _split(row: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return row.split()
    if '"' not in row:
        return row.rstrip("\r\n").split(delimiter)
    return next(csv.reader([row], delimiter=delimiter))
