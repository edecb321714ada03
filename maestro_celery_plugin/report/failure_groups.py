"""The failed samples of a study in groups, each with what distinguishes its samples from those that finished."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.report.cell_text import as_text
from maestro_celery_plugin.report.distinction import Rule, distinctions, suspicion
from maestro_celery_plugin.report.failed_samples import last_lines
from maestro_celery_plugin.report.sample_columns import Column, RecordColumns, Source
from maestro_celery_plugin.report.sample_rows import BLOCK, Query
from maestro_celery_plugin.report.sample_status import SampleStatus
from maestro_celery_plugin.report.study_samples import StudySamples

__all__ = ["FailureGroup", "StepFailures", "step_failures"]

# Failed samples of a step whose stderr is read; that of all of a million takes minutes on a shared file system.
STDERR_LIMIT = 20_000
# Instead of the number of a group.
_NOT_FAILED, _UNREAD = -1, -2
# Rules of a group that are reported.
_RULES = 3
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Failed samples of one step that have ended in the same way.

    Attributes:
        end: How they have ended: ``exit code 3``.
        line: The last line of stderr of the first one; empty without stderr.
        count: The number of samples.
        first: The first one.
        rules: What distinguishes them; empty if nothing does.
        suspicion: Without rules, one that distinguishes them perfectly, but may be chance; None without one.
    """

    end: str
    line: str
    count: int
    first: SampleStatus
    rules: list[Rule]
    suspicion: Rule | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFailures:
    """The failed samples of one step.

    Attributes:
        step: The step.
        failed: Their number.
        ended: The number of all samples that have finished or failed.
        finished: The number of those that have finished, with which the groups are compared; if there is none, a group
            is compared with the others.
        columns: The columns that could distinguish them.
        unread: The number of failed samples whose stderr was not read.
        groups: The groups, the largest one first.
    """

    step: str
    failed: int
    ended: int
    finished: int
    columns: list[str]
    unread: int
    groups: list[FailureGroup]

    def to_json(self) -> dict[str, Any]:
        """Return the step in the output of `maestro-celery failed --json`; scripts rely on these keys."""
        groups = [
            {
                "end": group.end,
                "code": group.first.code,
                "stderr": group.line,
                "count": group.count,
                "first": {"step_record": group.first.manifest.name, "sample": _index(group.first)}
                | {"directory": str(group.first.directory)},
                "rules": [_rule_to_json(rule) for rule in group.rules],
                "suspicion": _rule_to_json(group.suspicion) if group.suspicion else None,
            }
            for group in self.groups
        ]
        numbers = {
            "failed": self.failed,
            "ended": self.ended,
            "finished": self.finished,
            "stderr_not_read": self.unread,
        }
        return {"step": self.step, **numbers, "columns": self.columns, "groups": groups}


def _rule_to_json(rule: Rule) -> dict[str, Any]:
    return {
        "rule": rule.words,
        "failed": rule.hits,
        "of_failed": rule.samples,
        "others": rule.false_hits,
        "of_others": rule.others,
    }


def _index(sample: SampleStatus) -> int | None:
    return sample.index if sample.manifest.sampled else None


def step_failures(samples: StudySamples, steps: Sequence[str] = ()) -> Iterator[StepFailures]:
    """Yield the failures of each step that has some.

    Args:
        samples: The samples of the study.
        steps: Steps or step records; none for all.

    Raises:
        StudyError: there is no such step.
        SampleError: the sample table cannot be read any more.
    """
    by_step: dict[str, list[RecordColumns]] = {}
    for record in samples.of_steps(steps):
        by_step.setdefault(record.record.manifest.step, []).append(record)
    for step, records in by_step.items():
        if any(len(record.record.failed_indices()) for record in records):
            yield _failures_of(step, records, samples)


