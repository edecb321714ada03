"""The model of a study's status: `reader.py` builds it, `status_view.py` shows it."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.broken_machines import BrokenMachine
from maestro_celery_plugin.study.stopped_workers import StoppedGroups

__all__ = ["AllocationStatus", "StepStatus", "StudyState", "StudyStatus", "WorkerStatus"]


class StudyState(enum.Enum):
    """State of a whole study."""

    DRYRUN = enum.auto()
    """`maestro run --dry` has written the scripts of the study; nothing runs."""
    PENDING = enum.auto()
    """No conductor has run the study yet."""
    RUNNING = enum.auto()
    """The conductor lives."""
    FINISHED = enum.auto()
    """All step records have finished."""
    FAILED = enum.auto()
    """The study has ended, and a step record failed."""
    CANCELLED = enum.auto()
    """The study was cancelled."""
    INTERRUPTED = enum.auto()
    """The conductor is dead, and some step records have not ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepStatus:
    """The status of a step record.

    Attributes:
        name: Maestro's name of the step record.
        step: Name of the step.
        params: Values of its parameters, by name.
        state: Maestro's name of the state; `INTERRUPTED` if it was running when the conductor died.
        restarts: Number of times that Maestro has restarted it.
        samples: Number of samples in each state; one sample for a record that is not sampled, no samples before
            submission and for a native step, which Maestro runs.
        find_rate: Computes `rate`, which a view of thousands of step records shows for few of them.
    """

    name: str
    step: str
    params: dict[str, str]
    state: str
    restarts: int
    samples: Counts
    find_rate: Callable[[], float | None]

    @functools.cached_property
    def rate(self) -> float | None:
        """Samples per second in the recent past; None before the end of the first sample."""
        return self.find_rate()

    @property
    def time_left_s(self) -> float | None:
        """Estimate of the seconds until the last sample ends, at the recent rate; None unless the state is RUNNING."""
        if self.state != "RUNNING" or not self.rate:
            return None
        return (self.samples.running + self.samples.pending) / self.rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """A worker with a heartbeat, or a worker that the study waits for.

    Attributes:
        name: Name of the worker; empty for an awaited worker.
        group: The worker group.
        node: The machine of the worker; for an awaited worker, the machines where it may start.
        state: Its state.
        refused_messages: Number of messages that it has refused because they are unreadable or not of the session.
    """

    name: str
    group: str
    node: str
    state: WorkerState
    refused_messages: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationStatus:
    """An allocation at the last check of the conductor.

    Attributes:
        name: Name of the allocation: the name of its worker group, or the value of the key `allocation`.
        number: Number of the allocation among those of the same name, from 1.
        job: Identifier of the batch job; None before submission.
        state: Name of the `states.AllocationState`.
        reason: The message of the batch system: why the job waits, or how it ended.
        slots: The largest number of slots that its workers had at the same time.
        seconds: Seconds between the start and the end of the job; None unless a conductor has observed both.
        sample_seconds: Seconds of attempts that have ended by themselves, summed over the slots.
        interrupted_seconds: Seconds of attempts that the end of the allocation or a cancellation has interrupted.
    """

    name: str
    number: int
    job: str | None
    state: str
    reason: str
    slots: int
    seconds: float | None
    sample_seconds: float
    interrupted_seconds: float

    @property
    def slot_seconds(self) -> float:
        """Seconds of all slots; 0 if no conductor has observed the whole time of the attempts."""
        total_s = self.slots * (self.seconds or 0.0)
        return total_s if total_s >= self.sample_seconds + self.interrupted_seconds else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The status of a study.

    Attributes:
        study: Name of the study.
        path: Its workspace.
        state: Its state.
        steps: Its step records.
        allocations: Its allocations.
        workers: Its workers.
        broken_machines: The machines whose worker has left the study because of them.
        damage: A sentence for each kind of damage of the ledger; empty for a sound ledger.
        broker_problem: A sentence if the study runs and its broker, which the user gave by URL, cannot be reached.
        workers_stopped: The worker groups that a user or a sample has stopped; None if there are none.
        waiting_additions: Number of samples that were added to the study, and that its step records do not have yet.
    """

    study: str
    path: Path
    state: StudyState
    steps: list[StepStatus]
    allocations: list[AllocationStatus]
    workers: list[WorkerStatus]
    broken_machines: list[BrokenMachine] = dataclasses.field(default_factory=list)
    damage: list[str] = dataclasses.field(default_factory=list)
    broker_problem: str = ""
    workers_stopped: StoppedGroups | None = None
    waiting_additions: int = 0

    @property
    def additions_sentence(self) -> str:
        """A sentence about samples that were added and that the step records do not have yet; empty without any."""
        if self.waiting_additions <= 0:
            return ""
        count = self.waiting_additions
        words = "1 added sample waits" if count == 1 else f"{count} added samples wait"
        if self.has_ended:
            return f"{words}, and the study has no conductor."
        return f"{words}: the conductor takes them within seconds."

    @property
    def failed_samples(self) -> int:
        """Number of failed samples of all step records."""
        return sum(step.samples.failed for step in self.steps)

    @property
    def has_ended(self) -> bool:
        """Whether the status cannot change before a user starts a conductor."""
        return self.state not in (StudyState.PENDING, StudyState.RUNNING)

    def to_json(self) -> dict[str, Any]:
        """Return the output of `maestro-celery status --json`; scripts rely on these keys."""
        keys = ("name", "step", "params", "state", "restarts")
        steps = [
            {key: getattr(step, key) for key in keys} | {"samples": dataclasses.asdict(step.samples)}
            for step in self.steps
        ]
        return {
            "study": self.study,
            "path": str(self.path),
            "state": self.state.name,
            "steps": steps,
            "allocations": [dataclasses.asdict(allocation) for allocation in self.allocations],
            "workers": [dataclasses.asdict(worker) for worker in self.workers],
            "broken_machines": [dataclasses.asdict(machine) for machine in self.broken_machines],
            "damage": self.damage,
            "broker_problem": self.broker_problem,
            "waiting_additions": self.waiting_additions,
            "workers_stopped": self.workers_stopped.to_json() if self.workers_stopped else None,
        }
