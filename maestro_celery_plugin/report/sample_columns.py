"""The columns of the table of samples, for the samples of one step record at a time."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.report.sample_status import RecordSamples, table_of
from maestro_celery_plugin.samples.table import SampleTable, rows_at
from maestro_celery_plugin.states import Outcome

__all__ = ["FIXED_COLUMNS", "Column", "Kind", "RecordColumns", "Source", "columns_of"]

Indices = np.ndarray[Any, Any]


class Source(enum.Enum):
    """Where the values of a column come from."""

    FIXED = enum.auto()
    """The study: every table has the column."""
    PARAMETER = enum.auto()
    """A parameter of Maestro."""
    LABEL = enum.auto()
    """A column of the sample table."""
    RESULT = enum.auto()
    """A file of the sample."""


class Kind(enum.Enum):
    """What the values of a column are."""

    INTEGER = enum.auto()
    """Integers."""
    NUMBER = enum.auto()
    """Numbers."""
    TEXT = enum.auto()
    """Texts."""
    ANY = enum.auto()
    """Numbers if all of them are numbers, also as text; else texts."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: Its name in the table, which is unique.
        kind: What its values are.
        source: Where they come from.
        key: Its name there.
        file: For a result, the number of the file.
    """

    name: str
    kind: Kind = Kind.ANY
    source: Source = Source.FIXED
    key: str = ""
    file: int = 0


# In the order of a file; parameters and labels follow the third one, results the last one.
FIXED_COLUMNS = tuple(
    Column(name, kind, key=name)
    for name, kind in (
        ("id", Kind.INTEGER),
        ("step", Kind.TEXT),
        ("record", Kind.TEXT),
        ("state", Kind.TEXT),
        ("exit_code", Kind.INTEGER),
        ("attempts", Kind.INTEGER),
        ("start", Kind.NUMBER),
        ("duration_s", Kind.NUMBER),
        ("worker", Kind.TEXT),
        ("node", Kind.TEXT),
        ("directory", Kind.TEXT),
    )
)
_HEAD = 3


def columns_of(
    parameters: Iterable[str], labels: Iterable[str], results: Iterable[tuple[int, str, str]] = ()
) -> list[Column]:
    """Return all columns. A name that is in use already gets a prefix: ``param.``, ``sample.``, or that of its file.

    Args:
        parameters: Names of parameters.
        labels: Column labels.
        results: For each value in result files the number of the file, its prefix, and the name of the value.
    """
    used = {column.name for column in FIXED_COLUMNS}

    def named(name: str, prefix: str) -> str:
        while name in used:
            name = f"{prefix}.{name}"
        used.add(name)
        return name

    inputs = [Column(named(key, "param"), Kind.ANY, Source.PARAMETER, key) for key in dict.fromkeys(parameters)]
    inputs += [Column(named(key, "sample"), Kind.ANY, Source.LABEL, key) for key in dict.fromkeys(labels)]
    outputs = [Column(named(key, prefix), Kind.ANY, Source.RESULT, key, file) for file, prefix, key in results]
    return [*FIXED_COLUMNS[:_HEAD], *inputs, *FIXED_COLUMNS[_HEAD:], *outputs]


_STATES = np.array(["pending"] * (1 + max(Outcome)), object)
_STATES[[Outcome.FINISHED, Outcome.STOPPED_STUDY]] = "finished"
_STATES[[Outcome.FAILED, Outcome.HARD_FAILED]] = "failed"


class RecordColumns:
    """The values of the columns for the samples of one step record; None is a missing value.

    Args:
        record: The step record.
        parameters: The values of its parameters by name.
        working: A mask of the writers that may still end an attempt.
        writers: The names of the workers by the number of the writer.
        nodes: The machines of the workers by the number of the writer.
    """

    def __init__(
        self,
        record: RecordSamples,
        parameters: Mapping[str, str],
        working: Indices,
        writers: Sequence[str],
        nodes: Callable[[], Sequence[str | None]],
    ) -> None:
        self.record, self.parameters = record, parameters
        self._working, self._writers, self._find_nodes = working, writers, nodes

    def __len__(self) -> int:
        return self.record.manifest.samples

    @functools.cached_property
    def _running(self) -> Indices:
        return self.record.running(self._working)

    @functools.cached_property
    def _table(self) -> SampleTable | None:
        return table_of(self.record.manifest)

    @functools.cached_property
    def _fixed(self) -> dict[str, Callable[[Indices], list[Any]]]:
        manifest = self.record.manifest
        return {
            "id": lambda rows: rows.tolist() if manifest.sampled else [None] * len(rows),
            "step": lambda rows: [manifest.step] * len(rows),
            "record": lambda rows: [manifest.name] * len(rows),
            "state": self._state,
            "exit_code": self._exit_code,
            "attempts": lambda rows: self.record.attempts[rows].tolist(),
            "start": lambda rows: _with_gaps(self.record.started_at[rows].round(3), self.has_started(rows)),
            "duration_s": self._duration_s,
            "worker": lambda rows: self._of_writer(rows, self._writers),
            "node": lambda rows: self._of_writer(rows, self._find_nodes()),
            "directory": self.directories,
        }

    def values(self, column: Column, rows: Indices) -> list[Any]:
        """Return the values of a column of the study, a parameter or a label, for ascending indices of samples."""
        if column.source is Source.PARAMETER:
            return [self.parameters.get(column.key)] * len(rows)
        return self._fixed[column.key](rows)

    def label_values(self, labels: Sequence[str], rows: Indices) -> list[list[Any]]:
        """Return the values of labels, for ascending indices of samples.

        Raises:
            SampleError: the sample table cannot be read any more.
        """
        found: dict[str, list[Any]] = {}
        known = self.record.manifest.labels
        if self._table is not None and any(label in known for label in labels):
            places = [known.index(label) for label in labels if label in known]
            lines = rows_at(self._table, rows.tolist())
            found = {known[place]: [line[place] for line in lines] for place in places}
        return [found.get(label) or [None] * len(rows) for label in labels]

    def has_started(self, rows: Indices) -> Indices:
        """Return a mask of the samples that have started."""
        mask: Indices = self.record.states.started[rows] > 0
        return mask

    def has_ended(self, rows: Indices) -> Indices:
        """Return a mask of the samples that have finished or failed."""
        mask: Indices = self.record.states.outcome[rows] != Outcome.OPEN
        return mask

    def directories(self, rows: Indices) -> list[str]:
        """Return the directories of samples."""
        manifest = self.record.manifest
        if not manifest.sampled:
            return [manifest.workspace] * len(rows)
        workspace = str(Path(manifest.workspace))
        paths = manifest.paths.of_many(rows.tolist())
        return [workspace if path == "." else f"{workspace}/{path}" for path in paths]

    def _state(self, rows: Indices) -> list[Any]:
        states = _STATES[self.record.states.outcome[rows]]
        states[self._running[rows]] = "running"
        found: list[Any] = states.tolist()
        return found

    def _exit_code(self, rows: Indices) -> list[Any]:
        states = self.record.states
        return _with_gaps(states.code(rows), states.has_code(rows))

    def _duration_s(self, rows: Indices) -> list[Any]:
        states = self.record.states
        seconds = (self.record.durations.us[rows].astype(np.float64) / 1e6).round(6)
        return _with_gaps(seconds, states.has_code(rows) & ~self._running[rows])

    def _of_writer(self, rows: Indices, names: Sequence[str | None]) -> list[Any]:
        if not names:
            return [None] * len(rows)
        found = np.array(names, object)[self.record.writers[rows]]
        found[~self.has_started(rows)] = None
        texts: list[Any] = found.tolist()
        return texts


def _with_gaps(values: Indices, known: Indices) -> list[Any]:
    """Return values as Python numbers, with None where they are not known."""
    if known.all():
        numbers: list[Any] = values.tolist()
        return numbers
    found = values.astype(object)
    found[~known] = None
    cells: list[Any] = found.tolist()
    return cells
