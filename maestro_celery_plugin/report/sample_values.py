"""The values of the samples of a study, read in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.report.aggregation import RecordTotals
from maestro_celery_plugin.report.failure_space import (
    CATEGORIES,
    by_category,
    by_number,
    category_counts,
    failure_plane,
)
from maestro_celery_plugin.report.summary import ColumnFailures, Plane
from maestro_celery_plugin.samples.table import SampleTable, rows_of
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.additions import open_samples

__all__ = ["COLUMNS", "failures_by_parameter", "failures_by_value"]

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 15
# Columns and parameters that are looked at; a text column with more values than this is a name of samples.
COLUMNS, VALUES = 32, 1000


@dataclasses.dataclass
class _Column:
    """A column: its numbers, or its texts while there are few different ones."""

    label: str
    numbers: Array
    texts: list[str] | None = None


def failures_by_value(records: Sequence[RecordTotals]) -> tuple[list[ColumnFailures], Plane | None]:
    """Return failures by the values of the sample table, of all sampled steps with failures together.

    All failed samples count, and all others with an outcome.

    Raises:
        SampleError: the table has changed, or cannot be read.
        OSError: the same.
    """
    failing = [record for record in records if record.manifest.sampled and record.states.failures]
    if not failing:
        return [], None
    manifest = failing[0].manifest
    table = open_samples(manifest, for_people=True)
    samples, failed = _counts(failing, len(table))
    found: list[ColumnFailures] = []
    numbers: dict[str, Array] = {}
    for column in _columns(table, manifest.labels[:COLUMNS], samples > 0):
        if np.isfinite(column.numbers[samples > 0]).all():
            numbers[column.label] = column.numbers
            found.append(by_number(column.label, column.numbers, samples, failed))
        elif column.texts is not None:
            found.append(by_category(column.label, category_counts(column.texts, samples, failed)))
    found.sort(key=lambda column: -column.weight)
    best = [column.label for column in found if column.label in numbers][:2]
    if len(best) < 2:
        return found, None
    x, y = ((label, numbers[label]) for label in best)
    return found, failure_plane(x, y, samples, failed)


def failures_by_parameter(records: Sequence[RecordTotals], params: dict[str, dict[str, str]]) -> list[ColumnFailures]:
    """Return failures by the values of Maestro's parameters, for those with more than one value.

    Args:
        records: The step records.
        params: The parameters of each step record by its name.
    """
    if not any(record.states.failures for record in records):
        return []
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for record in records:
        outcomes = int((record.states.outcome != Outcome.OPEN).sum())
        for name, value in params.get(record.manifest.name, {}).items():
            before = counts.setdefault(name, {}).get(value, (0, 0))
            counts[name][value] = before[0] + outcomes, before[1] + record.states.failures
    found = [_by_parameter(name, values) for name, values in counts.items() if len(values) > 1]
    return sorted(found, key=lambda column: -column.weight)[:COLUMNS]


def _by_parameter(name: str, counts: dict[str, tuple[int, int]]) -> ColumnFailures:
    """Return failures by the values of a parameter: many numbers have bins, all others are categories."""
    numbers = np.full(len(counts), np.nan, np.float32)
    if len(counts) > CATEGORIES and _fill(numbers, tuple(counts)) and np.isfinite(numbers).all():
        totals = np.array(list(counts.values()))
        return by_number(name, numbers, totals[:, 0], totals[:, 1])
    return by_category(name, counts)


def _counts(records: Sequence[RecordTotals], rows: int) -> tuple[Array, Array]:
    """Return for each row how many samples have an outcome, and how many have failed."""
    samples, failed = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for record in records:
        outcome = np.asarray(record.states.outcome)[:rows]
        samples[: len(outcome)] += outcome != Outcome.OPEN
        failed[: len(outcome)] += (outcome == Outcome.FAILED) | (outcome == Outcome.HARD_FAILED)
    return samples, failed


def _columns(table: SampleTable, labels: Sequence[str], used: Array) -> Iterator[_Column]:
    """Read the columns: numbers in four bytes each; texts as long as a column has few different ones."""
    columns = [_Column(label, np.full(len(table), np.nan, np.float32)) for label in labels]
    known: list[dict[str, str] | None] = [{} for _ in labels]
    texts: list[list[str]] = [[] for _ in labels]
    for start in range(0, len(table), _BLOCK):
        stop = min(start + _BLOCK, len(table))
        for place, values in enumerate(zip(*rows_of(table, start, stop), strict=True)):
            if place == len(labels):
                break
            if not _fill(columns[place].numbers[start:stop], values):
                columns[place].numbers[start:stop][used[start:stop]] = np.nan
            names = known[place]
            if names is not None:
                texts[place] += [names.setdefault(value, value) for value in values]
                known[place] = names if len(names) <= VALUES else None
                if known[place] is None:
                    texts[place] = []
    for place, column in enumerate(columns):
        column.texts = texts[place] if known[place] is not None else None
        yield column


def _fill(target: Array, values: Sequence[str]) -> bool:
    """Store texts as numbers; return whether all of them are numbers."""
    try:
        target[:] = np.array(values, dtype=np.float64)
    except ValueError:
        return False
    return True
