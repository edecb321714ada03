"""Worker groups of steps with a `batch` of their own, such as a local step beside steps in allocations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.settings import DEFAULT_TASK_QUEUE, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.errors import SpecificationError

__all__ = ["with_step_groups"]

# Keys of a step's `batch` that concern its scripts, and not the workers that run them.
_SCRIPT_KEYS = ("type", "shell")


def with_step_groups(
    resources: ResourceSettings, data: Mapping[str, Any], file: str
) -> tuple[ResourceSettings, list[dict[str, Any]]]:
    """Return the worker groups and the steps, with a group for each step whose `batch` differs from that of the study.

    A step that a group names stays in this group; its `batch` may have only the type for `$(LAUNCHER)`, and a shell.

    Args:
        resources: The worker groups of the specification.
        data: The specification.
        file: Name of the specification, for messages.

    Raises:
        SpecificationError: a step has a key that its worker group decides, or shares its task queue with other steps.
    """
    groups, study = dict(resources.workers), []
    for step in data["study"]:
        own = _own_keys(step["run"], data.get("batch") or {})
        owner = _owner(step, resources.workers)
        if own and owner is not None:
            _check_keys(step["name"], own, owner, file)
        elif own:
            _check_queue(step, data["study"], file)
            name = _free_name(step["name"], groups)
            groups[name] = WorkerGroupSettings(steps=(step["name"],), batch=step["run"]["batch"])
            step = {**step, "run": {"task_queue": f"{DEFAULT_TASK_QUEUE}_{name}", **step["run"]}}
        study.append(dict(step))
    return replace(resources, workers=groups), study


def _own_keys(run: Mapping[str, Any], common: Mapping[str, Any]) -> list[str]:
    """Return the keys of a step's `batch` that need other workers than those of the study's `batch`."""
    common = {"type": LOCAL, **common}
    own = run.get("batch") or {}
    return [key for key, value in own.items() if key != "shell" and value != common.get(key)]


def _owner(step: Mapping[str, Any], groups: Mapping[str, WorkerGroupSettings]) -> str | None:
    """Return the first group that names a step, or its task queue."""
    queue = step["run"].get("task_queue")
    return next((n for n, g in groups.items() if step["name"] in g.steps or queue in g.task_queues), None)


def _check_keys(step: str, keys: Iterable[str], owner: str, file: str) -> None:
    for key in keys:
        if key not in _SCRIPT_KEYS:
            raise SpecificationError.at(
                file,
                f"study.{step}.run.batch.{key}",
                f"the worker group '{owner}' runs this step, and decides it; set the key in "
                f"merlin.resources.workers.{owner}.batch, or do not name the step in a worker group.",
            )


def _check_queue(step: Mapping[str, Any], study: Iterable[Mapping[str, Any]], file: str) -> None:
    queue = step["run"].get("task_queue")
    other = next((o["name"] for o in study if o is not step and queue and o["run"].get("task_queue") == queue), None)
    if other is not None:
        raise SpecificationError.at(
            file,
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