def _failures_of(step: str, records: list[RecordColumns], samples: StudySamples) -> StepFailures:
    keys, firsts, unread = _grouped(records)
    rows = [np.flatnonzero(record.has_ended(np.arange(len(record)))) for record in records]
    number_of = np.concatenate([keys[place][index] for place, index in enumerate(rows)])
    failed = int((number_of != _NOT_FAILED).sum())
    columns = _columns(records, rows, samples)
    finished = number_of == _NOT_FAILED
    groups = []
    for number, (end, line, first) in enumerate(firsts):
        is_sample = number_of == number
        # Compared with the samples that finished: other failures may have the same cause. Those whose stderr was not
        # read may belong to the group.
        compared = is_sample | (finished if finished.any() else number_of != _UNREAD)
        values, members = {name: column[compared] for name, column in columns.items()}, is_sample[compared]
        rules = distinctions(values, members)
        groups.append(
            FailureGroup(
                end=end,
                line=line,
                count=int(is_sample.sum()),
                first=first,
                rules=rules[:_RULES],
                suspicion=None if rules else suspicion(values, members),
            )
        )
    groups.sort(key=lambda group: -group.count)
    return StepFailures(
        step=step,
        failed=failed,
        ended=len(number_of),
        finished=int(finished.sum()),
        columns=list(columns),
        unread=unread,
        groups=groups,
    )


def _grouped(records: list[RecordColumns]) -> tuple[list[Any], list[tuple[str, str, SampleStatus]], int]:
    """Return the group of each sample of each record; the end, last line and first sample of each group.

    The third value is the number of failed samples whose stderr was not read.
    """
    numbers: dict[tuple[str, str], int] = {}
    firsts: list[tuple[str, str, SampleStatus]] = []
    of_records, read, unread = [], 0, 0
    for record in records:
        groups = np.full(len(record), _NOT_FAILED, np.intp)
        indices = record.record.failed_indices()
        groups[indices] = _UNREAD
        unread += len(indices)
        for sample in record.record.failed(STDERR_LIMIT - read):
            lines = last_lines(sample.stderr)
            line = lines[-1] if lines else ""
            kind = (sample.end, _normal(line, sample))
            if kind not in numbers:
                numbers[kind] = len(firsts)
                firsts.append((sample.end, line, sample))
            groups[sample.index] = numbers[kind]
            read, unread = read + 1, unread - 1
        of_records.append(groups)
    return of_records, firsts, unread


def _normal(line: str, sample: SampleStatus) -> str:
    """Return a line without what differs between samples: their directories and all numbers."""
    return _NUMBER.sub("#", line.replace(str(sample.directory), "."))


def _columns(records: list[RecordColumns], rows: list[Any], samples: StudySamples) -> dict[str, Any]:
    """Return parameters, labels and machines of samples that have ended, if their values differ."""
    steps = tuple(record.record.manifest.name for record in records)
    table = samples.rows(Query(steps=steps, columns=("id",)))
    wanted = [
        column
        for column in table.all_columns
        if column.source in (Source.PARAMETER, Source.LABEL) or column.name == "node"
    ]
    found = {column.name: _array(column, records, rows) for column in wanted}
    return {name: values for name, values in found.items() if len(values) and (values != values[0]).any()}


def _array(column: Column, records: list[RecordColumns], rows: list[Any]) -> Any:
    """Return the values of a column as numbers if all of them are numbers, else as texts."""
    parts = []
    for record, indices in zip(records, rows, strict=True):
        for start in range(0, len(indices), BLOCK):
            block = indices[start : start + BLOCK]
            if column.source is Source.LABEL:
                values = record.label_values([column.key], block)[0]
            else:
                values = record.values(column, block)
            parts.append(_numbers(values))
    if all(part.dtype.kind == "f" for part in parts):
        return np.concatenate([np.empty(0), *parts])
    # Numbers and texts in one column: its values are names.
    return np.concatenate([part if part.dtype.kind == "O" else part.astype(str).astype(object) for part in parts])


def _numbers(values: list[Any]) -> Any:
    """Return values as numbers, or as texts if one of them is no number."""
    try:
        return np.array([np.nan if value is None else float(value) for value in values], np.float64)
    except ValueError:
        return np.array(list(map(as_text, values)), object)
