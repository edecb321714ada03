"""The live conductor takes samples that were added to its study: which step records run again in Maestro's graph.

Maestro's `ExecutionGraph` never runs a step record again that has finished. So its conductor, right after Maestro has
asked for the states of the step records, and before it acts on them, does this for an addition:

* A sampled step record that Maestro waits for has more samples, and stays in progress. If it depends on another one
  that has to run the new samples first, it has them when one of the two has ended.
* A sampled step record that has finished is as before its submission. Maestro submits it again; the new samples run.
* What depends on all samples of these is as before its submission as well, and runs again whole. If it runs just now,
  as the step does that adds samples in a loop, it runs to its end first; its end is hidden from Maestro.
* A step record that has failed or was cancelled stays so, and so does what depends on it.

The same is done when Maestro finds that all step records have ended, because some of them run while Maestro looks: so
an addition of the last step does not come too late.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from maestrowf.abstracts.enums import State

from maestro_celery_plugin.conductor.added_samples import Taking
from maestro_celery_plugin.conductor.coordinator import Coordinator
from maestro_celery_plugin.config.step_entry import is_native
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.files import refresh_directory
from maestro_celery_plugin.maestro.native_step_state import NativeStepState, state_path
from maestro_celery_plugin.maestro.step_graph import GraphNode, nodes_of, parents_of
from maestro_celery_plugin.study import conductor_lock
from maestro_celery_plugin.study.additions import grown
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.manifest_builder import build_manifest

__all__ = ["repeated", "take_additions", "take_last_additions"]

LOGGER = logging.getLogger(__name__)

# The states of a step record that goes on; Maestro starts it again in the last two, or lets it fail. None is unknown.
_CONTINUING = (
    *(State.PENDING, State.WAITING, State.RUNNING, State.FINISHING, State.QUEUED, None),
    *(State.TIMEDOUT, State.HWFAILURE),
)


def take_additions(graph: Any, coordinators: Iterable[Coordinator], states: Mapping[str, Any]) -> dict[str, Any]:
    """Let the step records of a graph take the samples that were added to its study.

    Args:
        graph: Maestro's `ExecutionGraph`.
        coordinators: The coordinators of this process.
        states: The states of the step records in progress, which Maestro has just asked for.

    Returns:
        The states on which Maestro acts, without those of step records that run again.
    """
    coordinator = _coordinator_of(graph, coordinators)
    if coordinator is None or not coordinator.plan.rows or graph.is_canceled:
        return dict(states)
    try:
        return _Growth(graph, coordinator, states).take()
    except (EnsembleError, OSError) as error:  # an error here would end the conductor; the next poll tries again
        LOGGER.error("The samples that were added cannot be taken now: %s", error)
    except Exception:  # an error in the plugin
        LOGGER.exception("The samples that were added cannot be taken.")
    return dict(states)


def take_last_additions(graph: Any, coordinators: Iterable[Coordinator]) -> bool:
    """Do the same when all step records have ended; return whether some run again."""
    ended = len(graph.completed_steps)
    take_additions(graph, coordinators, {})
    return len(graph.completed_steps) < ended


def _coordinator_of(graph: Any, coordinators: Iterable[Coordinator]) -> Coordinator | None:
    root = Path(str((graph._adapter or {}).get("study", "")))
    return next((one for one in coordinators if one.plan.root == root), None)


def repeated(nodes: Iterable[GraphNode], growing: Iterable[str]) -> dict[str, bool]:
    """Return the step records that an addition changes, and whether all their samples run again.

    Args:
        nodes: All step records, each after those that it depends on.
        growing: The names of the sampled step records that have more samples now.
    """
    by_name, found = {}, dict.fromkeys(growing, False)
    for node in nodes:
        by_name[node.name] = node
        for parent in filter(found.__contains__, node.parents):
            if found[parent] or not node.reads_one_sample_of(by_name[parent]):
                found[node.name] = True
    return found


class _Growth:
    """What the additions of a study change in its graph, at one poll.

    Args:
        graph: Maestro's `ExecutionGraph`.
        coordinator: The coordinator of the study.
        states: The states of the step records in progress.
    """

    def __init__(self, graph: Any, coordinator: Coordinator, states: Mapping[str, Any]) -> None:
        self._graph, self._coordinator, self._plan = graph, coordinator, coordinator.plan
        self._states = dict(states)
        self._repeat = CancelledSteps(self._plan.steps_to_repeat)

    def take(self) -> dict[str, Any]:
        """Take the additions, and return the states on which Maestro acts."""
        if State.FINISHED in self._states.values() or not self._graph.in_progress:
            # An addition by a step that has just ended must be visible; NFS may know an old directory.
            with contextlib.suppress(OSError):  # a full disk
                refresh_directory(self._plan.info)
        self._repeat_ended()
        outdated = self._coordinator.outdated()
        if outdated:
            self._take(outdated)
        return self._states

    def _repeat_ended(self) -> None:
        """Let the step records run again that were to end first, and have ended."""
        names = self._repeat.names()
        if not names:
            return
        self._coordinator.repeat(names)
        running = self._running(names)
        finished = {n for n in names if n not in running and self._has_begun(n) and not self._has_failed(n)}
        again = [key for key in reversed(self._graph.values) if key in finished] if finished else []
        if again:
            self._forget_native(again)
            self._coordinator.run_again(again)
            self._reset(again)
        self._repeat.remove(finished | {n for n in names if self._has_failed(n)})

    def _take(self, outdated: Mapping[str, Manifest]) -> None:
        nodes = nodes_of(self._plan.root, self._graph)
        held = self._held_back(nodes, outdated)
        outdated = {name: one for name, one in outdated.items() if name not in held or not self._runs(name)}
        if not outdated:
            return
        changed = repeated(nodes, outdated)
        whole = [node for node in reversed(nodes) if changed.get(node.name) and not self._has_failed(node.name)]
        later = self._running(node.name for node in whole if not node.sampled)
        again = [node.name for node in whole if node.name not in later]
        more = [name for name in outdated if name not in again and not self._has_failed(name)]
        running = [name for name in more if name in self._graph.in_progress and name not in held]
        repeated_names = [*(name for name in again if not self._is_new(name)), *later]
        self._repeat.add(later)
        self._coordinator.repeat(later)
        self._forget_native(again)
        self._coordinator.take(Taking(again=again, grown=self._grown(outdated), running=running))
        for name in running:
            if self._states.get(name) is State.FINISHED:
                del self._states[name]
        self._reset([name for name in (*again, *more) if name not in running])
        LOGGER.info(
            "The study has %d samples now; they run in %s.%s",
            self._coordinator.total_samples,
            ", ".join(more) or "no step record",
            f" Run again because of them: {', '.join(repeated_names)}." if repeated_names else "",
        )

    def _held_back(self, nodes: Collection[GraphNode], outdated: Collection[str]) -> set[str]:
        """Return the step records whose new samples must wait for those of step records that they depend on.

        One that runs just now has its new samples later, so that its samples of before run to their end.
        """
        whole = {name for name, is_whole in repeated(nodes, outdated).items() if is_whole}
        return {
            node.name
            for node in nodes
            if node.name in outdated
            and node.name not in whole
            and any(name in outdated or not self._has_ended(name) for name in node.parents)
        }

    def _has_ended(self, name: str) -> bool:
        is_finished = name in self._graph.completed_steps or self._states.get(name) is State.FINISHED
        return is_finished or self._has_failed(name)

    def _runs(self, name: str) -> bool:
        return name in self._graph.in_progress and self._states.get(name) is not State.FINISHED

    def _has_failed(self, name: str) -> bool:
        """Whether a step record has failed or was cancelled, as Maestro knows or has just learnt."""
        graph, state = self._graph, self._states.get(name)
        if name in graph.failed_steps or name in graph.cancelled_steps:
            return True
        return state not in (*_CONTINUING, State.FINISHED)

    def _is_new(self, name: str) -> bool:
        return self._graph.values[name].status is State.INITIALIZED

    def _has_begun(self, name: str) -> bool:
        return name in self._graph.in_progress or name in self._graph.completed_steps

    def _running(self, names: Iterable[str]) -> set[str]:
        """Return the step records that run just now; for a native step, Maestro's adapter knows it."""
        open_ = [name for name in names if self._runs(name)]
        native = {n for n in open_ if is_native(self._graph.values[n].step.run)}
        return native | self._coordinator.running(open_)

    def _forget_native(self, names: Iterable[str]) -> None:
        for name in names:
            if is_native(self._graph.values[name].step.run):
                NativeStepState(state_path(self._plan.native, name)).forget()

    def _grown(self, outdated: Mapping[str, Manifest]) -> dict[str, Manifest]:
        """Return the manifests of step records with all samples of the study."""
        return {name: self._grown_manifest(name, manifest) for name, manifest in outdated.items()}

    def _grown_manifest(self, name: str, manifest: Manifest) -> Manifest:
        added = self._coordinator.total_samples - self._plan.rows
        try:
            return build_manifest(self._plan, self._graph.values[name].step, manifest.workspace, added)
        except EnsembleError:  # its submission reports it
            return grown(manifest, self._coordinator.total_samples)

    def _reset(self, names: Collection[str]) -> None:
        """Let Maestro submit step records again when what they depend on has ended."""
        graph, parents = self._graph, parents_of(self._graph)
        for name in names:
            graph.in_progress.discard(name)
            graph.completed_steps.discard(name)
            record = graph.values[name]
            record.status = State.INITIALIZED
            record._submit_time = record._end_time = None
            record._num_restarts = 0
            self._states.pop(name, None)
        # Maestro has removed dependencies that had finished, also of step records that wait for a free place.
        for name, record in graph.values.items():
            if record is not None and record.status is State.INITIALIZED:
                graph._dependencies[name] = set(parents[name])
                if name in graph.ready_steps:
                    graph.ready_steps.remove(name)
        conductor_lock.acquire(self._plan).must_poll = True
