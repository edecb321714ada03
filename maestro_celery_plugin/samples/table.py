"""The sample table: rows of text, read in place, never loaded whole.

The first to open a table, `maestro run`, notes its size and time of change; a table that is not the same
any more is refused, by workers that open it later and for rows that are read later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.hookspecs import SampleTable
from maestro_celery_plugin.study.manifest import write_atomically

__all__ = ["FileIdentity", "open_table"]


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """What tells a file from another one of the same name, and from itself after a change.

    Attributes:
        path: Its absolute path.
        size: Bytes.
        mtime_ns: Time of its last change in nanoseconds.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """Look at a file.

        Raises:
            OSError: it is not there.
        """
        status = path.stat()
        return cls(str(path.absolute()), status.st_size, status.st_mtime_ns)

    @property
    def place(self) -> str:
        """Name for what is kept about the file's path, distinct for files of the same name."""
        return f"{Path(self.path).name}.{hashlib.sha256(self.path.encode()).hexdigest()[:12]}"

    @property
    def content(self) -> str:
        """Name for what is kept about the file's content, which does not outlive a change."""
        return f"{self.place}.{self.size}.{self.mtime_ns}"


def open_table(path: Path, labels: Sequence[str], cache: Path) -> SampleTable:
    """Open the sample table and check that it has rows and one column per label.

    Args:
        path: The file.
        labels: The column labels.
        cache: Directory for an index and for what the file was like when it was opened first.

    Raises:
        SampleError: there is no such file, no reader for it, no row in it, the columns do not fit, or it
            has changed since it was opened first.
    """
    from maestro_celery_plugin.plugins import plugin_manager

    if not path.is_file():
        raise SampleError(
            f"merlin.samples.file: there is no file '{path}'; check its name, or let generate.cmd write it."
        )
    identity = _noted(FileIdentity.of(path), cache)
    table: SampleTable | None = plugin_manager().hook.open_samples(path=path, labels=labels, cache=cache)
    if table is None:
        raise SampleError(
            f"merlin.samples.file: no reader for '{path.name}'; "
            "files ending in .npy, .csv and .tab can be read."
        )
    if len(table) == 0:
        raise SampleError(f"merlin.samples.file: '{path}' holds no samples; it needs at least one row.")
    if table.width != len(labels):
        raise SampleError(
            f"merlin.samples.column_labels: {len(labels)} labels ({', '.join(labels)}), "
            f"but '{path}' has {table.width} columns; there must be one label per column."
        )
    return _WatchedTable(table, identity)


def _noted(identity: FileIdentity, cache: Path) -> FileIdentity:
    """Return what the file was like when it was opened first.

    Raises:
        SampleError: it is not like that any more.
    """
    note = cache / f"{identity.place}.json"
    try:
        first = FileIdentity(**json.loads(note.read_text()))
    except FileNotFoundError:
        write_atomically(note, json.dumps(dataclasses.asdict(identity)))
        return identity
    if identity != first:
        raise _changed(first.path)
    return first


def _changed(path: str) -> SampleError:
    return SampleError(
        f"merlin.samples.file: '{path}' has changed since the study was launched, so its rows may not be "
        "the samples that have run; put the file back, or launch a new study."
    )


class _WatchedTable:
    """A table whose rows are refused when the file has changed."""

    def __init__(self, table: SampleTable, identity: FileIdentity) -> None:
        self._table, self._identity = table, identity

    def __len__(self) -> int:
        return len(self._table)

    @property
    def width(self) -> int:
        """The number of columns."""
        return self._table.width

    def row(self, index: int) -> Sequence[str]:
        """Return a row of the file as it was when the study was launched.

        Raises:
            SampleError: the file has changed or is gone.
        """
        self._check()
        row = self._table.row(index)
        self._check()
        return row

    def _check(self) -> None:
        try:
            status = Path(self._identity.path).stat()
        except OSError as cause:
            raise SampleError(
                f"merlin.samples.file: '{self._identity.path}' cannot be read any more: {cause}"
            ) from cause
        if (status.st_size, status.st_mtime_ns) != (self._identity.size, self._identity.mtime_ns):
            raise _changed(self._identity.path)
