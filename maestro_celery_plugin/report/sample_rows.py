"""The rows of the table of samples that a query chooses, in blocks, so that memory stays flat."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import ExpressionError, nearest
from maestro_celery_plugin.report.condition import Condition, read_condition
from maestro_celery_plugin.report.result_files import ResultFile, ResultStore
from maestro_celery_plugin.report.sample_columns import Column, Indices, RecordColumns, Source, columns_of
from maestro_celery_plugin.report.selection import RowChooser, SortKey

__all__ = ["BLOCK", "Block", "Query", "SampleRows"]

# Rows that are in memory at a time.
BLOCK = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """What a user wants to see of the table.

    Attributes:
        where: A condition on columns (`condition.py`); empty for all rows.
        columns: The columns in their order; none for all.
        steps: Names of steps or step records; none for all.
        sort: Columns to sort by, with ``-`` before a name for a descending order.
        limit: The largest number of rows; None for all.
        read: Files in the directories of the samples whose values become columns.
    """

    where: str = ""
    columns: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    limit: int | None = None
    read: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of the table.

    Attributes:
        count: The number of rows.
        values: The values of each column by its name; None is a missing value.
    """

    count: int
    values: dict[str, list[Any]]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows."""
        return zip(*self.values.values(), strict=True)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The chosen rows in their order: step records, indices of samples, and numbers in the store of results."""

    records: Indices
    indices: Indices
    results: Indices


