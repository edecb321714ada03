"""Leftovers: workers and batch jobs of a study whose conductor is dead. `maestro cancel` ends them.

Maestro leaves a note for the conductor to cancel the study (conductor.py:283), which nobody reads then.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin.allocation_jobs import BatchJobs
from maestro_celery_plugin.allocations import Allocation, read_allocations
from maestro_celery_plugin.batch_systems import batch_system
from maestro_celery_plugin.conductorship import conductor_lock
from maestro_celery_plugin.errors import AllocationError, StudyError
from maestro_celery_plugin.plain_steps import PlainSteps
from maestro_celery_plugin.session import Session
from maestro_celery_plugin.status_csv import shared_lock
from maestro_celery_plugin.study import StudyPlan
from maestro_celery_plugin.worker_sources import allocation_name, batch_of

__all__ = ["end_leftovers"]



def end_leftovers(directory: Path) -> list[str]:
    """End what is left of a study that was told to be cancelled, if no conductor lives to do it.

    Returns:
        What was done, in sentences; none for a study without workers, and for one whose conductor lives.
    """
    try:
        plan = StudyPlan.read(directory)
    except StudyError:
        return []  # Maestro's affair
    if not plan.cancel_note.exists() or not plan.session.exists():
        return []
    with shared_lock(Path(conductor_lock(plan).lock_file)) as is_free:
        return list(_end(plan)) if is_free else []


def _end(plan: StudyPlan) -> Iterator[str]:
    session = Session(plan.session)
    session.request_stop()
    workers = len([beat for beat in session.heartbeats() if "." not in beat.name])
    left = [f"{_count(workers, 'worker')} told to end."] if workers else []
    left += [_cancelled(plan, one) for one in read_allocations(plan.allocations) if one.is_open]
    left += [f"Job {job} of a step that Maestro runs itself is cancelled." for job in PlainSteps(plan).cancel_left()]
    if left:
        yield "No conductor runs this study; what it has left is ended here:"
        yield from left
        yield f"`maestro-celery resume {plan.root}` would go on with it."
    else:
        yield "No conductor runs this study, and nothing of it is left to be ended."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def _cancelled(plan: StudyPlan, allocation: Allocation) -> str:
    name = f"Job {allocation.job} of allocation '{allocation.label}'"
    types = {
        allocation_name(group, settings): batch_of(plan.settings, settings).type
        for group, settings in plan.settings.resources.workers.items()
    }
    try:
        system = batch_system(types[allocation.name])
        if system is None or allocation.job is None or ":" in allocation.job:
            return f"{name} ends with its workers."
        BatchJobs(system).cancel(allocation.job)
    except AllocationError as error:
        return f"{name}: {error}."
    return f"{name} is cancelled."
