"""Worker groups of a specification: their checks, and the task queues that each group serves."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin.config.settings import (
    DEFAULT_GROUP,
    DEFAULT_TASK_QUEUE,
    ResourceSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.config.tokens import names_in, substitute
from maestro_celery_plugin.errors import SpecificationError, nearest
from maestro_celery_plugin.spec.celery_options import check_celery_options

__all__ = ["check_groups", "native_steps", "served_queues", "task_queues", "with_own_task_queues", "with_task_queues"]

LOGGER = logging.getLogger(__name__)

# Bytes of the name of a worker group or an allocation. Names of files add up to about 60 bytes (numbers of allocation,
# worker and process, a suffix), and a file system allows 255.
NAME_LIMIT = 128

# Task queues of each step; several if the name of the task queue has a parameter.
StepQueues = Mapping[str, tuple[str, ...]]


def native_steps(resources: ResourceSettings, sampled: Set[str], data: Mapping[str, Any]) -> frozenset[str]:
    """Return the native steps, which no worker group serves, so that Maestro runs them itself.

    Args:
        resources: The worker groups of the specification.
        sampled: The sampled steps.
        data: The specification.
    """
    if resources.unassigned == "workers":
        return frozenset()
    assigned = {step for group in resources.workers.values() for step in group.steps} - {"all"}
    return frozenset(
        step["name"]
        for step in data["study"]
        if step["name"] not in sampled | assigned and "task_queue" not in step["run"]
    )


def with_own_task_queues(resources: ResourceSettings, study: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps; if several groups would share the default task queue, the steps that a group names leave it.

    Steps without `task_queue` share the default one, which a single group would serve alone. So each group gets the
    steps that it names, in a task queue of its own.

    Args:
        resources: The worker groups of the specification.
        study: The steps of the specification.
    """
    sharing = {step["name"] for step in study if "task_queue" not in step["run"]}
    named = {name: sharing.intersection(group.steps) for name, group in resources.workers.items()}
    groups = [name for name, group in resources.workers.items() if named[name] or _serves_default(group)]
    if resources.overlap or len(groups) < 2:
        return list(map(dict, study))
    owners = {step: [name for name in groups if step in named[name]] for step in sharing}
    return [
        {**step, "run": {**step["run"], "task_queue": f"{DEFAULT_TASK_QUEUE}_{owners[step['name']][0]}"}}
        if len(owners.get(step["name"], ())) == 1
        else dict(step)
        for step in study
    ]


def _serves_default(group: WorkerGroupSettings) -> bool:
    """Tell whether a group serves the default task queue without naming a step of it."""
    return _is_general(group) or DEFAULT_TASK_QUEUE in group.task_queues


def _is_general(group: WorkerGroupSettings) -> bool:
    """Tell whether a group serves all steps, so that it names none of them."""
    return not group.task_queues and (not group.steps or "all" in group.steps)


def task_queues(data: Mapping[str, Any], file: str) -> dict[str, tuple[str, ...]]:
    """Return the task queues of each step, one for each value of the parameters in the name.

    Raises:
        SpecificationError: a name has a token that is neither a variable nor a parameter.
    """
    parameters = data.get("global.parameters") or {}
    return {
        step["name"]: _expanded(
            step["run"].get("task_queue", DEFAULT_TASK_QUEUE),
            parameters,
            file,
            f"study.{step['name']}.run.task_queue",
        )
        for step in data["study"]
    }


def _expanded(queue: str, parameters: Mapping[str, Any], file: str, where: str) -> tuple[str, ...]:
    tokens = names_in(queue)
    if not tokens:
        return (queue,)
    rows = _rows(parameters)
    unknown = sorted(token for token in tokens if not rows or token not in rows[0])
    if unknown:
        raise SpecificationError.at(
            file,
            where,
            f"$({unknown[0]}) in '{queue}' is neither a variable of env nor a parameter, so the "
            f"task queue of the workers is unknown; {nearest(unknown[0], parameters)}",
        )
    return tuple(dict.fromkeys(substitute(queue, row) for row in rows))


