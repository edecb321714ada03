"""Lost outcomes: a power cut may cost the last entries of the ledger after what depends on their samples has begun.

Maestro submits a step record when everything has ended that it depends on. So if a step record has begun, a sample that
it depends on has had an outcome. If the ledger has none, and nobody has marked the sample to run again, the outcome is
lost, and the step record has used a result that the next attempt replaces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from maestro_celery_plugin.config.settings import StepFacts
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.maestro.step_graph import GraphNode
from maestro_celery_plugin.states import Outcome, RunMode
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["LostOutcomes"]

Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclasses.dataclass(frozen=True)
class _Trace:
    """What the ledger shows of a step record.

    Attributes:
        step: Name of its step.
        open: A mask of the samples without an outcome that nobody has marked to run again.
        begun: A mask of the samples that have begun.
    """

    step: str
    open: Mask
    begun: Mask


class LostOutcomes:
    """Finds what has used outcomes that are lost.

    Args:
        plan: The study.
        records: The manifest and the states of each step record that was submitted.
    """

    def __init__(self, plan: StudyPlan, records: Iterable[tuple[Manifest, SampleStates]]) -> None:
        self._plan = plan
        self._traces = {manifest.name: _trace_of(manifest, states, plan.rows) for manifest, states in records}

    @property
    def may_have_been_used(self) -> bool:
        """Whether `users` may find something; this needs no graph."""
        begun = {trace.step for trace in self._traces.values() if trace.begun.any()}
        with_open = {trace.step for trace in self._traces.values() if trace.open.any()}
        has_native = self._plan.native.is_dir() and any(self._plan.native.iterdir())
        return any(
            (name in begun or (has_native and not facts.queues)) and not with_open.isdisjoint(_steps_before(facts))
            for name, facts in self._plan.settings.steps.items()
        )

    def users(self, nodes: Iterable[GraphNode]) -> Iterator[tuple[GraphNode, Mask | None]]:
        """Yield each step record that has used lost outcomes, with a mask of those samples; None for a native step.

        Args:
            nodes: The step records of the study, each after those that it depends on.
        """
        by_name: dict[str, GraphNode] = {}
        for node in nodes:
            by_name[node.name] = node
            for parent in (by_name[name] for name in node.parents if name in self._traces):
                lost = self._traces[parent.name].open
                if lost.any():
                    yield from self._user(node, lost if node.reads_one_sample_of(parent) else None, self._traces)

    def _user(
        self, node: GraphNode, lost: Mask | None, traces: Mapping[str, _Trace]
    ) -> Iterator[tuple[GraphNode, Mask | None]]:
        if node.is_native:
            state = NativeStepState.of(self._plan.native, node.name)
            if state.has_finished or state.has_job:
                yield node, None
        elif node.name in traces:
            begun = traces[node.name].begun
            used = begun if lost is None else begun & _of_size(lost, len(begun))
            if used.any():
                yield node, used


def _trace_of(manifest: Manifest, states: SampleStates, rows: int) -> _Trace:
    is_open: Mask = states.outcome == Outcome.OPEN
    begun = ~is_open | states.running | (states.mode == RunMode.RESTART)
    unmarked = is_open & (states.rerun_epoch == 0)
    if manifest.sampled and rows:
        unmarked[rows:] = False  # added samples, which run after what depends on the others
    return _Trace(manifest.step, unmarked, begun)


def _steps_before(facts: StepFacts) -> set[str]:
    return {name.removesuffix("_*") for name in facts.depends}


def _of_size(mask: Mask, size: int) -> Mask:
    """Return a mask with another number of samples: one of two step records may not have the added samples yet."""
    found = np.zeros(size, bool)
    found[: len(mask)] = mask[:size]
    return found
