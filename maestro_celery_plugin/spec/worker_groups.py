"""Worker groups of a specification: their checks, and the task queues that each group serves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin.config.settings import (
    DEFAULT_GROUP,
    DEFAULT_TASK_QUEUE,
    ResourceSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.config.tokens import names_in, substitute
from maestro_celery_plugin.errors import nearest
from maestro_celery_plugin.spec.celery_options import check_celery_options
from maestro_celery_plugin.spec.problems import Checked, Kind, Problem

__all__ = ["check_groups", "native_steps", "served_queues", "task_queues", "with_own_task_queues", "with_task_queues"]

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


def task_queues(data: Mapping[str, Any]) -> Checked[dict[str, tuple[str, ...]]]:
    """Return the task queues of each step, one for each value of the parameters in the name."""
    parameters = data.get("global.parameters") or {}
    queues = {}
    for step in data["study"]:
        name, queue = step["name"], step["run"].get("task_queue", DEFAULT_TASK_QUEUE)
        yield from _check_tokens(queue, parameters, f"study.{name}.run.task_queue")
        queues[name] = _expanded(queue, parameters)
    return queues


def _check_tokens(queue: str, parameters: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Check that each token in the name of a task queue is a parameter."""
    rows = _rows(parameters)
    for token in sorted(token for token in names_in(queue) if not rows or token not in rows[0]):
        yield Problem(
            where,
            f"$({token}) in '{queue}' is neither a variable of env nor a parameter, so the "
            f"task queue of the workers is unknown; {nearest(token, parameters)}",
        )


def _expanded(queue: str, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a task queue, one for each value of its parameters."""
    rows = (names_in(queue) and _rows(parameters)) or [{}]
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


def check_groups(resources: ResourceSettings, queues: StepQueues, data: Mapping[str, Any]) -> Iterator[Problem]:
    """Check the names of worker groups, and that their steps, task queues and options exist."""
    existing = {DEFAULT_TASK_QUEUE, *(queue for step_queues in queues.values() for queue in step_queues)}
    for name, group in resources.workers.items():
        where = f"merlin.resources.workers.{name}"
        yield from _check_file_name(name, where)
        yield from _check_file_name(group.allocation, f"{where}.allocation")
        if group.steps and group.task_queues:
            yield Problem(where, "found both steps and task_queues; use one of them.")
        yield from _check_steps(group, tuple(queues), f"{where}.steps")
        for queue in group.task_queues:
            yield from _check_queue(queue, data.get("global.parameters") or {}, existing, f"{where}.task_queues")
        yield from check_celery_options(group.args, f"{where}.args")


def _check_queue(queue: str, parameters: Mapping[str, Any], existing: Set[str], where: str) -> Iterator[Problem]:
    """Check that a step uses a task queue of a group."""
    faults = list(_check_tokens(queue, parameters, where))
    yield from faults
    for name in () if faults else _expanded(queue, parameters):
        if name not in existing:
            yield Problem(where, f"no step uses the task queue '{name}'; {nearest(name, existing)}")


def _check_file_name(name: str | None, where: str) -> Iterator[Problem]:
    """Check the name of a group or of an allocation, which is also a file name."""
    if name is None:
        return
    if "/" in name or name.startswith("."):
        found = f"found '{name}'; the name is also a file name, so it must not contain '/' or begin with a dot."
        yield Problem(where, found)
    size = len(name.encode())
    if not 0 < size <= NAME_LIMIT:
        found = f"found a name of {size} bytes; it is also a file name, so it needs 1 to {NAME_LIMIT} bytes."
        yield Problem(where, found)


def _check_steps(group: WorkerGroupSettings, steps: tuple[str, ...], where: str) -> Iterator[Problem]:
    for step in group.steps:
        if step != "all" and step not in steps:
            names = ", ".join(f"'{name}'" for name in steps)
            yield Problem(where, f"unknown step '{step}'; steps are {names}.")


def with_task_queues(
    resources: ResourceSettings, queues: StepQueues, data: Mapping[str, Any], step_groups: Collection[str] = ()
) -> Checked[ResourceSettings]:
    """Return the worker groups with their task queues; the default group serves those that no other group serves.

    If groups must not overlap, only the first of several groups serves a task queue; groups that name steps or task
    queues come before those that serve all steps. A group whose task queues all belong to other groups is a fault.

    Args:
        resources: The worker groups.
        queues: The task queues of each step.
        data: The specification.
        step_groups: The groups of steps with a `batch` of their own, which serve the task queue of their step alone.
    """
    requested = {name: _requested_queues(group, queues, data) for name, group in resources.workers.items()}
    sole = resources.workers if not resources.overlap else {n: resources.workers[n] for n in step_groups}
    owners = _owners(sole, requested)
    groups: dict[str, WorkerGroupSettings] = {}
    for name, group in resources.workers.items():
        own = tuple(queue for queue in requested[name] if owners.get(queue, name) == name)
        others = {queue: owners[queue] for queue in requested[name] if queue not in own}
        if others:
            yield from _report(name, group, bool(own), others, resources)
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
) -> Iterator[Problem]:
    """Report that other groups serve task queues of a group: a fault if no task queue remains.

    Groups for different machines may name the same steps; the user starts the workers of one of them.
    """
    where, remedy = f"merlin.resources.workers.{name}", "give its steps another `task_queue`, or set `overlap: True`."
    text = ", ".join(f"'{owner}' serves the task queue '{queue}'" for queue, owner in others.items())
    has_machines = group.machines or any(resources.workers[owner].machines for owner in others.values())
    if not serves_some and not has_machines:
        yield Problem(where, f"the group serves nothing: {text}; {remedy}")
    elif not _is_general(group):  # a group for all steps serves the rest
        yield Problem(where, f"{text}; {remedy}", Kind.WARNING)


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


def _requested_queues(group: WorkerGroupSettings, queues: StepQueues, data: Mapping[str, Any]) -> tuple[str, ...]:
    if not group.task_queues:
        return served_queues(group, queues)
    parameters = data.get("global.parameters") or {}
    return tuple(dict.fromkeys(queue for name in group.task_queues for queue in _expanded(name, parameters)))


def served_queues(group: WorkerGroupSettings, queues: StepQueues) -> tuple[str, ...]:
    """Return the task queues that a group serves, from the task queues of each step."""
    if group.task_queues:
        return group.task_queues
    steps = tuple(queues) if not group.steps or "all" in group.steps else group.steps
    return tuple(dict.fromkeys(queue for step in steps for queue in queues.get(step, ())))
