"""Explain: why step records of a study do not run, in sentences, from files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin.allocations import Allocation, read_allocations
from maestro_celery_plugin.session import Session
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.status import StatusReader
from maestro_celery_plugin.status_csv import LAST_STATES
from maestro_celery_plugin.study import StudyPlan
from maestro_celery_plugin.study_status import StepStatus, StudyStatus
from maestro_celery_plugin.worker_sources import allocation_name, batch_of, is_for_this_machine

__all__ = ["explain"]


def explain(directory: Path) -> list[tuple[str, list[str]]]:
    """Return each step record that has not finished, with what it waits for or why it has ended.

    Raises:
        StudyError: it is not the directory of an ensemble study.
    """
    return list(_Explanation(directory).records())


class _Explanation:
    """What the files of a study say."""

    def __init__(self, directory: Path) -> None:
        self._plan = StudyPlan.read(directory)
        self._status: StudyStatus = StatusReader(directory).read()
        self._beats = Session(self._plan.session).heartbeats() if self._plan.session.exists() else []
        self._allocations = {one.name: one for one in read_allocations(self._plan.allocations)}
        self._reasons: dict[str, str] = {}
        if self._plan.reasons.exists():
            self._reasons = json.loads(self._plan.reasons.read_text())

    def records(self) -> Iterator[tuple[str, list[str]]]:
        for step in self._status.steps:
            if step.state != "FINISHED":
                yield f"{step.name}  {step.state}", list(self._why(step))

    def _why(self, step: StepStatus) -> Iterator[str]:
        if step.state in LAST_STATES:
            yield from self._why_ended(step)
        elif self._status.has_ended:
            yield f"No conductor runs the study; `maestro-celery resume {self._plan.root}` goes on with it."
            for name in self._groups_of(step):
                yield from self._left_open(name)
        elif step.state == "INITIALIZED":
            yield from self._awaited_steps(step)
        else:
            yield from self._progress(step)
            for name in self._groups_of(step):
                yield self._group(name)

    def _why_ended(self, step: StepStatus) -> Iterator[str]:
        if step.name in self._reasons:
            yield self._reasons[step.name]
        if step.samples.failed:
            count = step.samples.failed
            yield f"{count} samples failed; `maestro-celery status --failed {self._plan.root}` lists them."
        if step.samples.pending or step.samples.running:
            left = step.samples.pending + step.samples.running
            restarts = f" after {step.restarts} restarts (`maestro run -r` sets their limit)" if step.restarts else ""
            yield f"{left} samples are left{restarts}; `maestro-celery resume {self._plan.root}` runs them."
        if not step.samples.total:
            yield from self._awaited_steps(step)
            if self._is_plain(step) and step.state != "CANCELLED":
                yield f"Maestro has run it itself; what it has printed is below '{self._plan.root / step.step}'."

    def _awaited_steps(self, step: StepStatus) -> Iterator[str]:
        facts = self._plan.settings.steps.get(step.step)
        wanted = set(facts.depends if facts else ())
        left = [one for one in self._status.steps if one.step in wanted and one.state != "FINISHED"]
        if left:
            names = ", ".join(f"{one.name} ({one.state})" for one in left[:5])
            yield f"It needs {names}{f' and {len(left) - 5} more' if len(left) > 5 else ''}."
        elif step.state == "INITIALIZED":
            yield "Maestro has not submitted it yet: it does so at its next poll, or `-t` limits how many run."

    def _is_plain(self, step: StepStatus) -> bool:
        facts = self._plan.settings.steps.get(step.step)
        return facts is not None and not facts.queues

    def _left_open(self, name: str) -> Iterator[str]:
        """Name the batch job that a conductor has left behind."""
        group = self._plan.settings.resources.workers[name]
        allocation = self._allocations.get(allocation_name(name, group))
        if allocation is not None and allocation.is_open:
            yield (
                f"When it was last looked at, job {allocation.job} of allocation '{allocation.label}' was open. Its "
                f"workers leave {group.idle_limit:g} s after their last work; cancel the job to end it now."
            )

    def _progress(self, step: StepStatus) -> Iterator[str]:
        if self._is_plain(step):
            yield "Maestro runs it itself, as a batch job of its own."
            return
        counts = step.samples
        yield f"{counts.running} samples run, {counts.pending} wait, {counts.finished + counts.failed} have ended."

    def _groups_of(self, step: StepStatus) -> list[str]:
        facts = self._plan.settings.steps.get(step.step)
        queues = set(facts.queues if facts else ())
        return [n for n, g in self._plan.settings.resources.workers.items() if queues.intersection(g.task_queues)]

    def _group(self, name: str) -> str:
        """Say what the workers of a group do, or are waited for by."""
        group = self._plan.settings.resources.workers[name]
        alive = {worker.name: worker.state for worker in self._status.workers if worker.group == name}
        alive = {worker: state for worker, state in alive.items() if state not in ("dead", "awaited")}
        if alive:
            states = ", ".join(f"{worker} ({self._state(worker, state)})" for worker, state in alive.items())
            return f"Worker group '{name}': {states}."
        if not is_for_this_machine(group):
            return (
                f"Worker group '{name}' waits for its workers on {' or '.join(group.machines)}: start them there with "
                f"`maestro-celery workers {self._plan.root} --group {name}`."
            )
        if batch_of(self._plan.settings, group).type == "local":
            return f"Worker group '{name}': its worker is starting; its log is below '{self._plan.info / 'workers'}'."
        return self._allocation(name, self._allocations.get(allocation_name(name, group)))

    def _state(self, worker: str, state: str) -> str:
        beat = next((beat for beat in self._beats if beat.name == worker), None)
        if beat is not None and (beat.refuses or state == "draining"):
            return f"{state}, its allocation ends too soon for the samples that are left"
        return state

    @staticmethod
    def _allocation(group: str, allocation: Allocation | None) -> str:
        if allocation is None:
            return f"Worker group '{group}': no allocation has been submitted yet."
        which = f"allocation '{allocation.label}' (job {allocation.job})"
        text = f"Worker group '{group}': {which}: {allocation.state.value}"
        said = f": {allocation.reason}" if allocation.reason else ""
        if allocation.state is AllocationState.RUNNING:
            return f"{text}; its workers are starting, or do not reach the study: look at '{allocation.directory}'."
        return f"{text}{said}."