class SampleRows:
    """The rows that a query has chosen; they can be read more than once.

    Attributes:
        columns: The columns that the query asks for.
        warnings: A sentence for each result file with samples where it is missing or cannot be read.
    """

    def __init__(self, records: Sequence[RecordColumns], query: Query) -> None:
        self._records, self._query = records, query
        self._store = ResultStore() if query.read else None
        self._files = [ResultFile(name) for name in query.read]
        for name in query.read:
            if PurePosixPath(name).is_absolute() or name in ("", "."):
                raise ExpressionError(f"--read: '{name}' is no file of a sample; give a path below its directory.")
        self._keys: list[dict[str, None]] = [{} for _ in query.read]
        self._base = columns_of(*self._inputs())
        base_names = [column.name for column in self._base]
        self._check_names(query.columns, base_names)
        self._sort = [SortKey(text) for text in query.sort]
        self._check_names([key.name for key in self._sort], base_names)
        condition = read_condition(query.where, None if query.read else base_names) if query.where else None
        self._chosen = self._choose(condition)
        columns = {column.name: column for column in self.all_columns}
        shown = [*query.columns, *(key.name for key in self._sort)]
        if query.read and not len(self):  # without a row, no file was read, and its columns are not known
            columns = {**{name: Column(name, source=Source.RESULT, key=name) for name in shown}, **columns}
        for name in [*shown, *(condition.columns if condition else ())]:
            if name not in columns:
                raise ExpressionError(f"There is no column '{name}'; {nearest(name, columns)}")
        self.columns = [columns[name] for name in dict.fromkeys(query.columns or columns)]
        self.warnings = [file.sentence for file in self._files if file.faults]

    def __len__(self) -> int:
        return len(self._chosen.indices)

    def _check_names(self, names: Sequence[str], known: Sequence[str]) -> None:
        """Check the names of columns, if no file adds columns that are not known yet."""
        for name in names:
            if not self._query.read and name not in known:
                hint = nearest(name, known)
                more = "" if hint.startswith("did") else " --read adds what samples have written."
                raise ExpressionError(f"There is no column '{name}'; {hint}{more}")

    def _inputs(self) -> tuple[list[str], list[str]]:
        parameters = [name for record in self._records for name in record.parameters]
        return parameters, [label for record in self._records for label in record.record.manifest.labels]

    @property
    def all_columns(self) -> list[Column]:
        """All columns, with those of the result files as far as they were read."""
        results = [
            (number, PurePosixPath(name).stem, key)
            for number, (name, keys) in enumerate(zip(self._query.read, self._keys, strict=True))
            for key in keys
        ]
        return columns_of(*self._inputs(), results)

    # --- choice ---

    def _choose(self, condition: Condition | None) -> _Chosen:
        """Choose the rows; store what they have written into the result files."""
        limit = None if self._sort else self._query.limit
        chooser = RowChooser(condition) if condition else None
        sorter = RowChooser(None, self._sort) if self._sort else None
        names = {column.name for column in self._base}
        reads_first = condition is not None and any(name not in names for name in condition.columns)
        records, indices, count = [np.empty(0, np.intp)], [np.empty(0, np.intp)], 0
        for number, rows in self._blocks():
            results = self._results_of(number, rows) if reads_first else None
            if chooser is not None:
                picked = chooser.choose(self._cells_for(chooser.columns, number, rows, results), len(rows))
                rows, results = rows[picked], [results[place] for place in picked.tolist()] if results else None
            if limit is not None:
                rows = rows[: limit - count]
            if self._store is not None:
                results = self._results_of(number, rows) if results is None else results[: len(rows)]
                for one in results:
                    self._store.append({str(file): part for file, part in enumerate(one)})
            if sorter is not None:
                sorter.choose(self._cells_for(sorter.columns, number, rows, results), len(rows), count)
            records.append(np.full(len(rows), number))
            indices.append(rows)
            count += len(rows)
            if limit is not None and count >= limit:
                break
        return self._ordered(np.concatenate(records), np.concatenate(indices), sorter)

    def _ordered(self, records: Indices, indices: Indices, sorter: RowChooser | None) -> _Chosen:
        order = np.arange(len(indices))
        if sorter is not None:
            order = np.concatenate([np.empty(0, np.intp), *sorter.order(self._query.limit)])
        return _Chosen(records[order], indices[order], order)

    def _blocks(self) -> Iterator[tuple[int, Indices]]:
        """Yield the number of a step record, and indices of its samples."""
        for number, record in enumerate(self._records):
            for start in range(0, len(record), BLOCK):
                yield number, np.arange(start, min(start + BLOCK, len(record)))

    def _cells_for(
        self, names: Sequence[str], record: int, rows: Indices, values: list[list[dict[str, Any]]] | None
    ) -> list[list[Any]]:
        """Return the values of columns; a column that no file has had so far is empty."""
        known = {column.name: column for column in self.all_columns}
        columns = [known.get(name) for name in names]
        cells = self._cells([column for column in columns if column is not None], record, rows, values)
        return [cells[column.name] if column else [None] * len(rows) for column in columns]

    # --- values ---

    def blocks(self, columns: Sequence[Column] | None = None, size: int = BLOCK) -> Iterator[Block]:
        """Yield the rows in blocks.

        Args:
            columns: The columns; None for those of the query.
            size: The largest number of rows of a block.

        Raises:
            SampleError: the sample table cannot be read any more.
        """
        columns = self.columns if columns is None else columns
        for start in range(0, len(self), size):
            yield self._block(columns, slice(start, start + size))

    def _block(self, columns: Sequence[Column], part: slice) -> Block:
        records, indices = self._chosen.records[part], self._chosen.indices[part]
        numbers = self._chosen.results[part]
        # The rows of one step record with ascending indices are read together, whatever the order of the table is.
        order = np.lexsort((indices, records))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        is_sorted = bool((back == order).all() and (order == np.arange(len(order))).all())
        values: dict[str, list[Any]] = {column.name: [] for column in columns}
        edges = np.flatnonzero(np.diff(records[order])) + 1
        for run in np.split(order, edges):
            results = None
            if self._store is not None and any(column.source is Source.RESULT for column in columns):
                stored = self._store.read(numbers[run].tolist())
                results = [[one[str(file)] for file in range(len(one))] for one in stored]
            cells = self._cells(columns, int(records[run[0]]), indices[run], results)
            for name, found in cells.items():
                values[name].extend(found)
        if not is_sorted:
            places = back.tolist()
            values = {name: [cells[place] for place in places] for name, cells in values.items()}
        return Block(len(indices), values)

    def _cells(
        self, columns: Sequence[Column], number: int, rows: Indices, results: list[list[dict[str, Any]]] | None
    ) -> dict[str, list[Any]]:
        record = self._records[number]
        labels = [column for column in columns if column.source is Source.LABEL]
        found = dict(
            zip(
                (column.name for column in labels),
                record.label_values([column.key for column in labels], rows) if labels else (),
                strict=True,
            )
        )
        cells = {}
        for column in columns:
            if column.source is Source.LABEL:
                cells[column.name] = found[column.name]
            elif column.source is Source.RESULT:
                file, key = column.file, column.key
                cells[column.name] = [one[file].get(key) for one in results] if results else [None] * len(rows)
            else:
                cells[column.name] = record.values(column, rows)
        return cells

    def _results_of(self, number: int, rows: Indices) -> list[list[dict[str, Any]]]:
        """Read the result files of samples."""
        record = self._records[number]
        started, ended = record.has_started(rows).tolist(), record.has_ended(rows).tolist()
        found = []
        for directory, has_started, has_ended in zip(record.directories(rows), started, ended, strict=True):
            parts = []
            for keys, file in zip(self._keys, self._files, strict=True):
                values = file.read(directory, must_exist=has_ended) if has_started else {}
                keys.update(dict.fromkeys(values))
                parts.append(values)
            found.append(parts)
        return found
