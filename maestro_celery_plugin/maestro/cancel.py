"""Leftovers: workers and batch jobs of a study whose conductor is dead. `maestro cancel` ends them.

Maestro leaves a note for the conductor to cancel the study (conductor.py:283), which nobody reads then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maestro_celery_plugin.batch.allocation import Allocation, read_allocations
from maestro_celery_plugin.batch.base import batch_system
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.conductor.worker_sources import allocation_name, batch_of
from maestro_celery_plugin.errors import AllocationError, EnsembleError
from maestro_celery_plugin.maestro.native_steps import PlainSteps
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.study.conductor_lock import conductor_lock
from maestro_celery_plugin.study.layout import CANCEL_NOTE, StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import shared_lock

__all__ = ["cancel_all", "end_leftovers"]


def cancel_all(cancel: Callable[[], int], directories: Sequence[Path]) -> int:
    """Run `maestro cancel`, then end what is left of those studies that it has told to end.

    Args:
        cancel: Maestro's own part; it may ask, and leave the studies alone.
        directories: Directories of ensemble studies.

    Returns:
        The exit code.
    """
    before = [_note_time(directory) for directory in directories]
    code = cancel()
    for directory, time_ns in zip(directories, before, strict=True):
        if _note_time(directory) == time_ns:
            continue  # the user has changed her mind
        try:
            for sentence in end_leftovers(StudyPlan.read(directory)):
                print(sentence)
        except (EnsembleError, OSError) as error:
            print(f"maestro: error: {error}", file=sys.stderr)
            code = 1
    return code


def _note_time(study: Path) -> int:
    """Return when Maestro has last told a study to end (conductor.py:290), in ns; 0 for never."""
    note = study / CANCEL_NOTE
    return note.stat().st_mtime_ns if note.exists() else 0


def end_leftovers(plan: StudyPlan) -> list[str]:
    """End what is left of a study that was told to be cancelled, if no conductor holds it.

    Returns:
        What was done, in sentences; none for a dry run, and for a study that a conductor will end.

    Raises:
        OSError: the study's files cannot be read or written.
    """
    with shared_lock(Path(conductor_lock(plan).lock_file)) as is_free:
        if not is_free or not plan.session.exists():
            return []
    sentences = list(_end(plan))
    if not sentences:
        return ["No conductor holds this study now, and nothing of it is left to be ended."]
    resume = f"`maestro-celery resume {plan.root}` would go on with it."
    return ["No conductor holds this study now; what one has left is ended here:", *sentences, resume]


def _end(plan: StudyPlan) -> Iterator[str]:
    Session(plan.session).request_stop()
    workers = [one for one in StatusReader(plan.root).read().workers if one.state not in ("dead", "awaited")]
    if workers:
        yield f"{len(workers)} {'worker is' if len(workers) == 1 else 'workers are'} told to end."
    groups = plan.settings.resources.workers.items()
    types = {allocation_name(name, group): batch_of(plan.settings, group).type for name, group in groups}
    for allocation in read_allocations(plan.allocations):
        if allocation.is_open or allocation.is_unsettled:
            yield from _end_allocation(allocation, types[allocation.name])
    yield from PlainSteps(plan).end_left()


def _end_allocation(allocation: Allocation, type: str) -> Iterator[str]:
    """Cancel an allocation's job, if it has one that has not ended; note that it is not needed any more."""
    system = batch_system(type)
    if system is None:
        return
    jobs, name = BatchJobs(system), f"allocation '{allocation.label}'"
    try:
        allocation.job = allocation.job or jobs.find(allocation.directory)
        if allocation.job is None:
            return
        allocation.take(jobs.report(allocation.job))
        if not allocation.is_open:
            return
        allocation.released = True  # so that a later conductor does not take its end for somebody's verdict
        allocation.store()
        jobs.cancel(allocation.job)
    except AllocationError as error:
        yield f"Job {allocation.job or '(not known)'} of {name} may go on: {error}"
    else:
        yield f"Job {allocation.job} of {name} is cancelled."
