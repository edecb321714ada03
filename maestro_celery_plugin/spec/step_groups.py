"""Worker groups of steps with a `batch` of their own, such as a local step beside steps in allocations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.settings import DEFAULT_TASK_QUEUE, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.spec.problems import Checked, Problem

__all__ = ["at_their_steps", "with_step_groups"]

# Keys of a step's `batch` that concern its scripts, and not the workers that run them.
_SCRIPT_KEYS = ("type", "shell")
# Keys of `batch` that no other workers follow from; `checks.py` refuses a dry run of one step.
_COMMON_KEYS = ("shell", "dry_run")


def with_step_groups(
    resources: ResourceSettings, data: Mapping[str, Any]
) -> Checked[tuple[ResourceSettings, list[dict[str, Any]]]]:
    """Return the worker groups and the steps, with a group for each step whose `batch` differs from that of the study.

    A step that a group names stays in this group; its `batch` may have only the type for `$(LAUNCHER)`, and a shell.
    A key that the group decides is a fault, and so is a task queue that a step with its own workers shares.

    Args:
        resources: The worker groups of the specification.
        data: The specification.
    """
    groups, study = dict(resources.workers), []
    for step in data["study"]:
        own = _own_keys(step["run"], data.get("batch") or {})
        owner = _owner(step, resources.workers)
        if own and owner is not None:
            yield from _check_keys(step["name"], own, owner)
        elif own:
            yield from _check_queue(step, data["study"])
            name = _free_name(step["name"], groups)
            groups[name] = WorkerGroupSettings(steps=(step["name"],), batch=step["run"]["batch"])
            step = {**step, "run": {"task_queue": f"{DEFAULT_TASK_QUEUE}_{name}", **step["run"]}}
        study.append(dict(step))
    return replace(resources, workers=groups), study


def at_their_steps(
    problems: Iterable[Problem], groups: Mapping[str, WorkerGroupSettings], step_groups: Iterable[str]
) -> Iterator[Problem]:
    """Yield problems; those of the group of a step get the place of the step's `batch`, which the user has written.

    Args:
        problems: Problems of worker groups.
        groups: The worker groups.
        step_groups: The groups of steps with a `batch` of their own.
    """
    places = {f"merlin.resources.workers.{name}.": f"study.{groups[name].steps[0]}.run.batch" for name in step_groups}
    for problem in problems:
        place = next((place for place in places if problem.where.startswith(place)), None)
        if place is None:
            yield problem
        else:
            key = problem.where.removeprefix(place).removeprefix("batch").lstrip(".")
            yield dataclasses.replace(problem, where=f"{places[place]}.{key}".rstrip("."))


def _own_keys(run: Mapping[str, Any], common: Mapping[str, Any]) -> list[str]:
    """Return the keys of a step's `batch` that need other workers than those of the study's `batch`."""
    common = {"type": LOCAL, **common}
    own = run.get("batch") or {}
    return [key for key, value in own.items() if key not in _COMMON_KEYS and value != common.get(key)]


def _owner(step: Mapping[str, Any], groups: Mapping[str, WorkerGroupSettings]) -> str | None:
    """Return the first group that names a step, or its task queue."""
    queue = step["run"].get("task_queue")
    return next((n for n, g in groups.items() if step["name"] in g.steps or queue in g.task_queues), None)


def _check_keys(step: str, keys: Iterable[str], owner: str) -> Iterator[Problem]:
    for key in keys:
        if key not in _SCRIPT_KEYS:
            yield Problem(
                f"study.{step}.run.batch.{key}",
                f"the worker group '{owner}' runs this step, and decides it; set the key in "
                f"merlin.resources.workers.{owner}.batch, or do not name the step in a worker group.",
            )


def _check_queue(step: Mapping[str, Any], study: Iterable[Mapping[str, Any]]) -> Iterator[Problem]:
    queue = step["run"].get("task_queue")
    other = next((o["name"] for o in study if o is not step and queue and o["run"].get("task_queue") == queue), None)
    if other is not None:
        yield Problem(
            f"study.{step['name']}.run.batch",
            f"the step has workers of its own, but shares the task queue '{queue}' with '{other}'; give the step "
            "another `task_queue`, or name both in a worker group with this `batch`.",
        )


def _free_name(step: str, taken: Iterable[str]) -> str:
    """Return the name of a step's group, which is also a file name and part of the name of a job."""
    name = re.sub(r"[^\w.-]", "_", step).lstrip(".")
    while name in taken:
        name += "_batch"
    return name
