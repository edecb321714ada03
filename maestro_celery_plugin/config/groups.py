"""Worker groups: which batch settings apply to a group, and the configuration that its workers read."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import field

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.conversion import Exact
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, StepFacts, WorkerGroupSettings
from maestro_celery_plugin.config.walltime import seconds_of
from maestro_celery_plugin.errors import StudyError, nearest
from maestro_celery_plugin.machine import host_name

__all__ = [
    "LOCAL",
    "GroupConfig",
    "allocation_name",
    "awaited_groups",
    "awaiting",
    "batch_of",
    "batch_of_allocation",
    "group_config",
    "has_other_hosts",
    "is_for_this_machine",
    "nodes_of",
    "require_groups",
    "serving_groups",
    "shared_groups",
    "steps_of",
]

# The `batch.type` of workers that run as processes on this machine, without a batch system.
LOCAL = "local"
# Keys of `batch` with options of one batch system.
_OPTION_KEYS = ("args", "allocation_args", "launcher_args")


class GroupConfig(Exact, frozen=True, kw_only=True):
    """The configuration of one worker group, resolved from the specification.

    The conductor stores it in the session; workers and batch systems read it.

    Attributes:
        group: Name of the worker group.
        queues: Task queues that the group serves.
        args: Options of `celery worker`.
        batch: The batch settings that apply to the group.
        nodes: Number of nodes of an allocation; 0 for a local group.
        samples_launch: Whether samples of the group start parallel programs with `$(LAUNCHER)`.
        needs: Resources of a sample of each sampled step; empty for a local group.
        idle_limit_s: Seconds without work after which a worker leaves its allocation.
        drain_s: Seconds before the end of an allocation from which no sample starts; None to derive it from
            the durations of earlier samples.
        warn_s: Seconds before the end of an allocation at which running samples receive their signal.
    """

    group: str
    queues: tuple[str, ...]
    args: str = ""
    batch: BatchSettings = field(default_factory=BatchSettings)
    nodes: int = 0
    samples_launch: bool = False
    needs: tuple[StepNeeds, ...] = ()
    idle_limit_s: float = 300.0
    drain_s: float | None = None
    warn_s: float = 20.0

    @property
    def walltime_s(self) -> int | None:
        """Time limit of the group's allocations in seconds; None for the limit of the partition."""
        is_limited = self.batch.type != LOCAL and self.batch.walltime is not None
        return seconds_of(str(self.batch.walltime)) if is_limited else None


def group_config(settings: EnsembleSettings, name: str, current_nodes: int | None) -> GroupConfig:
    """Return the configuration of a worker group.

    Args:
        settings: The settings of the study.
        name: Name of the group.
        current_nodes: Nodes of the allocation around this process; None outside of an allocation.
    """
    group = settings.resources.workers[name]
    batch = batch_of(settings, group)
    steps = steps_of(settings, group)
    is_local = batch.type == LOCAL
    return GroupConfig(
        group=name,
        queues=group.task_queues,
        args=group.args,
        batch=batch,
        nodes=0 if is_local else nodes_of(batch, current_nodes),
        samples_launch=any(step.launches for step in steps),
        needs=() if is_local else tuple(step.needs for step in steps if step.sampled),
        idle_limit_s=group.idle_limit,
        drain_s=group.drain,
        warn_s=group.warn,
    )


def batch_of(settings: EnsembleSettings, group: WorkerGroupSettings) -> BatchSettings:
    """Return the batch settings that apply to a group: the keys of the group override those of the study.

    The options of `args` are merged. Options of the study are those of its batch type only.
    """
    values = {key: getattr(group, key) for key in ("nodes", "procs", "gpus")}
    overrides: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    common, own = conversion.to_dict(settings.batch), group.batch or {}
    if own.get("type", settings.batch.type) != settings.batch.type:
        common = {key: value for key, value in common.items() if key not in _OPTION_KEYS}
    if isinstance(common.get("args"), dict) and isinstance(own.get("args"), dict):
        overrides["args"] = {**common["args"], **own["args"]}
    return conversion.from_dict(BatchSettings, {**common, **own, **overrides})


def nodes_of(batch: BatchSettings, current_nodes: int | None) -> int:
    """Return the number of nodes of a group's allocation.

    The settings give the number, limited to the nodes of the allocation around this process. Without a number, the
    group uses all nodes of that allocation, or 1 node outside of an allocation.

    Args:
        batch: The batch settings of the group.
        current_nodes: Nodes of the allocation around this process; None outside of an allocation.
    """
    if isinstance(batch.nodes, int):
        return batch.nodes if current_nodes is None else min(batch.nodes, current_nodes)
    return current_nodes or 1


def serving_groups(settings: EnsembleSettings) -> dict[str, WorkerGroupSettings]:
    """Return the worker groups that serve a task queue, by name."""
    return {name: group for name, group in settings.resources.workers.items() if group.task_queues}


def shared_groups(settings: EnsembleSettings) -> dict[str, dict[str, Any]]:
    """Return the configurations of all serving groups, as other studies of the session compare them."""
    return {name: conversion.to_dict(group_config(settings, name, None)) for name in serving_groups(settings)}


def require_groups(settings: EnsembleSettings, names: Iterable[str]) -> None:
    """Check that a study has the worker groups of an option `--group`.

    Raises:
        StudyError: it has no such group.
    """
    serving = serving_groups(settings)
    for name in names:
        if name not in serving:
            raise StudyError(f"--group: the study has no worker group '{name}'; {nearest(name, serving)}")


def is_for_this_machine(group: WorkerGroupSettings) -> bool:
    """Tell whether workers of a group may start on this machine; a part of the host name matches, as in Merlin."""
    return not group.machines or any(machine in host_name() for machine in group.machines)


def awaiting(name: str, group: WorkerGroupSettings, study: Path) -> str:
    """Return the sentence about a group whose workers a user must start on another machine.

    Args:
        name: Name of the group.
        group: The group.
        study: Directory of the study.
    """
    return (
        f"Worker group '{name}' waits for its workers on {' or '.join(group.machines)}: start them there with "
        f"`maestro-celery workers {shlex.quote(str(study))} --group {name}`."
    )


def allocation_name(name: str, group: WorkerGroupSettings) -> str:
    """Return the name of a group's allocation."""
    return group.allocation or name


def batch_of_allocation(settings: EnsembleSettings, allocation: str) -> BatchSettings:
    """Return the batch settings of the groups of an allocation; those of the study for an unknown allocation."""
    groups = settings.resources.workers.items()
    by_name = {allocation_name(name, group): batch_of(settings, group) for name, group in groups}
    return by_name.get(allocation, settings.batch)


def steps_of(settings: EnsembleSettings, group: WorkerGroupSettings) -> list[StepFacts]:
    """Return the steps whose task queues a group serves."""
    return [step for step in settings.steps.values() if set(step.queues).intersection(group.task_queues)]


def has_other_hosts(settings: EnsembleSettings) -> bool:
    """Tell whether workers of a study may run on machines other than this one."""
    groups = serving_groups(settings).values()
    return any(group.machines or batch_of(settings, group).type != LOCAL for group in groups)


def awaited_groups(settings: EnsembleSettings, served: Collection[str]) -> Mapping[str, WorkerGroupSettings]:
    """Return the groups that are limited to certain machines and have no workers yet.

    Args:
        settings: The settings of the study.
        served: Names of groups with live workers.
    """
    groups = serving_groups(settings).items()
    return {name: group for name, group in groups if group.machines and name not in served}
