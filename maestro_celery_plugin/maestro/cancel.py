"""Cancellation of a study whose conductor is dead: `maestro cancel` ends its processes here, and its batch jobs.

Maestro writes a request to the conductor (conductor.py:283), which a dead conductor does not read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation, allocation_files, read_allocation
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.groups import batch_of_allocation, serving_groups
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError, EnsembleError
from maestro_celery_plugin.maestro.cancel_report import CancelReport
from maestro_celery_plugin.maestro.native_orphans import NativeOrphans
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.conductor_lock import LOCK_LIMIT_S, file_lock, has_conductor
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import CANCEL_REQUEST, StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.study_processes import StudyProcesses
from maestro_celery_plugin.study.worker_identity import is_pool_process

__all__ = ["cancel_abandoned", "cancel_all", "cancel_orphans", "end_leftovers", "workers_elsewhere"]

# The exit code of Maestro's part if the user has agreed, but a request cannot be written (maestro.py:153).
_NOT_WRITTEN = -1
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
    is_complete = code != _NOT_WRITTEN
    for directory, earlier in zip(directories, before, strict=True):
        try:
            if code == _NOT_WRITTEN:
                is_complete &= _cancel_study(directory, _write_note(directory))
            elif _is_requested(directory, earlier):
                is_complete &= _cancel_study(directory)
        except (EnsembleError, OSError) as error:
            print(f"maestro: error: {error}", file=sys.stderr)
            is_complete = False
    return code if is_complete else 1


def _note_time(study: Path) -> int | OSError:
    """Return the time of the last request to cancel a study (conductor.py:290) in Unix ns; 0 without a request."""
    try:
        return (study / CANCEL_REQUEST).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
    except OSError as error:
        return error


def _is_requested(study: Path, earlier: int | OSError) -> bool:
    """Tell whether Maestro has written a request; if not, the user has declined.

    Raises:
        OSError: this cannot be told, because the file cannot be read.
    """
    times = earlier, _note_time(study)
    for time in times:
        if isinstance(time, OSError):
            raise time
    return times[0] != times[1]


def _write_note(study: Path) -> OSError | None:
    """Write a request to cancel a study, because Maestro stops at the first study for which it cannot do this.

    Returns:
        Why the request cannot be written; None if it is written.
    """
    try:
        (study / CANCEL_REQUEST).touch()
    except OSError as error:
        return error
    return None


def _cancel_study(directory: Path, problem: OSError | None = None) -> bool:
    """Cancel a study without a conductor, and print what was done.

    Args:
        directory: The directory of the study.
        problem: Why the request to the conductor cannot be written; None if it is written.

    Returns:
        Whether everything was ended, or was asked to end.

    Raises:
        StudyError: the plan of the study cannot be read.
        OSError: it is unknown whether the study has a conductor.
    """
    plan = StudyPlan.read(directory)
    if problem is not None:
        print(f"maestro: error: {_unwritten(plan, problem)}", file=sys.stderr)
    report = cancel_orphans(plan)
    for sentence in report.sentences:
        print(sentence)
    return report.is_complete and problem is None


def _unwritten(plan: StudyPlan, problem: OSError) -> str:
    """Return the message for a request that cannot be written, with what the user can do."""
    text = f"The request to cancel '{plan.root}' cannot be written ({problem.strerror or problem})"
    if not has_conductor(plan):
        return f"{text}; this study has no conductor that would read it."
    numbers = " ".join(map(str, StudyProcesses(plan.root, plan.session).conductors()))
    return (
        f"{text}, and its conductor continues. Make room there or correct the permissions, and run `maestro cancel "
        f"{plan.root}` again; or end the conductor with `kill {numbers or 'PID'}`"
        f"{'' if numbers else ' on its machine'}, which ends its workers, and then run `maestro cancel` again."
    )


def cancel_abandoned(directory: str) -> None:
    """Cancel a study whose conductor has died before it has read the request, and print what was done.

    Args:
        directory: The directory of the study.
    """
    for sentence in cancel_orphans(StudyPlan.read(Path(directory))).sentences:
        print(sentence)


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
    end_leftovers(plan, report)
    if report.sentences:
        report.sentences.insert(0, "This study has no conductor. What it has left is cancelled:")
        report.add(f"`maestro-celery resume {plan.root}` would continue it.")
    else:
        report.add("This study has no conductor, and none of its workers, samples or jobs is left.")
    return report


def end_leftovers(plan: StudyPlan, report: CancelReport) -> None:
    """End what a dead conductor has left; an error of one part does not stop the others."""
    others = True  # if they cannot be listed: their workers must go on
    with report.part("The other studies of the session cannot be listed"):
        others = bool(Members(plan.session).living(without=plan.id))
    if others:
        _end_own_leftovers(plan, report)
        return
    session = Session(plan.session)
    with report.part("Workers on other machines cannot be asked to end"):
        session.request_stop()
    with report.part("Workers on other machines cannot be listed"):
        elsewhere = workers_elsewhere(session)
        if elsewhere:
            report.add(f"Workers on other machines were asked to end; this machine cannot reach them: {elsewhere}.")
    with report.part("The batch jobs of allocations cannot be listed"):
        for path in allocation_files(plan.allocations):
            with report.part(
                f"The batch job of allocation '{path.parent.parent.name}/{path.parent.name}' may still run"
            ):
                allocation = read_allocation(path)
                if allocation.is_open or allocation.is_submission_unknown:
                    _cancel_allocation(allocation, batch_of_allocation(plan.settings, allocation.name), report)
    _end_native(plan, report)
    # Last: a batch system ends the processes of its jobs, also those on this machine.
    with report.part("Processes on this machine may still run"):
        _end_here(plan, report)


def _end_native(plan: StudyPlan, report: CancelReport) -> None:
    with report.part("The batch jobs of native steps cannot be listed"):
        NativeOrphans(plan).cancel(report)


def _end_own_leftovers(plan: StudyPlan, report: CancelReport) -> None:
    """End what belongs to a study alone; the workers go on with other studies of the session."""
    _end_native(plan, report)
    with report.part("Its samples may still run"):
        _cancel_samples(plan, report)


def _cancel_samples(plan: StudyPlan, report: CancelReport) -> None:
    """Cancel the samples of a study whose workers go on with other studies of the session.

    Raises:
        Timeout: a conductor of the study lives.
    """
    with file_lock(plan).acquire(timeout=LOCK_LIMIT_S):
        records = StepRecords(plan, serving_groups(plan.settings))
        records.load(tuple)
        unfinished = [record for record in records if not record.samples.is_complete]
        records.cancel(*unfinished, reason="`maestro cancel` has cancelled it.")
        records.close()
        Members(plan.session).change(plan.id, state=MemberState.ENDED, ended_at=clock.now())
    count = sum(record.samples.counts().total - record.samples.counts().finished for record in unfinished)
    report.add(
        f"Its {count} unfinished samples do not run any more; the workers go on with the other studies of the session."
    )


def _end_here(plan: StudyPlan, report: CancelReport) -> None:
    """End all processes of a study on this machine; report what was ended, and what cannot be ended."""
    ended = StudyProcesses(plan.root, plan.session).end_all()
    if ended.text:
        report.add(f"Ended on this machine: {ended.text}.")
    if ended.remaining:
        report.add_left(
            f"These processes cannot be ended: {', '.join(map(str, ended.remaining))}; end them as their user."
        )
    with report.part("The heartbeats of the workers that have ended cannot be removed"):
        heartbeats = Session(plan.session).heartbeats
        for beat in heartbeats.all():
            if beat.is_here and not ProcessId(*beat.process).is_alive:
                heartbeats.remove(beat.name)
    with report.part("The end of the study cannot be stored"):
        Members(plan.session).change(plan.id, state=MemberState.ENDED, ended_at=clock.now())


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
        answer = jobs.report(allocation.job)
        problem = _store(allocation, answer)
        if not answer.is_in_queue:
            return
        jobs.cancel(allocation.job, allocation.directory)
    except AllocationError as error:
        report.add_left(f"Job {allocation.job or '(unknown)'} of {name} may still run: {error}")
    else:
        report.add(f"Job {allocation.job} of {name} is cancelled.")
        if problem is not None:
            report.add_left(
                f"The end of {name} cannot be stored ({problem}); correct this, and run `maestro cancel` again before "
                "you resume the study, because its steps would be cancelled as well."
            )


def _store(allocation: Allocation, answer: JobReport) -> OSError | None:
    """Store the state of an allocation, and that an open one is released; an error must not keep its job running.

    A later conductor must not cancel step records because this job was cancelled.

    Returns:
        Why it cannot be stored; None if it is stored.
    """
    allocation.released = allocation.released or answer.state.is_open
    try:
        if not allocation.apply_report(answer):
            allocation.store()
    except OSError as error:
        return error
    return None
