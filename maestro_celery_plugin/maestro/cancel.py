"""Cancellation of a study whose conductor is dead: `maestro cancel` ends its workers and batch jobs here.

Maestro writes a request to the conductor (conductor.py:283), which a dead conductor does not read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maestro_celery_plugin.batch.allocation import Allocation, read_allocations
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.config.groups import allocation_name, batch_of
from maestro_celery_plugin.errors import AllocationError, EnsembleError
from maestro_celery_plugin.maestro.native_steps import NativeSteps
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.plan import CANCEL_REQUEST, StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["cancel_all", "cancel_orphans"]


def cancel_all(cancel: Callable[[], int], directories: Sequence[Path]) -> int:
    """Run `maestro cancel`, then cancel the requested studies that have no conductor.

    Args:
        cancel: Maestro's part, which may ask the user, and does nothing if the user declines.
        directories: Directories of ensemble studies.

    Returns:
        The exit code.
    """
    before = [_note_time(directory) for directory in directories]
    code = cancel()
    for directory, time_ns in zip(directories, before, strict=True):
        if _note_time(directory) == time_ns:
            continue  # the user has declined
        try:
            for sentence in cancel_orphans(StudyPlan.read(directory)):
                print(sentence)
        except (EnsembleError, OSError) as error:
            print(f"maestro: error: {error}", file=sys.stderr)
            code = 1
    return code


def _note_time(study: Path) -> int:
    """Return the time of the last request to cancel a study (conductor.py:290) in Unix ns; 0 without a request."""
    note = study / CANCEL_REQUEST
    return note.stat().st_mtime_ns if note.exists() else 0


def cancel_orphans(plan: StudyPlan) -> list[str]:
    """Cancel the workers and jobs of a study, if it has no conductor.

    Returns:
        A report in sentences; empty for a dry run, and for a study whose conductor will cancel it.

    Raises:
        OSError: the files of the study cannot be read or written.
    """
    if has_conductor(plan) or not plan.session.exists():
        return []
    sentences = list(_cancel(plan))
    if not sentences:
        return ["This study has no conductor, and no workers or jobs."]
    resume = f"`maestro-celery resume {plan.root}` would continue it."
    return ["This study has no conductor. Its workers and jobs are cancelled:", *sentences, resume]


def _cancel(plan: StudyPlan) -> Iterator[str]:
    Session(plan.session).request_stop()
    workers = [worker for worker in StatusReader(plan.root).read().workers if worker.state not in ("dead", "awaited")]
    if workers:
        yield f"{len(workers)} {'worker was' if len(workers) == 1 else 'workers were'} asked to end."
    groups = plan.settings.resources.workers.items()
    types = {allocation_name(name, group): batch_of(plan.settings, group).type for name, group in groups}
    for allocation in read_allocations(plan.allocations):
        if allocation.is_open or allocation.is_submission_unknown:
            yield from _cancel_allocation(allocation, types[allocation.name])
    yield from NativeSteps(plan).cancel_orphans()


def _cancel_allocation(allocation: Allocation, type: str) -> Iterator[str]:
    """Cancel the open job of an allocation, and release the allocation."""
    system = batch_system(type)
    if system is None:
        return
    jobs, name = BatchJobs(system), f"allocation '{allocation.label}'"
    try:
        allocation.job = allocation.job or jobs.find_job(allocation.directory)
        if allocation.job is None:
            return
        allocation.apply_report(jobs.report(allocation.job))
        if not allocation.is_open:
            return
        allocation.released = True  # a later conductor must not cancel step records because this job was cancelled
        allocation.store()
        jobs.cancel(allocation.job)
    except AllocationError as error:
        yield f"Job {allocation.job or '(unknown)'} of {name} may still run: {error}"
    else:
        yield f"Job {allocation.job} of {name} is cancelled."
