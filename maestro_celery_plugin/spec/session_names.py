"""The names of worker groups and task queues in a session that several studies share.

A study uses the workers of a group that another study has, if the group has the same name and the same configuration.
Otherwise its group gets a name of its own, and so do the task queues that it serves: a message must not reach a worker
with other options or resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin.config.groups import shared_groups
from maestro_celery_plugin.config.settings import DEFAULT_TASK_QUEUE, EnsembleSettings

__all__ = ["SessionNames"]

# The configurations of a study's groups by name (`GroupConfig`).
Groups = Mapping[str, Mapping[str, Any]]


class SessionNames:
    """Chooses the names for a study that joins a session.

    Args:
        settings: The settings of the study, with the names of its specification.
        others: The groups of each other study of the session.
        number: The number of the study in the session, which ends its own names.

    Attributes:
        settings: The settings with the names in the session.
        renamed: The new names of groups by their names in the specification.
    """

    def __init__(self, settings: EnsembleSettings, others: Iterable[Groups], number: int) -> None:
        self._others = list(others)
        self._suffix = self._free_suffix(settings, number)
        self.renamed: dict[str, str] = {}
        self._queues: set[str] = set()
        own = shared_groups(settings)
        for part in _parts(settings):
            if any(self._differs(name, own[name], own) for name in part):
                self.renamed.update({name: name + self._suffix for name in part})
                self._queues.update(queue for name in part for queue in settings.resources.workers[name].task_queues)
        self.settings = self._applied_to(settings) if self.renamed else settings

    def _free_suffix(self, settings: EnsembleSettings, number: int) -> str:
        known = {name for groups in self._others for name in groups}
        suffix = f"_{number}"
        while not known.isdisjoint(name + suffix for name in settings.resources.workers):
            suffix += "_"
        return suffix

    def _differs(self, name: str, config: Mapping[str, Any], own: Groups) -> bool:
        """Tell whether another study has a group of this name, or one for its task queues, that is different."""
        queues = set(config.get("queues", ()))
        for groups in self._others:
            if name in groups and groups[name] != config:
                return True
            for other, theirs in groups.items():
                if not queues.isdisjoint(theirs.get("queues", ())) and own.get(other) != theirs:
                    return True
        return False

    def _applied_to(self, settings: EnsembleSettings) -> EnsembleSettings:
        workers = {}
        for name, group in settings.resources.workers.items():
            if name in self.renamed:
                queues = tuple(queue + self._suffix for queue in group.task_queues)
                allocation = group.allocation and group.allocation + self._suffix
                workers[self.renamed[name]] = replace(group, task_queues=queues, allocation=allocation)
            else:
                workers[name] = group
        steps = {
            name: replace(step, queues=tuple(self._queue(queue) for queue in step.queues))
            for name, step in settings.steps.items()
        }
        return replace(settings, resources=replace(settings.resources, workers=workers), steps=steps)

    def _queue(self, queue: str) -> str:
        return queue + self._suffix if queue in self._queues else queue

    def steps(self, study: Iterable[Mapping[str, Any]], settings: EnsembleSettings) -> list[dict[str, Any]]:
        """Return the steps of a specification with the names of task queues in the session.

        Args:
            study: The steps.
            settings: The settings with the names of the specification.
        """
        return [self._step(step, settings.steps[step["name"]].queues) for step in study]

    def _step(self, step: Mapping[str, Any], queues: tuple[str, ...]) -> dict[str, Any]:
        if self._queues.isdisjoint(queues):
            return dict(step)
        queue = step["run"].get("task_queue") or DEFAULT_TASK_QUEUE
        return {**step, "run": {**step["run"], "task_queue": queue + self._suffix}}


def _parts(settings: EnsembleSettings) -> list[set[str]]:
    """Return the groups in parts: groups that share a task queue, a step or an allocation are in one part."""
    workers = {name: group for name, group in settings.resources.workers.items() if group.task_queues}
    links: list[tuple[set[str], set[str]]] = []
    for name, group in workers.items():
        words = {f"queue {queue}" for queue in group.task_queues}
        words |= {f"allocation {group.allocation}"} if group.allocation else set()
        words |= {f"step {n}" for n, s in settings.steps.items() if set(s.queues).intersection(group.task_queues)}
        names = {name}
        for other in [link for link in links if not link[1].isdisjoint(words)]:
            links.remove(other)
            names, words = names | other[0], words | other[1]
        links.append((names, words))
    return [names for names, _ in links]
