"""The earlier study in a directory that `maestro run --out` overwrites: it ends before Maestro removes its files.

Workers of the earlier study would otherwise go on in the new study: they would write to its directories, and take its
names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin.batch.allocation import read_allocations
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.config.groups import batch_of_allocation
from maestro_celery_plugin.errors import AllocationError, EnsembleError, StudyError
from maestro_celery_plugin.maestro.cancel import workers_elsewhere
from maestro_celery_plugin.maestro.launch_options import check_output
from maestro_celery_plugin.maestro.native_orphans import NativeOrphans
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.study_processes import StudyProcesses

__all__ = ["end_earlier_study"]


def end_earlier_study(directory: Path) -> None:
    """End the processes of the study in a directory, so that the directory can be removed.

    Raises:
        StudyError: the study runs, or something of it runs where this machine cannot end it.
    """
    if not (directory / "merlin_info").is_dir():
        return
    check_output(str(directory))
    processes, session = StudyProcesses(directory), Session(directory / "merlin_info" / "session")
    if session.conductors.live_elsewhere(*session.conductors.studies()):
        raise StudyError(_message(directory, "its conductor runs on another machine"))
    if processes.conductors():
        raise StudyError(_message(directory, "its conductor is starting or ending"))
    others = [member.root for member in Members(session.path).living() if member.root != str(directory)]
    if others:
        raise StudyError(_message(directory, f"studies that it has started go on ({', '.join(others)})"))
    elsewhere = workers_elsewhere(session)
    if elsewhere:
        raise StudyError(_message(directory, f"it has workers on other machines ({elsewhere})"))
    jobs = ", ".join(_open_jobs(directory))
    if jobs:
        raise StudyError(_message(directory, f"it has {jobs}"))
    ended = processes.end_all(lambda: _request_stop(session))
    if ended.remaining:
        numbers = ", ".join(map(str, ended.remaining))
        raise StudyError(_message(directory, f"its processes {numbers} cannot be ended"))
    if ended.text:
        print(f"Ended what the earlier study in '{directory}' had left: {ended.text}.")


def _request_stop(session: Session) -> None:
    with contextlib.suppress(OSError):  # without a session, or on a full disk: signals end the workers
        session.request_stop()


def _message(directory: Path, problem: str) -> str:
    return (
        f"--out: the earlier study in '{directory}' has not ended: {problem}; end it with `maestro cancel {directory}` "
        "and wait until that has happened, or use another directory."
    )


def _open_jobs(directory: Path) -> Iterator[str]:
    """Yield the batch jobs of the earlier study that are open, or that may be open because nobody can tell."""
    try:
        plan = StudyPlan.read(directory)
    except EnsembleError:
        plan = None
    try:
        for allocation in read_allocations(directory / "merlin_info" / "allocations"):
            if not (allocation.is_open or allocation.is_submission_unknown):
                continue
            system = batch_system(batch_of_allocation(plan.settings, allocation.name).type) if plan else None
            if system is None:
                yield f"an allocation '{allocation.label}' whose batch system is unknown"
                continue
            jobs = BatchJobs(system)
            job = allocation.job or jobs.find_job(allocation.directory)
            if job is not None and jobs.report(job).is_in_queue:
                yield f"the batch job {job}"
    except (AllocationError, StudyError, OSError) as error:
        yield f"perhaps batch jobs ({error})"
    if plan is not None:
        yield from NativeOrphans(plan).open_jobs()
