"""Sentences about the worker groups of a study: what their workers do, or why a group has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from maestro_celery_plugin.batch.allocation import Allocation, job_words, read_allocations
from maestro_celery_plugin.config.groups import LOCAL, allocation_name, awaiting, batch_of, is_for_this_machine
from maestro_celery_plugin.report.model import StudyStatus
from maestro_celery_plugin.report.terminal import command_words
from maestro_celery_plugin.states import AllocationState, WorkerState
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["GroupSentences"]

# The number of workers of a group that an explanation names.
_SHOWN = 5
_NOT_ALIVE = (WorkerState.DEAD, WorkerState.AWAITED)


class GroupSentences:
    """The sentences about the worker groups of one study.

    Args:
        plan: The study.
        status: Its status.
    """

    def __init__(self, plan: StudyPlan, status: StudyStatus) -> None:
        self._plan, self._status = plan, status
        self._groups = plan.settings.resources.workers
        beats = Session(plan.session).heartbeats.all() if plan.session.exists() else []
        self._beats = {beat.name: beat for beat in beats}
        self._allocations = {allocation.name: allocation for allocation in read_allocations(plan.allocations)}
        self._sentences: dict[str, str] = {}

    def names(self, step: str) -> list[str]:
        """Return the names of the worker groups that serve a step."""
        facts = self._plan.settings.steps.get(step)
        queues = set(facts.queues if facts else ())
        return [name for name, group in self._groups.items() if queues.intersection(group.task_queues)]

    def now(self, step: str) -> Iterator[str]:
        """Yield what the worker groups of a step do now, or why a group has no live worker."""
        for name in self.names(step):
            if name not in self._sentences:
                self._sentences[name] = self._sentence(name)
            yield self._sentences[name]

    def open_allocations(self, step: str) -> Iterator[str]:
        """Yield the allocations of a step that were open at the last check of a conductor."""
        for name in self.names(step):
            allocation = self._allocation_of(name)
            if allocation is not None and allocation.is_open:
                yield (
                    f"Job {allocation.job} of allocation '{allocation.label}' was open at the last check. Its workers "
                    f"leave {self._groups[name].idle_limit:g} s after their last work; "
                    f"`{command_words('maestro cancel', self._plan.root)}` ends the job now."
                )

    def has_allocation(self, step: str) -> bool:
        """Tell whether a worker group of a step has had an allocation."""
        return any(self._allocation_of(name) for name in self.names(step))

    def _allocation_of(self, name: str) -> Allocation | None:
        """Return the last allocation of a worker group."""
        return self._allocations.get(allocation_name(name, self._groups[name]))

    def _sentence(self, name: str) -> str:
        """Return the states of the live workers of a group, or why the group has no live worker."""
        group = self._groups[name]
        alive = {worker.name: worker.state for worker in self._status.workers if worker.group == name}
        alive = {worker: state for worker, state in alive.items() if state not in _NOT_ALIVE}
        if alive:
            workers = [(worker, self._state(worker, state)) for worker, state in alive.items()]
            states = ", ".join(f"{worker} ({state})" for worker, state in workers[:_SHOWN])
            more = Counter(state for _, state in workers[_SHOWN:])
            rest = "".join(f", and {count} more ({state})" for state, count in more.items())
            return f"Worker group '{name}': {states}{rest}."
        if self._status.workers_stopped is not None and self._status.workers_stopped.include(name):
            return f"Worker group '{name}': its workers are stopped."
        if not is_for_this_machine(group):
            return awaiting(name, group, self._plan.root)
        if batch_of(self._plan.settings, group).type == LOCAL:
            return f"Worker group '{name}': its worker is starting; its log is below '{self._plan.info / 'workers'}'."
        return self._allocation(name, self._allocation_of(name))

    def _state(self, worker: str, state: WorkerState) -> str:
        beat = self._beats.get(worker)
        is_out_of_time = beat is not None and any(study == self._plan.id for study, _ in beat.out_of_time)
        if is_out_of_time or state is WorkerState.DRAINING:
            return f"{state}, its allocation ends too soon for the remaining samples"
        if state is WorkerState.DISCONNECTED:
            node = beat.node if beat is not None else "its machine"
            return f"{state}: {node} cannot reach the broker, and the worker takes no samples until it can"
        if state is WorkerState.HELD:
            return f"{state}, its last samples have failed; some of them run on another machine to find the cause"
        return str(state)

    @staticmethod
    def _allocation(group: str, allocation: Allocation | None) -> str:
        if allocation is None:
            return f"Worker group '{group}': no allocation has been submitted yet."
        subject = f"Worker group '{group}': allocation '{allocation.label}'"
        if allocation.job is None:
            return f"{subject} {allocation.reason or 'is being submitted: the batch system has not answered yet'}."
        text = f"{subject} ({job_words(allocation.job)}): {allocation.state.value}"
        if allocation.state is AllocationState.RUNNING:
            return f"{text}; its workers are starting, or cannot reach the study; see '{allocation.directory}'."
        return f"{text}{f': {allocation.reason}' if allocation.reason else ''}."
