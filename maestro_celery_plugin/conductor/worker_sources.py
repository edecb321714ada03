"""Where the workers of each group come from, by its batch type and by where this process is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable
from typing import Any

from maestro_celery_plugin.batch.base import BatchSystem, HeldAllocation, WorkerLaunch, batch_system
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.conductor.allocations import AllocationSource
from maestro_celery_plugin.conductor.batch_jobs import AllocationRequest, BatchJobs, HeldJobs, Jobs
from maestro_celery_plugin.conductor.local_workers import LocalWorkers
from maestro_celery_plugin.config import schema
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, StepFacts, WorkerGroupSettings, plain
from maestro_celery_plugin.config.walltime import seconds_of
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.processes import host_name
from maestro_celery_plugin.study.group_config import WorkerTerms
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.__main__ import worker_command

__all__ = [
    "allocation_name",
    "awaited_groups",
    "batch_of",
    "has_other_hosts",
    "is_for_this_machine",
    "request_for",
    "sources_of",
    "steps_of",
    "terms_of",
]


def batch_of(settings: EnsembleSettings, group: WorkerGroupSettings) -> BatchSettings:
    """Return the batch block that holds for a group: its own keys before those of the study."""
    own = {key: getattr(group, key) for key in ("nodes", "procs", "gpus")}
    given: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
    return schema.build(BatchSettings, {**plain(settings.batch), **(group.batch or {}), **given})


def is_for_this_machine(group: WorkerGroupSettings) -> bool:
    """Tell whether a group's workers may be started from here; parts of host names count, as in Merlin."""
    return not group.machines or any(machine in host_name() for machine in group.machines)


def allocation_name(name: str, group: WorkerGroupSettings) -> str:
    """Return the name of a group's allocation."""
    return group.allocation or name


def steps_of(settings: EnsembleSettings, group: WorkerGroupSettings) -> list[StepFacts]:
    """Return the steps whose task queues a group serves."""
    return [step for step in settings.steps.values() if set(step.queues).intersection(group.task_queues)]


def walltime_of(batch: BatchSettings) -> int | None:
    """Return the time limit of an allocation in seconds; None for that of the partition."""
    return None if batch.walltime is None else seconds_of(batch.walltime)


def nodes_of(batch: BatchSettings, held: HeldAllocation | None) -> int:
    """Return the nodes of a group: as it says, else those of the allocation around this process, else 1."""
    if isinstance(batch.nodes, int):
        return min(batch.nodes, held.nodes) if held else batch.nodes
    return held.nodes if held else 1


def terms_of(settings: EnsembleSettings, name: str) -> WorkerTerms:
    """Return what the workers of a group work by."""
    group = settings.resources.workers[name]
    batch = batch_of(settings, group)
    system = batch_system(batch.type)
    needs = [step.needs for step in steps_of(settings, group) if step.sampled and step.needs]
    nodes = nodes_of(batch, system.held(os.environ)) if system else 0
    return WorkerTerms(
        group=name,
        queues=group.task_queues,
        args=group.args,
        idle_limit_s=group.idle_limit,
        batch_type=batch.type,
        walltime_s=walltime_of(batch) if system else None,
        drain_s=group.drain,
        warn_s=group.warn,
        nodes=nodes,
        workers=system.worker_count(_launch_of(settings, name, nodes)) if system else 1,
        gpus=batch.gpus,
        needs=tuple(needs) if system else (),
    )


def request_for(plan: StudyPlan, session: Session, names: Iterable[str], number: str = "") -> AllocationRequest:
    """Return what is asked of the batch system for groups that share an allocation.

    Args:
        plan: The study.
        session: Its session.
        names: The groups; the batch block of the first one holds.
        number: Stands for the allocation's number in the workers' command lines.
    """
    groups = {name: plan.settings.resources.workers[name] for name in names}
    first = next(iter(groups))
    name = allocation_name(first, groups[first])
    batch = batch_of(plan.settings, groups[first])
    system = _system_of(batch)
    nodes = nodes_of(batch, system.held(os.environ))
    return AllocationRequest(
        name=name,
        study=plan.root.name,
        settings=batch,
        nodes=nodes,
        procs=batch.procs,
        gpus=batch.gpus,
        walltime_s=walltime_of(batch),
        lines=tuple(_line(plan, session, system, group, nodes, f"{name}/{number}") for group in groups),
    )


def _system_of(batch: BatchSettings) -> BatchSystem:
    """Return the batch system of a group that is not local."""
    system = batch_system(batch.type)
    if system is None:
        raise AllocationError("A local worker group has no allocation.")
    return system


def _line(plan: StudyPlan, session: Session, system: BatchSystem, name: str, nodes: int, allocation: str) -> str:
    command = shlex.join(worker_command(session, name, allocation=allocation))
    return system.worker_line(_launch_of(plan.settings, name, nodes, command))


def _launch_of(settings: EnsembleSettings, name: str, nodes: int, command: str = "") -> WorkerLaunch:
    group = settings.resources.workers[name]
    return WorkerLaunch(
        command=command,
        nodes=nodes,
        settings=batch_of(settings, group),
        samples_launch=any(step.launches for step in steps_of(settings, group)),
    )


def sources_of(plan: StudyPlan, session: Session) -> dict[str, LocalWorkers | AllocationSource]:
    """Return the source of each group; groups for other machines have none.

    A group that is for an allocation, when this process is inside of one, has its workers started in it.
    """
    sources: dict[str, LocalWorkers | AllocationSource] = {}
    shared: dict[str, list[str]] = {}
    for name, group in plan.settings.resources.workers.items():
        if not group.task_queues or not is_for_this_machine(group):
            continue
        if batch_of(plan.settings, group).type == "local":
            sources[name] = LocalWorkers(name, session, plan.ledger)
        else:
            shared.setdefault(allocation_name(name, group), []).append(name)
    for names in shared.values():
        sources.update(dict.fromkeys(names, _allocation_source(plan, session, names)))
    return sources


def _allocation_source(plan: StudyPlan, session: Session, names: list[str]) -> AllocationSource:
    first = plan.settings.resources.workers[names[0]]
    system = _system_of(batch_of(plan.settings, first))
    held = system.held(os.environ)
    jobs: Jobs = BatchJobs(system)
    if held is not None:
        jobs = HeldJobs(held.job, Deadline.of(terms_of(plan.settings, names[0]), os.environ), jobs)
    return AllocationSource(
        plan.allocations,
        allocation_name(names[0], first),
        lambda number: request_for(plan, session, names, str(number)),
        jobs,
    )


def has_other_hosts(settings: EnsembleSettings) -> bool:
    """Tell whether workers of a study may run on other machines than this one."""
    groups = [group for group in settings.resources.workers.values() if group.task_queues]
    return any(group.machines or batch_of(settings, group).type != "local" for group in groups)


def awaited_groups(settings: EnsembleSettings, served: Collection[str]) -> dict[str, WorkerGroupSettings]:
    """Return the groups whose workers have to be on certain machines, and are not there yet.

    Args:
        settings: The study's settings.
        served: Groups of which workers live.
    """
    groups = {name: group for name, group in settings.resources.workers.items() if group.machines}
    return {name: group for name, group in groups.items() if group.task_queues and name not in served}
