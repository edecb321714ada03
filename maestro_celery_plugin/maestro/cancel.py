"""Cancellation of a study whose conductor is dead: `maestro cancel` ends its processes here, and its batch jobs.

Maestro writes a request to the conductor (conductor.py:283), which a dead conductor does not read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from maestro_celery_plugin.batch.allocation import Allocation, allocation_files, read_allocation
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.config.groups import batch_of_allocation
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError, DamagedFileError, EnsembleError
from maestro_celery_plugin.maestro.cancel_report import CancelReport
from maestro_celery_plugin.maestro.native_orphans import NativeOrphans
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.plan import CANCEL_REQUEST, StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.study_processes import StudyProcesses
from maestro_celery_plugin.study.worker_identity import is_pool_process

__all__ = ["cancel_all", "cancel_orphans", "workers_elsewhere"]

# The number of workers on other machines that a message names.
_SHOWN = 5


def cancel_all(cancel: Callable[[], int], directories: Sequence[Path]) -> int:
    """Run `maestro cancel`, then cancel the requested studies that have no conductor.

    Args:
        cancel: Maestro's part, which may ask the user, and does nothing if the user declines.
        directories: Directories of ensemble studies.

    Returns:
        The exit code: that of Maestro's part, or 1 if something may still run.
    """
    before = [_note_time(directory) for directory in directories]
    code = cancel()
    for directory, time_ns in zip(directories, before, strict=True):
        if _note_time(directory) == time_ns:
            continue  # the user has declined
        try:
            report = cancel_orphans(StudyPlan.read(directory))
            for sentence in report.sentences:
                print(sentence)
            code = code if report.is_complete else 1
        except (EnsembleError, OSError) as error:
            print(f"maestro: error: {error}", file=sys.stderr)
            code = 1
    return code


def _note_time(study: Path) -> int:
    """Return the time of the last request to cancel a study (conductor.py:290) in Unix ns; 0 without a request."""
    note = study / CANCEL_REQUEST
    return note.stat().st_mtime_ns if note.exists() else 0


def cancel_orphans(plan: StudyPlan) -> CancelReport:
    """Cancel the processes and jobs of a study, if it has no conductor.

    Returns:
        The report; it is empty for a dry run, and for a study whose conductor will cancel it.

    Raises:
        OSError: the files of the study cannot be read.
    """
    report = CancelReport()
    if has_conductor(plan) or not plan.session.exists():
        return report
    _cancel(plan, report)
    if report.sentences:
        report.sentences.insert(0, "This study has no conductor. What it has left is cancelled:")
        report.add(f"`maestro-celery resume {plan.root}` would continue it.")
    else:
        report.add("This study has no conductor, and no workers, samples or jobs.")
    return report


def _cancel(plan: StudyPlan, report: CancelReport) -> None:
    """End what a dead conductor has left; an error of one part does not stop the others."""
    session = Session(plan.session)
    try:
        session.request_stop()
    except OSError as error:
        report.add_left(f"Workers on other machines cannot be asked to end: {error}.")
    elsewhere = workers_elsewhere(session)
    if elsewhere:
        report.add(f"Workers on other machines were asked to end; this machine cannot reach them: {elsewhere}.")
    for path in allocation_files(plan.allocations):
        try:
            allocation = read_allocation(path)
            if allocation.is_open or allocation.is_submission_unknown:
                _cancel_allocation(allocation, batch_of_allocation(plan.settings, allocation.name), report)
        except (OSError, DamagedFileError) as error:
            label = f"{path.parent.parent.name}/{path.parent.name}"
            report.add_left(f"The batch job of allocation '{label}' may still run: {error}")
    NativeOrphans(plan).cancel(report)
    # Last: a batch system ends the processes of its jobs, also those on this machine.
    _end_here(plan, report)


def _end_here(plan: StudyPlan, report: CancelReport) -> None:
    """End all processes of a study on this machine; report what was ended, and what cannot be ended."""
    ended = StudyProcesses(plan.root).end_all()
    if ended.text:
        report.add(f"Ended on this machine: {ended.text}.")
    if ended.remaining:
        report.add_left(
            f"These processes cannot be ended: {', '.join(map(str, ended.remaining))}; end them as their user."
        )
    heartbeats = Session(plan.session).heartbeats
    for beat in heartbeats.all():
        if beat.is_here and not ProcessId(*beat.process).is_alive:
            heartbeats.remove(beat.name)


def workers_elsewhere(session: Session) -> str:
    """Return the live workers on other machines as text; empty without such workers."""
    names = [
        f"'{beat.name}' on {beat.node}"
        for beat in session.heartbeats.live_elsewhere()
        if not is_pool_process(beat.name)
    ]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _cancel_allocation(allocation: Allocation, settings: BatchSettings, report: CancelReport) -> None:
    """Cancel the open job of an allocation, and release the allocation."""
    system = batch_system(settings.type)
    if system is None:
        return
    jobs, name = BatchJobs(system, settings), f"allocation '{allocation.label}'"
    try:
        allocation.job = allocation.job or jobs.find_job(allocation.directory)
        if allocation.job is None:
            return
        allocation.apply_report(jobs.report(allocation.job))
        if not allocation.is_open:
            return
        allocation.released = True  # a later conductor must not cancel step records because this job was cancelled
        allocation.store()
        jobs.cancel(allocation.job, allocation.directory)
    except AllocationError as error:
        report.add_left(f"Job {allocation.job or '(unknown)'} of {name} may still run: {error}")
    else:
        report.add(f"Job {allocation.job} of {name} is cancelled.")
