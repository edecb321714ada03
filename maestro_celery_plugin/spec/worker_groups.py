"""Worker groups of a specification: their checks, and the task queues that each of them serves."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Set
from typing import Any

from maestro_celery_plugin.config.problems import nearest
from maestro_celery_plugin.config.settings import (
    DEFAULT_GROUP,
    DEFAULT_TASK_QUEUE,
    ResourceSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.config.tokens import names_in, substitute
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.spec.checks import check_batch
from maestro_celery_plugin.spec.worker_args import check_worker_args

__all__ = ["check_groups", "native_steps", "served_queues", "task_queues", "with_task_queues"]

LOGGER = logging.getLogger(__name__)

# Task queues of each step; several if the name of the task queue has a parameter.
StepQueues = Mapping[str, tuple[str, ...]]


def native_steps(resources: ResourceSettings, sampled: Set[str], data: Mapping[str, Any]) -> frozenset[str]:
    """Return the native steps: Maestro runs the steps that no worker group serves.

    Args:
        resources: The worker groups of the specification.
        sampled: The sampled steps.
        data: The specification.
    """
    if resources.unassigned == "workers":
        return frozenset()
    named = {step for group in resources.workers.values() for step in group.steps} - {"all"}
    return frozenset(
        step["name"]
        for step in data["study"]
        if step["name"] not in sampled | named and "task_queue" not in step["run"]
    )


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
            f"$({unknown[0]}) in '{queue}' is neither a variable of env nor a parameter, so the task "
            f"queue is unknown; {nearest(unknown[0], parameters)}",
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
    """Check that the steps, task queues and options of worker groups exist.

    Raises:
        SpecificationError: one of them does not exist.
    """
    known = {DEFAULT_TASK_QUEUE, *(queue for all_of_step in queues.values() for queue in all_of_step)}
    for name, group in resources.workers.items():
        where = f"merlin.resources.workers.{name}"
        for text, key in ((name, where), (group.allocation, f"{where}.allocation")):
            if text and ("/" in text or text.startswith(".")):
                found = f"found '{text}'; it is also a file name, so it must not contain '/' or begin with a dot."
                raise SpecificationError.at(file, key, found)
        if group.steps and group.task_queues:
            raise SpecificationError.at(file, where, "found both steps and task_queues; use one of them.")
        _check_steps(group, tuple(queues), file, f"{where}.steps")
        for queue in group.task_queues:
            for one in _expanded(queue, data.get("global.parameters") or {}, file, f"{where}.task_queues"):
                if one not in known:
                    found = f"no step uses the task queue '{one}'; {nearest(one, known)}"
                    raise SpecificationError.at(file, f"{where}.task_queues", found)
        if group.batch:
            check_batch(group.batch, file, f"{where}.batch")
        check_worker_args(group.args, file, f"{where}.args")


def _check_steps(group: WorkerGroupSettings, steps: tuple[str, ...], file: str, where: str) -> None:
    for step in group.steps:
        if step != "all" and step not in steps:
            known = ", ".join(f"'{known}'" for known in steps)
            raise SpecificationError.at(file, where, f"unknown step '{step}'; steps are {known}.")


def with_task_queues(
    resources: ResourceSettings, queues: StepQueues, data: Mapping[str, Any], file: str
) -> ResourceSettings:
    """Return the worker groups with their task queues; the default group serves the task queues of no other group.

    If groups may not overlap, the first of several groups serves a task queue.
    """
    owners: dict[str, str] = {}
    groups: dict[str, WorkerGroupSettings] = {}
    for name, group in resources.workers.items():
        wanted = _wanted(group, queues, data, file)
        for queue in wanted if not resources.overlap else ():
            if owners.setdefault(queue, name) != name:
                LOGGER.warning(
                    "%s: merlin.resources.workers.%s: the worker group '%s' already serves "
                    "the task queue '%s'. Give the steps another `task_queue`, or set `overlap: True`.",
                    file, name, owners[queue], queue,
                )  # fmt: skip
        mine = tuple(queue for queue in wanted if owners.get(queue, name) == name)
        groups[name] = dataclasses.replace(group, task_queues=mine)
    served = {queue for group in groups.values() for queue in group.task_queues}
    _serve_the_rest(groups, {step: _without(names, served) for step, names in queues.items()})
    return dataclasses.replace(resources, workers=groups)


def _without(names: Iterable[str], served: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in served)


def _serve_the_rest(groups: dict[str, WorkerGroupSettings], left: StepQueues) -> None:
    """Give the task queues of no group to the default group, which the specification may contain."""
    steps = tuple(step for step, names in left.items() if names)
    rest = tuple(dict.fromkeys(name for names in left.values() for name in names))
    if not rest:
        return
    group = groups.get(DEFAULT_GROUP, WorkerGroupSettings())
    groups[DEFAULT_GROUP] = dataclasses.replace(
        group,
        steps=tuple(dict.fromkeys((*group.steps, *steps))),
        task_queues=tuple(dict.fromkeys((*group.task_queues, *rest))),
    )


def _wanted(group: WorkerGroupSettings, queues: StepQueues, data: Mapping[str, Any], file: str) -> tuple[str, ...]:
    if not group.task_queues:
        return served_queues(group, queues)
    parameters = data.get("global.parameters") or {}
    return tuple(dict.fromkeys(one for name in group.task_queues for one in _expanded(name, parameters, file, "")))


def served_queues(group: WorkerGroupSettings, queues: StepQueues) -> tuple[str, ...]:
    """Return the task queues that a group serves, from those of each step."""
    if group.task_queues:
        return group.task_queues
    steps = tuple(queues) if not group.steps or "all" in group.steps else group.steps
    return tuple(dict.fromkeys(queue for step in steps for queue in queues[step]))
