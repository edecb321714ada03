"""The sources of workers: each starts the workers of one or more groups."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import TypeAlias

from msgspec.structs import replace

from maestro_celery_plugin.batch.base import BatchSystem
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.allocation_source import AllocationSource
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.conductor.jobs import Jobs
from maestro_celery_plugin.conductor.local_workers import LocalWorkers
from maestro_celery_plugin.conductor.process_jobs import ProcessJobs
from maestro_celery_plugin.config.groups import (
    LOCAL,
    GroupConfig,
    allocation_name,
    batch_of,
    group_config,
    is_for_this_machine,
    serving_groups,
)
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.plugins import batch_system, current_allocation
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import worker_command

__all__ = ["WorkerSource", "config_of", "request_for", "shared_allocations", "sources_of"]

WorkerSource: TypeAlias = LocalWorkers | AllocationSource


def config_of(settings: EnsembleSettings, name: str) -> GroupConfig:
    """Return the configuration of a worker group for workers that this process starts."""
    current = current_allocation(batch_of(settings, settings.resources.workers[name]).type)
    return group_config(settings, name, current.nodes if current else None)


def shared_allocations(settings: EnsembleSettings) -> dict[str, list[str]]:
    """Return the worker groups of each allocation that this process may open, by name of the allocation."""
    shared: dict[str, list[str]] = {}
    for name, group in serving_groups(settings).items():
        if is_for_this_machine(group) and batch_of(settings, group).type != LOCAL:
            shared.setdefault(allocation_name(name, group), []).append(name)
    return shared


def sources_of(plan: StudyPlan, session: Session) -> dict[str, WorkerSource]:
    """Return the source of each worker group; groups for other machines have no source."""
    sources: dict[str, WorkerSource] = {}
    for name, group in serving_groups(plan.settings).items():
        if is_for_this_machine(group) and batch_of(plan.settings, group).type == LOCAL:
            sources[name] = LocalWorkers(name, session, plan.ledger)
    for allocation, names in shared_allocations(plan.settings).items():
        sources.update(dict.fromkeys(names, _allocation_source(plan, session, allocation, names)))
    return sources


def _allocation_source(plan: StudyPlan, session: Session, allocation: str, names: list[str]) -> AllocationSource:
    """Return the source of an allocation; if there is an allocation around this process, the workers start in it."""
    first = config_of(plan.settings, names[0])
    system = _system_of(first)
    current = system.current_allocation(os.environ)
    jobs: Jobs = BatchJobs(system, first.batch)
    if current is not None:
        jobs = ProcessJobs(current.job, Deadline.of(system, first, os.environ), jobs)

    def request(number: int) -> AllocationRequest:
        return request_for(plan, session, names, str(number))

    return AllocationSource(plan.allocations, allocation, request, jobs)


def request_for(plan: StudyPlan, session: Session, names: Iterable[str], number: str = "") -> AllocationRequest:
    """Return the request to the batch system for worker groups that share an allocation.

    Args:
        plan: The study.
        session: The session.
        names: The groups; the batch settings of the first group apply.
        number: Number of the allocation in the command lines of the workers.
    """
    groups = [config_of(plan.settings, name) for name in names]
    first = groups[0]
    system = _system_of(first)
    allocation = allocation_name(first.group, plan.settings.resources.workers[first.group])
    return AllocationRequest(
        name=allocation,
        study=plan.root.name,
        settings=first.batch,
        nodes=first.nodes,
        procs=first.batch.procs,
        gpus=first.batch.gpus,
        walltime_s=first.walltime_s,
        lines=tuple(_worker_line(session, system, group, first.nodes, f"{allocation}/{number}") for group in groups),
    )


def _system_of(group: GroupConfig) -> BatchSystem:
    """Return the batch system of a group.

    Raises:
        AllocationError: the group is local.
    """
    system = batch_system(group.batch.type)
    if system is None:
        raise AllocationError("A local worker group has no allocation.")
    return system


def _worker_line(session: Session, system: BatchSystem, group: GroupConfig, nodes: int, allocation: str) -> str:
    command = shlex.join(worker_command(session, group.group, allocation=allocation))
    return system.worker_line(replace(group, nodes=nodes), command)
