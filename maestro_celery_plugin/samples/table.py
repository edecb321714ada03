"""The sample table: rows of text that are read one at a time; the whole table is never in memory.

The first process that opens a table, `maestro run`, stores the size and modification time of its file. Workers
that open the table later refuse a file that has changed, and refuse rows after a change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count, Word
from maestro_celery_plugin.errors import DamagedFileError, SampleError
from maestro_celery_plugin.files import TRANSIENT_ERRORS, read_text, write_atomically

__all__ = [
    "SUFFIXES",
    "FileIdentity",
    "SampleTable",
    "check_is_file",
    "forget_identity",
    "recorded_identity",
    "rows_at",
    "rows_of",
    "verified_table",
]

# Precisions of modification times.
_PRECISIONS_NS = (1, 100, 1_000, 1_000_000_000)

_Read = TypeVar("_Read")

# Rows are read at once if they are at least one in this many of the rows between the first and the last.
_SPREAD = 4


class SampleTable(Protocol):
    """Rows of text, read one at a time from a file that may be larger than memory."""

    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    def width(self) -> int:
        """The number of columns."""

    def row(self, index: int) -> Sequence[str]:
        """Return the values of one row as they appear in scripts; several threads may call this at the same time."""


# The suffixes of the files that this package reads itself.
SUFFIXES = (".npy", ".csv", ".tab")


def rows_of(table: SampleTable, start: int, stop: int) -> Sequence[Sequence[str]]:
    """Return the rows [start, stop) of a table, at once if its reader has a method `rows`."""
    if start >= stop:
        return []
    read: Callable[[int, int], Sequence[Sequence[str]]] | None = getattr(table, "rows", None)
    return [table.row(index) for index in range(start, stop)] if read is None else read(start, stop)


def rows_at(table: SampleTable, indices: Sequence[int]) -> list[Sequence[str]]:
    """Return rows in the order of ascending indices; those that are close together are read at once.

    Raises:
        SampleError: the file has changed or does not exist any more.
        OSError: the file cannot be read now.
    """
    if not indices:
        return []
    start, stop = indices[0], indices[-1] + 1
    if 0 < stop - start <= _SPREAD * len(indices):
        rows = rows_of(table, start, stop)
        return list(rows) if stop - start == len(indices) else [rows[index - start] for index in indices]
    return [table.row(index) for index in indices]


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """The identity of a file; another file of the same name, or a changed file, has another identity.

    Attributes:
        path: Absolute path.
        size: Size in bytes.
        mtime_ns: Modification time in Unix nanoseconds.
    """

    path: Word
    size: Count
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """Return the identity of a file.

        Raises:
            OSError: the file does not exist.
        """
        status = path.stat()
        return cls(str(path.absolute()), status.st_size, status.st_mtime_ns)

    def matches(self, size: int, mtime_ns: int) -> bool:
        """Tell whether a size and a modification time are those of this file, as another machine may see them.

        Hosts that reach a file system in different ways see times of different precision: SFTP shows whole seconds, SMB
        100 ns. So the precision of the coarser time counts.
        """
        return size == self.size and any(
            self.mtime_ns // unit == mtime_ns // unit and not (self.mtime_ns % unit and mtime_ns % unit)
            for unit in _PRECISIONS_NS
        )

    @property
    def path_key(self) -> str:
        """Name for data about the path, different for files of the same name in other directories."""
        return f"{Path(self.path).name}.{hashlib.sha256(self.path.encode()).hexdigest()[:12]}"

    @property
    def content_key(self) -> str:
        """Name for data about the content, different after each change."""
        return f"{self.path_key}.{self.size}.{self.mtime_ns}"


def check_is_file(path: Path) -> None:
    """Check that the sample file exists.

    Raises:
        SampleError: it does not exist.
    """
    if not path.is_file():
        raise SampleError(
            f"merlin.samples.file: there is no file '{path}'; check its name, or let generate.cmd write it."
        )


def forget_identity(path: Path, cache: Path) -> None:
    """Forget the identity of a file that another one replaces, before any other process knows the file.

    Raises:
        OSError: the stored identity cannot be removed.
    """
    (cache / f"{FileIdentity(str(path.absolute()), 0, 0).path_key}.json").unlink(missing_ok=True)


def recorded_identity(path: Path, cache: Path) -> FileIdentity:
    """Return the identity of the sample file at its first opening; the first call stores it.

    Args:
        path: The file.
        cache: Directory in which the identity is stored.

    Raises:
        SampleError: the file does not exist, or has changed since its first opening.
        OSError: the file cannot be read now, or its identity cannot be stored.
    """
    check_is_file(path)
    identity = FileIdentity.of(path)
    stored = cache / f"{identity.path_key}.json"
    try:
        first = conversion.from_json(FileIdentity, read_text(stored))
    except FileNotFoundError:
        write_atomically(stored, conversion.to_json(identity))
        return identity
    except ValueError as cause:
        remedy = f"remove it if '{path}' is as it was at the launch, or launch the study again"
        raise DamagedFileError.at(stored, str(cause), remedy) from cause
    if identity.path != first.path or not first.matches(identity.size, identity.mtime_ns):
        raise _changed(first.path)
    return first


def verified_table(
    table: SampleTable | None, identity: FileIdentity, labels: Sequence[str], rows: int | None = None
) -> SampleTable:
    """Return a table that has rows and one column per label, and that raises an error after a change of its file.

    Args:
        table: The table as its reader has opened it; None when no reader supports the file.
        identity: The identity of the file at its first opening.
        labels: The column labels.
        rows: The number of rows at the launch; None at the launch itself.

    Raises:
        SampleError: there is no table, it has no row, its columns do not match the labels, or it has another number of
            rows than at the launch, because another release reads it in another way.
    """
    path = identity.path
    if table is None:
        raise SampleError(
            f"merlin.samples.file: no reader for '{Path(path).name}'; files with the suffix .npy, .csv or .tab can be "
            "read."
        )
    if len(table) == 0:
        raise SampleError(f"merlin.samples.file: '{path}' has no samples; at least one row is needed.")
    if table.width != len(labels):
        found = "1 label" if len(labels) == 1 else f"{len(labels)} labels"
        columns = "1 column" if table.width == 1 else f"{table.width} columns"
        raise SampleError(
            f"merlin.samples.column_labels: {found} ({', '.join(labels)}), but '{path}' has {columns}; one label per "
            "column is needed."
        )
    if rows is not None and len(table) != rows:
        raise SampleError(
            f"merlin.samples.file: '{path}' has {len(table)} samples, but had {rows} at the launch of the study, so "
            "this release reads it in another way; continue the study with the release that has launched it."
        )
    return _WatchedTable(table, identity)


def _changed(path: str) -> SampleError:
    return SampleError(
        f"merlin.samples.file: '{path}' has changed since the launch of the study, so its rows may not be "
        "the samples that have run; restore the file, or launch a new study."
    )


class _WatchedTable:
    """A table that raises an error instead of returning rows when its file has changed."""

    def __init__(self, table: SampleTable, identity: FileIdentity) -> None:
        self._table, self._identity, self._width = table, identity, table.width

    def __len__(self) -> int:
        return len(self._table)

    @property
    def width(self) -> int:
        """The number of columns."""
        return self._width

    def row(self, index: int) -> Sequence[str]:
        """Return a row of the file as it was at the launch of the study.

        Raises:
            SampleError: the file has changed or does not exist any more.
            OSError: the file cannot be read now, because of a fault of the machine.
        """
        row = self._checked(lambda: self._table.row(index))
        self._check_widths([row], index)
        return row

    def rows(self, start: int, stop: int) -> Sequence[Sequence[str]]:
        """Return several rows as they were at the launch of the study, with one check of the file.

        Raises:
            SampleError: the file has changed or does not exist any more.
            OSError: the file cannot be read now, because of a fault of the machine.
        """
        rows = self._checked(lambda: rows_of(self._table, start, stop))
        self._check_widths(rows, start)
        return rows

    def _check_widths(self, rows: Sequence[Sequence[str]], start: int) -> None:
        """Check that rows have a value for each column: a damaged file may have the size and the time of the launch.

        Raises:
            SampleError: a row has more values, or fewer.
        """
        for index, row in enumerate(rows, start):
            if len(row) != self._width:
                raise SampleError(
                    f"merlin.samples.file: row {index} of '{self._identity.path}' has {len(row)} columns, but had "
                    f"{self._width} at the launch of the study, so it is damaged; restore it, or launch a new study."
                )

    def _checked(self, read: Callable[[], _Read]) -> _Read:
        try:
            result = read()
        except Exception as cause:
            self._check()  # any error may be the result of a change of the file
            if isinstance(cause, EOFError):
                raise _changed(self._identity.path) from cause
            raise
        self._check()  # last: a change before and a change while the row was read are errors
        return result

    def _check(self) -> None:
        try:
            status = os.stat(self._identity.path)  # noqa: PTH116 (a Path costs time, for each sample)
        except OSError as cause:
            if cause.errno in TRANSIENT_ERRORS:
                raise
            raise SampleError(
                f"merlin.samples.file: '{self._identity.path}' cannot be read any more: {cause}"
            ) from cause
        if not self._identity.matches(status.st_size, status.st_mtime_ns):
            raise _changed(self._identity.path)
