"""The steps of a study in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from maestro_celery_plugin.report.aggregation import DURATION_EDGES, Aggregation, RecordTotals
from maestro_celery_plugin.report.slot_use import ENDS
from maestro_celery_plugin.report.summary import DurationBin, StepSummary
from maestro_celery_plugin.states import Outcome

__all__ = ["median_s", "step_summary"]

# Samples with so many attempts or more are one number.
_MOST_ATTEMPTS = 8


def step_summary(name: str, aggregation: Aggregation, states: Mapping[str, str]) -> StepSummary:
    """Return the summary of a step.

    Args:
        name: Name of the step.
        aggregation: The aggregated ledger.
        states: Maestro's state of each step record of this step, by name of the record.
    """
    records, totals = aggregation.records_of(name), aggregation.steps.get(name)
    counts = [record.states.counts() for record in records]
    seconds = _finished_seconds(records)
    quantiles = [float(q) for q in np.quantile(seconds, (0.5, 0.95, 1.0))] if len(seconds) else [None, None, None]
    return StepSummary(
        name=name,
        records=dict(Counter(states.values())),
        samples=sum(count.total for count in counts),
        finished=sum(count.finished for count in counts),
        failed=sum(count.failed for count in counts),
        first_start=totals.first_start if totals and np.isfinite(totals.first_start) else None,
        last_end=totals.last_end or None if totals else None,
        median_s=quantiles[0],
        p95_s=quantiles[1],
        longest_s=quantiles[2],
        durations=_duration_bins(totals.durations) if totals else (),
        attempts=dict(zip(ENDS, totals.attempts.tolist(), strict=True)) if totals else {},
        samples_by_attempts=_by_attempts(records),
    )


def median_s(records: Iterable[RecordTotals]) -> float:
    """Return the median duration of the finished samples of step records; 0 without one."""
    seconds = _finished_seconds(records)
    return float(np.median(seconds)) if len(seconds) else 0.0


def _finished_mask(record: RecordTotals) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return a mask of the finished samples of a step record."""
    outcome = record.states.outcome
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (outcome == Outcome.FINISHED) | (
        outcome == Outcome.STOPPED_STUDY
    )
    return mask


def _finished_seconds(records: Iterable[RecordTotals]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    parts = [record.durations.us[_finished_mask(record)] / np.float32(1e6) for record in records]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _duration_bins(durations: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[DurationBin, ...]:
    """Return the bins between the shortest and the longest duration."""
    used = np.flatnonzero(durations.sum(axis=0))
    places = range(used[0], used[-1] + 1) if len(used) else range(0)
    return tuple(
        DurationBin(
            start_s=float(DURATION_EDGES[place]),
            stop_s=float(DURATION_EDGES[place + 1]),
            finished=int(durations[0, place]),
            failed=int(durations[1, place]),
        )
        for place in places
    )


def _by_attempts(records: Iterable[RecordTotals]) -> tuple[int, ...]:
    """Return the number of samples with 1, 2, ... attempts, without zeros at the end."""
    counts = np.zeros(_MOST_ATTEMPTS + 1, np.int64)
    for record in records:
        counts += np.bincount(np.minimum(record.attempts, _MOST_ATTEMPTS), minlength=_MOST_ATTEMPTS + 1)
    last = int(np.flatnonzero(counts[1:])[-1]) + 1 if counts[1:].any() else 0
    return tuple(counts[1 : last + 1].tolist())
