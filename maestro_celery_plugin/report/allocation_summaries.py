"""The allocations of a study in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.report.aggregation import WriterTotals
from maestro_celery_plugin.report.slot_time import slot_time
from maestro_celery_plugin.report.slot_use import RUNNING
from maestro_celery_plugin.report.summary import AllocationSummary, SlotTime
from maestro_celery_plugin.study.worker_facts import WorkerFacts
from maestro_celery_plugin.study.worker_identity import stem_of, worker_of

__all__ = ["allocation_of", "allocation_summaries"]

_OUTSIDE = "{group} (no allocation)"


def allocation_of(writer: str, facts: Mapping[str, WorkerFacts], names: Mapping[str, str]) -> str:
    """Return the label of the allocation of a worker, such as ``sim/2``, or of the workers of its group outside of one.

    Args:
        writer: Name of the worker, or of a process of its pool.
        facts: The facts about workers by name; the name of a worker has to do where there are none.
        names: Names of allocations by worker group.
    """
    worker = worker_of(writer)
    if worker in facts:
        return facts[worker].allocation or _OUTSIDE.format(group=facts[worker].group)
    stems = {stem_of(group): name for group, name in names.items()}
    stem, _, number = worker.rpartition("-")[0].rpartition("-")
    if stem in stems and number.isdigit():
        return f"{stems[stem]}/{number}"
    return _OUTSIDE.format(group=worker.rpartition("-")[0] or worker)


def allocation_summaries(
    allocations: Iterable[Allocation],
    writers: Mapping[str, Sequence[WriterTotals]],
    now: float,
    elsewhere: Mapping[str, float],
) -> Iterator[AllocationSummary]:
    """Yield the summaries of allocations, then those of workers outside of them.

    Args:
        allocations: The allocations.
        writers: The workers and processes of pools by the label of their allocation (`allocation_of`).
        now: The present time (Unix seconds), until which an open allocation counts.
        elsewhere: Seconds in which slots had samples of other studies, by label.
    """
    known = set()
    for one in allocations:
        known.add(one.label)
        yield _inside(one, writers.get(one.label, ()), now, elsewhere.get(one.label, 0.0))
    for label in sorted(set(writers) - known):
        yield _outside(label, writers[label], now, elsewhere.get(label, 0.0))


def _inside(allocation: Allocation, writers: Sequence[WriterTotals], now: float, elsewhere: float) -> AllocationSummary:
    began_at = allocation.began_at or min(_firsts(writers), default=0.0)
    ended_at = allocation.ended_at or (now if allocation.is_open else max(_lasts(writers), default=began_at))
    slots = max(allocation.slots, _slots(writers))
    return AllocationSummary(
        label=allocation.label,
        job=allocation.job or "",
        state=allocation.state.name,
        reason=allocation.reason,
        slots=slots,
        submitted_at=allocation.submitted_at or None,
        began_at=began_at or None,
        first_work_at=min(_firsts(writers), default=None),
        draining_at=_draining_at(writers, slots),
        last_work_at=max(_lasts(writers), default=None),
        ended_at=allocation.ended_at or None,
        slot_time=slot_time(writers, slots, began_at, ended_at, elsewhere) if began_at else SlotTime(),
    )


def _outside(label: str, writers: Sequence[WriterTotals], now: float, elsewhere: float) -> AllocationSummary:
    runs = any(writer.seconds[RUNNING] for writer in writers)
    began_at = min(_firsts(writers), default=None)
    last = max(_lasts(writers), default=None)
    ended_at = now if runs else last
    slots = _slots(writers)
    return AllocationSummary(
        label=label,
        job="",
        state="",
        reason="",
        slots=slots,
        submitted_at=None,
        began_at=began_at,
        first_work_at=began_at,
        draining_at=_draining_at(writers, slots),
        last_work_at=last,
        ended_at=None if runs else ended_at,
        slot_time=slot_time(writers, slots, began_at, ended_at, elsewhere) if began_at and ended_at else SlotTime(),
    )


def _firsts(writers: Iterable[WriterTotals]) -> list[float]:
    return [first for writer in writers for first in writer.use.first.values()]


def _lasts(writers: Iterable[WriterTotals]) -> list[float]:
    return [last for writer in writers for last in writer.use.last.values()]


def _draining_at(writers: Sequence[WriterTotals], slots: int) -> float | None:
    """Return when the first slot ran out of samples for good; slots of a worker that was replaced do not count."""
    return min(sorted(_lasts(writers), reverse=True)[:slots], default=None)


def _slots(writers: Iterable[WriterTotals]) -> int:
    """Return the number of slots of the workers; a worker that has replaced another one uses the same slots again."""
    spans = sorted((first, writer.use.last[slot]) for writer in writers for slot, first in writer.use.first.items())
    ends: list[float] = []
    for first, last in spans:  # the largest number of slots that have worked at the same time
        free = next((place for place, end in enumerate(ends) if end <= first), None)
        if free is None:
            ends.append(last)
        else:
            ends[free] = last
    return len(ends)
