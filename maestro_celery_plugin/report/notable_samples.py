"""Samples that a report names: an example of each kind of failure, and the slowest ones."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from maestro_celery_plugin.report.aggregation import Aggregation, RecordTotals
from maestro_celery_plugin.report.failed_samples import last_lines
from maestro_celery_plugin.report.sample_status import SampleStatus, values_of
from maestro_celery_plugin.report.step_summaries import median_s
from maestro_celery_plugin.report.summary import FailureKind, SlowSample
from maestro_celery_plugin.states import Outcome

__all__ = ["failure_kinds", "slowest_samples"]

_SLOWEST, _KINDS = 20, 30


def failure_kinds(aggregation: Aggregation, root: Path) -> Iterator[FailureKind]:
    """Yield the most frequent kinds of failures: those of one step with one exit code.

    Args:
        aggregation: The aggregated ledger.
        root: Directory of the study.
    """
    firsts: dict[tuple[str, int], SampleStatus] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for record in aggregation.records.values():
        outcome = record.states.outcome
        failed = np.flatnonzero((outcome == Outcome.FAILED) | (outcome == Outcome.HARD_FAILED))
        codes, first, numbers = np.unique(record.states.code(failed), return_index=True, return_counts=True)
        for code, place, number in zip(codes.tolist(), first.tolist(), numbers.tolist(), strict=True):
            firsts.setdefault((record.manifest.step, code), _status(record, int(failed[place])))
            counts[record.manifest.step, code] += number
    kinds = counts.most_common(_KINDS)
    examples = [firsts[kind] for kind, _ in kinds]
    for example, values, (_, number) in zip(examples, values_of(examples), kinds, strict=True):
        yield FailureKind(
            step=example.manifest.step,
            end=example.end,
            samples=number,
            example=_relative(example.directory, root),
            values=values or {},
            stderr="\n".join(last_lines(example.stderr)),
        )


def slowest_samples(aggregation: Aggregation, root: Path, node_of: Callable[[str], str]) -> Iterator[SlowSample]:
    """Yield the slowest samples of sampled step records.

    Args:
        aggregation: The aggregated ledger.
        root: Directory of the study.
        node_of: Returns the machine of a worker.
    """
    candidates = [
        (float(record.durations.us[index]), record.manifest.number, index)
        for record in aggregation.records.values()
        for index in _longest(record)
    ]
    samples = [_status(aggregation.records[number], index) for _, number, index in heapq.nlargest(_SLOWEST, candidates)]
    medians = {step: median_s(aggregation.records_of(step)) for step in {sample.manifest.step for sample in samples}}
    for sample, values in zip(samples, values_of(samples), strict=True):
        record = aggregation.records[sample.manifest.number]
        median = medians[sample.manifest.step]
        is_open = record.states.outcome[sample.index] == Outcome.OPEN
        yield SlowSample(
            step=sample.manifest.step,
            sample=_relative(sample.directory, root),
            seconds=sample.duration_s,
            ratio=sample.duration_s / median if median else 1.0,
            end="runs again" if is_open else "finished" if sample.code == 0 else sample.end,
            node=node_of(aggregation.writer_name(int(record.writer[sample.index]))),
            values=values or {},
        )


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _longest(record: RecordTotals) -> list[int]:
    """Return the samples of a sampled record with the longest durations."""
    return record.durations.longest(_SLOWEST) if record.manifest.sampled else []


def _status(record: RecordTotals, index: int) -> SampleStatus:
    return SampleStatus(
        manifest=record.manifest,
        index=index,
        code=int(record.states.code(index)),
        duration_s=int(record.durations.us[index]) / 1e6,
        losses=int(record.states.losses[index]),
    )
