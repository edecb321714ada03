"""Worker groups as written in the specification: checked, and with the task queues each of them serves."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Set
from typing import Any

from maestro_celery_plugin.config import schema
from maestro_celery_plugin.config.settings import (
    DEFAULT_GROUP,
    DEFAULT_TASK_QUEUE,
    ResourceSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.config.tokens import names_in, substitute
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.spec.checks import check_batch

__all__ = ["check_groups", "left_to_maestro", "served_queues", "task_queues", "with_task_queues"]

LOGGER = logging.getLogger(__name__)

# Task queues of each step: more than one where the name has a parameter.
StepQueues = Mapping[str, tuple[str, ...]]


def left_to_maestro(resources: ResourceSettings, sampled: Set[str], data: Mapping[str, Any]) -> frozenset[str]:
    """Return the steps that Maestro runs itself: those that nothing gives to the workers.

    Args:
        resources: The worker groups as written.
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
    """Return the task queues of each step, one for each value of the parameters in its name.

    Raises:
        SpecificationError: a name has a token that is neither variable nor parameter.
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
            f"$({unknown[0]}) in '{queue}' is neither a variable of env nor a parameter, so it cannot be "
            f"known which task queue workers have to serve; {schema.nearest(unknown[0], parameters)}",
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
    """Make sure that worker groups name steps, task queues and options that there are.

    Raises:
        SpecificationError: one of them does not.
    """
    from maestro_celery_plugin.spec.worker_args import check_worker_args

    known = {DEFAULT_TASK_QUEUE, *(queue for all_of_step in queues.values() for queue in all_of_step)}
    for name, group in resources.workers.items():
        where = f"merlin.resources.workers.{name}"
        for text, key in ((name, where), (group.allocation, f"{where}.allocation")):
            if text and ("/" in text or text.startswith(".")):
                found = f"found '{text}'; files are named after it, so it can have no '/' and begin with no dot."
                raise SpecificationError.at(file, key, found)
        if group.steps and group.task_queues:
            raise SpecificationError.at(file, where, "it names both steps and task_queues; name one of them.")
        _check_steps(group, tuple(queues), file, f"{where}.steps")
        for queue in group.task_queues:
            for one in _expanded(queue, data.get("global.parameters") or {}, file, f"{where}.task_queues"):
                if one not in known:
                    found = f"no step uses the task queue '{one}'; {schema.nearest(one, known)}"
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
    """Resolve which task queues each group serves, and let the default group serve those that none does.

    Where groups may not overlap, a task queue that two of them ask for is the first one's.
    """
    owners: dict[str, str] = {}
    groups: dict[str, WorkerGroupSettings] = {}
    for name, group in resources.workers.items():
        wanted = _wanted(group, queues, data, file)
        for queue in wanted if not resources.overlap else ():
            if owners.setdefault(queue, name) != name:
                LOGGER.warning(
                    "%s: merlin.resources.workers.%s: the task queue '%s' is served by '%s' already; "
                    "with `overlap: False` the first group serves it. Give its steps a `task_queue` of their own, "
                    "or set `overlap: True`.", file, name, queue, owners[queue],
                )  # fmt: skip
        mine = tuple(queue for queue in wanted if owners.get(queue, name) == name)
        groups[name] = dataclasses.replace(group, task_queues=mine)
    served = {queue for group in groups.values() for queue in group.task_queues}
    _serve_the_rest(groups, {step: _without(names, served) for step, names in queues.items()})
    return dataclasses.replace(resources, workers=groups)


def _without(names: Iterable[str], served: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in served)


def _serve_the_rest(groups: dict[str, WorkerGroupSettings], left: StepQueues) -> None:
    """Let the default group, which the user may have written, serve what no group does."""
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


def _wanted(
    group: WorkerGroupSettings, queues: StepQueues, data: Mapping[str, Any], file: str
) -> tuple[str, ...]:
    if not group.task_queues:
        return served_queues(group, queues)
    parameters = data.get("global.parameters") or {}
    return tuple(
        dict.fromkeys(one for name in group.task_queues for one in _expanded(name, parameters, file, ""))
    )


def served_queues(group: WorkerGroupSettings, queues: StepQueues) -> tuple[str, ...]:
    """Return the task queues a group serves, given those of each step."""
    if group.task_queues:
        return group.task_queues
    steps = tuple(queues) if not group.steps or "all" in group.steps else group.steps
    return tuple(dict.fromkeys(queue for step in steps for queue in queues[step]))
