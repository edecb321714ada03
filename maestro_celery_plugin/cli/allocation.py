"""A preview of a specification's allocations: the batch scripts and command lines that would be used."""

from __future__ import annotations

import dataclasses
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin.batch.base import batch_system
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs, HeldJobs, Jobs
from maestro_celery_plugin.conductor.worker_sources import allocation_name, batch_of, is_for_this_machine, request_for
from maestro_celery_plugin.errors import AllocationError, SpecificationError
from maestro_celery_plugin.maestro.specification import EnsembleSpecification
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.__main__ import worker_command

__all__ = ["Preview", "previews"]


@dataclasses.dataclass(frozen=True)
class Preview:
    """What would be run for worker groups.

    Attributes:
        title: Which groups, and how.
        text: The script, or the command line.
    """

    title: str
    text: str


def previews(path: Path) -> Iterator[Preview]:
    """Yield what would be run for each allocation and each group without one.

    Raises:
        SpecificationError: the specification cannot be used, or has no workers.
        AllocationError: Maestro's adapter cannot write the script here.
    """
    specification = EnsembleSpecification.load_specification(str(path))
    if specification.ensemble is None:
        raise SpecificationError.at(path.name, "", "there is no 'merlin' block, so Maestro runs it without workers.")
    root = Path(specification.output_path or ".").absolute() / f"{specification.name.replace(' ', '_')}_TIME"
    plan = StudyPlan(root=root, timestamp="TIME", settings=specification.ensemble)
    shared: dict[str, list[str]] = {}
    for name, group in specification.ensemble.resources.workers.items():
        if not group.task_queues:
            continue
        line = shlex.join(worker_command(Session(plan.session), name))
        if not is_for_this_machine(group):
            yield Preview(f"worker group '{name}', by hand on {' or '.join(group.machines)}", line)
        elif batch_of(plan.settings, group).type == "local":
            yield Preview(f"worker group '{name}', on this machine", line)
        else:
            shared.setdefault(allocation_name(name, group), []).append(name)
    for name, groups in shared.items():
        yield _allocation(plan, name, groups)


def _allocation(plan: StudyPlan, name: str, groups: list[str]) -> Preview:
    batch = batch_of(plan.settings, plan.settings.resources.workers[groups[0]])
    system = batch_system(batch.type)
    if system is None:
        raise AllocationError("A local worker group has no allocation.")
    held = system.held(os.environ)
    jobs: Jobs = HeldJobs(held.job, Deadline(), BatchJobs(system)) if held else BatchJobs(system)
    with tempfile.TemporaryDirectory(prefix="maestro-celery-") as directory:
        text = jobs.script(request_for(plan, Session(plan.session), groups, "1"), Path(directory)).read_text()
    place = f"in the allocation {held.job} around you" if held else f"by {batch.type}"
    return Preview(f"allocation '{name}' of worker group {', '.join(map(repr, groups))}, {place}", text.rstrip())
