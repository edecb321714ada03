"""`maestro-celery allocation`: the batch scripts and command lines that a study would use."""

from __future__ import annotations

import dataclasses
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from maestro_celery_plugin.batch.base import import_problem
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.conductor.jobs import Jobs
from maestro_celery_plugin.conductor.process_jobs import ProcessJobs
from maestro_celery_plugin.conductor.worker_sources import request_for, shared_allocations
from maestro_celery_plugin.config.groups import LOCAL, batch_of, is_for_this_machine, serving_groups
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.maestro.specification import load_ensemble
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.spec.overrides import Overrides, variables_of
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import worker_command

__all__ = ["Preview", "command", "previews"]


@click.command("allocation")
@click.argument("specification", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@vars_option
def command(specification: Path, variables: tuple[str, ...]) -> None:
    """Print the batch scripts and the command lines of workers that a study of SPECIFICATION would use."""
    for preview in previews(specification, Overrides(variables=variables_of(variables))):
        click.echo(f"# {preview.title}\n{preview.text}\n")


@dataclasses.dataclass(frozen=True)
class Preview:
    """The script or the command line with which a study would start worker groups.

    Attributes:
        title: The worker groups, and where they run.
        text: The script, or the command line.
    """

    title: str
    text: str


def previews(path: Path, overrides: Overrides | None = None) -> Iterator[Preview]:
    """Yield the script of each allocation, and the command line of each group without one.

    Args:
        path: The specification.
        overrides: What the command line of the launch would set in place of it.

    Raises:
        SpecificationError: the specification is invalid, or its study has no workers.
        AllocationError: Maestro's adapter cannot write the script on this machine.
    """
    specification = load_ensemble(path, overrides)
    root = Path(specification.output_path or ".").absolute() / f"{specification.name.replace(' ', '_')}_TIME"
    plan = StudyPlan(root=root, timestamp="TIME", settings=specification.ensemble)
    for name, group in serving_groups(plan.settings).items():
        line = shlex.join(worker_command(Session(plan.session), name))
        if not is_for_this_machine(group):
            yield Preview(f"worker group '{name}', started by a user on {' or '.join(group.machines)}", line)
        elif batch_of(plan.settings, group).type == LOCAL:
            yield Preview(f"worker group '{name}', on this machine", line)
    for name, groups in shared_allocations(plan.settings).items():
        yield _allocation(plan, name, groups)


def _allocation(plan: StudyPlan, name: str, groups: list[str]) -> Preview:
    batch = batch_of(plan.settings, plan.settings.resources.workers[groups[0]])
    system = batch_system(batch.type)
    if system is None:
        raise AllocationError("A local worker group has no allocation.")
    problem = import_problem(system)
    if problem is not None:
        raise AllocationError(f"The batch script of allocation '{name}' cannot be written: {problem}.")
    current = system.current_allocation(os.environ)
    jobs: Jobs = ProcessJobs(current.job, Deadline(), BatchJobs(system)) if current else BatchJobs(system)
    with tempfile.TemporaryDirectory(prefix="maestro-celery-") as directory:
        request = request_for(plan, Session(plan.session), groups, "1")
        try:
            text = jobs.script(request, Path(directory)).read_text()
        except OSError as cause:
            raise AllocationError(f"The batch script of allocation '{name}' cannot be written: {cause}.") from cause
    place = f"in the allocation {current.job} around this process" if current else f"by {batch.type}"
    return Preview(f"allocation '{name}' of worker group {', '.join(map(repr, groups))}, {place}", text.rstrip())
