"""The comparison of machines: which of them are slow, or let attempts fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from maestro_celery_plugin.report.aggregation import WriterTotals
from maestro_celery_plugin.report.slot_use import AGAIN, FAILED, FINISHED, INTERRUPTED, LOST, NOT_RUN
from maestro_celery_plugin.report.summary import NodeSummary
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["compare_nodes"]

# A machine is slow from this ratio of durations on, and if it is this many standard errors above the others.
_SLOW, _STANDARD_ERRORS = 1.2, 4.0
_FEWEST = 5
# Attempts fail more often than elsewhere from this ratio on.
_MORE_OFTEN = 3.0


def compare_nodes(
    writers: Iterable[WriterTotals], node_of: Callable[[str], str], broken: Iterable[str] = ()
) -> tuple[NodeSummary, ...]:
    """Return the machines, those that stand out first.

    Durations are compared step by step, as the mean of the logarithms of durations minus that of all machines: a
    machine is not slow because it has run more samples of a long step.

    Args:
        writers: The workers and the processes of their pools.
        node_of: Returns the machine of a worker.
        broken: Machines whose worker has left the study because of them.
    """
    grouped: dict[str, list[WriterTotals]] = {}
    for writer in writers:
        grouped.setdefault(node_of(worker_of(writer.name)), []).append(writer)
    everything = _log_seconds([writer for group in grouped.values() for writer in group])
    means = {step: total / count for step, (count, total) in everything.items() if count}
    all_attempts = sum((_attempts(group) for group in grouped.values()), np.zeros(7, np.int64))
    nodes = [_node(name, group, means, all_attempts, name in set(broken)) for name, group in grouped.items()]
    return tuple(sorted(nodes, key=lambda node: (not node.remarks, -(node.slowness or 0.0), node.name)))


def _node(
    name: str,
    writers: list[WriterTotals],
    means: dict[str, float],
    everywhere: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    is_broken: bool,
) -> NodeSummary:
    attempts = _attempts(writers)
    pairs = _log_seconds(writers)
    finished = int(sum(count for count, _ in pairs.values()))
    excess = sum(total - count * means[step] for step, (count, total) in pairs.items())
    slowness = math.exp(excess / finished) if finished else None
    ended = int(attempts[[FINISHED, FAILED, AGAIN, INTERRUPTED]].sum())
    others = everywhere - attempts
    remarks = ["its worker has left the study, because the machine is broken"] if is_broken else []
    if slowness is not None and others[FINISHED] and _is_slow(slowness, finished):
        remarks.append(f"samples take {slowness:.2f} times as long")
    for place, words in ((FAILED, "failed"), (LOST, "were lost with their worker"), (NOT_RUN, "could not run")):
        rate, usual = _share(attempts, place), _share(others, place)
        if (
            attempts[place] >= 2
            and others.sum()
            and rate > _MORE_OFTEN * usual
            and _is_significant(attempts, place, usual)
        ):
            remarks.append(f"{_percent(rate)} of its attempts {words}, elsewhere {_percent(usual)}")
    return NodeSummary(
        name=name,
        workers=len({worker_of(writer.name) for writer in writers}),
        attempts=ended,
        failed=int(attempts[FAILED]),
        not_run=int(attempts[NOT_RUN]),
        lost=int(attempts[LOST]),
        slowness=slowness,
        remarks=tuple(remarks),
    )


def _is_slow(slowness: float, finished: int) -> bool:
    # Durations that spread by a factor of two, which is much, have a standard deviation of log(2).
    return finished >= _FEWEST and slowness >= max(
        _SLOW, math.exp(_STANDARD_ERRORS * math.log(2) / math.sqrt(finished))
    )


def _is_significant(attempts: np.ndarray[tuple[int, ...], np.dtype[np.int64]], place: int, usual: float) -> bool:
    """Tell whether so many cannot be chance: four standard deviations above the expected number."""
    expected = usual * int(attempts.sum())
    return int(attempts[place]) > expected + _STANDARD_ERRORS * math.sqrt(expected)


def _attempts(writers: Iterable[WriterTotals]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return sum((writer.attempts for writer in writers), np.zeros(7, np.int64))


def _log_seconds(writers: Iterable[WriterTotals]) -> dict[str, tuple[float, float]]:
    """Return the number of finished attempts and the sum of the logarithms of their durations, by step."""
    sums: dict[str, tuple[float, float]] = {}
    for writer in writers:
        for step, (count, total) in writer.log_seconds.items():
            before = sums.get(step, (0.0, 0.0))
            sums[step] = before[0] + float(count), before[1] + float(total)
    return sums


def _share(attempts: np.ndarray[tuple[int, ...], np.dtype[np.int64]], place: int) -> float:
    total = int(attempts.sum())
    return int(attempts[place]) / total if total else 0.0


def _percent(share: float) -> str:
    return "none" if share == 0 else f"{100 * share:.2g} %"