def _rows(parameters: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the tokens of each combination of parameters (Maestro: core/parameters.py:229)."""
    count = min((len(parameter["values"]) for parameter in parameters.values()), default=0)
    rows: list[dict[str, str]] = [{} for _ in range(count)]
    for name, parameter in parameters.items():
        for row, value in zip(rows, parameter["values"], strict=True):
            row[name] = str(value)
            row[f"{name}.label"] = parameter["label"].replace("%%", str(value))
            row[f"{name}.name"] = name
    return rows


def check_groups(resources: ResourceSettings, queues: StepQueues, data: Mapping[str, Any], file: str) -> None:
    """Check the names of worker groups, and that their steps, task queues and options exist.

    Raises:
        SpecificationError: a name is invalid, or a step, task queue or option does not exist.
    """
    existing = {DEFAULT_TASK_QUEUE, *(queue for step_queues in queues.values() for queue in step_queues)}
    for name, group in resources.workers.items():
        where = f"merlin.resources.workers.{name}"
        _check_file_name(name, file, where)
        _check_file_name(group.allocation, file, f"{where}.allocation")
        if group.steps and group.task_queues:
            raise SpecificationError.at(file, where, "found both steps and task_queues; use one of them.")
        _check_steps(group, tuple(queues), file, f"{where}.steps")
        for queue in group.task_queues:
            for expanded in _expanded(queue, data.get("global.parameters") or {}, file, f"{where}.task_queues"):
                if expanded not in existing:
                    found = f"no step uses the task queue '{expanded}'; {nearest(expanded, existing)}"
                    raise SpecificationError.at(file, f"{where}.task_queues", found)
        check_celery_options(group.args, file, f"{where}.args")


def _check_file_name(name: str | None, file: str, where: str) -> None:
    """Check the name of a group or of an allocation, which is also a file name."""
    if name is None:
        return
    if "/" in name or name.startswith("."):
        found = f"found '{name}'; the name is also a file name, so it must not contain '/' or begin with a dot."
        raise SpecificationError.at(file, where, found)
    size = len(name.encode())
    if not 0 < size <= NAME_LIMIT:
        found = f"found a name of {size} bytes; it is also a file name, so it needs 1 to {NAME_LIMIT} bytes."
        raise SpecificationError.at(file, where, found)


def _check_steps(group: WorkerGroupSettings, steps: tuple[str, ...], file: str, where: str) -> None:
    for step in group.steps:
        if step != "all" and step not in steps:
            names = ", ".join(f"'{name}'" for name in steps)
            raise SpecificationError.at(file, where, f"unknown step '{step}'; steps are {names}.")


def with_task_queues(
    resources: ResourceSettings,
    queues: StepQueues,
    data: Mapping[str, Any],
    file: str,
    step_groups: Collection[str] = (),
) -> ResourceSettings:
    """Return the worker groups with their task queues; the default group serves those that no other group serves.

    If groups must not overlap, only the first of several groups serves a task queue; groups that name steps or task
    queues come before those that serve all steps.

    Args:
        resources: The worker groups.
        queues: The task queues of each step.
        data: The specification.
        file: Name of the specification, for messages.
        step_groups: The groups of steps with a `batch` of their own, which serve the task queue of their step alone.

    Raises:
        SpecificationError: other groups serve all task queues of a group.
    """
    requested = {name: _requested_queues(group, queues, data, file) for name, group in resources.workers.items()}
    sole = resources.workers if not resources.overlap else {n: resources.workers[n] for n in step_groups}
    owners = _owners(sole, requested)
    groups: dict[str, WorkerGroupSettings] = {}
    for name, group in resources.workers.items():
        own = tuple(queue for queue in requested[name] if owners.get(queue, name) == name)
        others = {queue: owners[queue] for queue in requested[name] if queue not in own}
        if others:
            _report(name, group, bool(own), others, resources, file)
        groups[name] = replace(group, task_queues=own)
    served = {queue for group in groups.values() for queue in group.task_queues}
    _add_to_default_group(groups, {step: _without(names, served) for step, names in queues.items()})
    return replace(resources, workers=groups)


def _owners(groups: Mapping[str, WorkerGroupSettings], requested: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return the group that serves each task queue."""
    owners: dict[str, str] = {}
    for name in sorted(groups, key=lambda name: _is_general(groups[name])):
        for queue in requested[name]:
            owners.setdefault(queue, name)
    return owners


def _report(
    name: str,
    group: WorkerGroupSettings,
    serves_some: bool,
    others: Mapping[str, str],
    resources: ResourceSettings,
    file: str,
) -> None:
    """Log that other groups serve task queues of a group.

    Groups for different machines may name the same steps; the user starts the workers of one of them.

    Raises:
        SpecificationError: the group serves no task queue.
    """
    where, remedy = f"merlin.resources.workers.{name}", "give its steps another `task_queue`, or set `overlap: True`."
    text = ", ".join(f"'{owner}' serves the task queue '{queue}'" for queue, owner in others.items())
    has_machines = group.machines or any(resources.workers[owner].machines for owner in others.values())
    if not serves_some and not has_machines:
        raise SpecificationError.at(file, where, f"the group serves nothing: {text}; {remedy}")
    if not _is_general(group):  # a group for all steps serves the rest
        LOGGER.warning("%s: %s: %s; %s", file, where, text, remedy)


def _without(names: Iterable[str], served: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in served)


def _add_to_default_group(groups: dict[str, WorkerGroupSettings], unserved: StepQueues) -> None:
    """Add the task queues that no group serves to the default group, which the specification may define."""
    steps = tuple(step for step, names in unserved.items() if names)
    added = tuple(dict.fromkeys(name for names in unserved.values() for name in names))
    if not added:
        return
    group = groups.get(DEFAULT_GROUP, WorkerGroupSettings())
    groups[DEFAULT_GROUP] = replace(
        group,
        steps=tuple(dict.fromkeys((*group.steps, *steps))),
        task_queues=tuple(dict.fromkeys((*group.task_queues, *added))),
    )


def _requested_queues(
    group: WorkerGroupSettings, queues: StepQueues, data: Mapping[str, Any], file: str
) -> tuple[str, ...]:
    if not group.task_queues:
        return served_queues(group, queues)
    parameters = data.get("global.parameters") or {}
    return tuple(dict.fromkeys(queue for name in group.task_queues for queue in _expanded(name, parameters, file, "")))


def served_queues(group: WorkerGroupSettings, queues: StepQueues) -> tuple[str, ...]:
    """Return the task queues that a group serves, from the task queues of each step."""
    if group.task_queues:
        return group.task_queues
    steps = tuple(queues) if not group.steps or "all" in group.steps else group.steps
    return tuple(dict.fromkeys(queue for step in steps for queue in queues[step]))
