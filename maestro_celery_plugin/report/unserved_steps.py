"""The steps that wait because the workers of all their groups are stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from maestro_celery_plugin.config.groups import serving_groups
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.report.model import StepStatus
from maestro_celery_plugin.study.stopped_workers import StoppedGroups

__all__ = ["as_waiting", "unserved_steps"]


def unserved_steps(settings: EnsembleSettings, stopped: StoppedGroups | None, served: Container[str]) -> frozenset[str]:
    """Return the names of the steps that no group serves any more.

    Args:
        settings: The settings of the study.
        stopped: The groups whose workers are stopped.
        served: The groups with live workers that take samples.
    """
    if stopped is None:
        return frozenset()
    groups = serving_groups(settings).items()
    others = {queue for name, g in groups if name in served or not stopped.include(name) for queue in g.task_queues}
    steps = settings.steps.items()
    return frozenset(step for step, facts in steps if facts.queues and others.isdisjoint(facts.queues))


def as_waiting(step: StepStatus) -> StepStatus:
    """Return the status of a step record of such a step: it waits if it was running."""
    waits = step.state == "RUNNING" and not step.samples.running
    return dataclasses.replace(step, state="PENDING", find_rate=lambda: None) if waits else step
