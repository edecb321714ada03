"""What the status of a study consists of; `status.py` finds it out, `status_view.py` shows it."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any

from maestro_celery_plugin.ledger.sample_states import Counts

__all__ = ["AllocationStatus", "StepStatus", "StudyState", "StudyStatus", "WorkerStatus"]


class StudyState(enum.Enum):
    """State of a whole study."""

    PENDING = enum.auto()
    """No conductor has run it yet."""
    RUNNING = enum.auto()
    """Its conductor lives."""
    FINISHED = enum.auto()
    """Every step record has finished."""
    FAILED = enum.auto()
    """It has ended, and a step record failed."""
    CANCELLED = enum.auto()
    """It has ended, and was cancelled."""
    INTERRUPTED = enum.auto()
    """Its conductor is dead, and step records are left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepStatus:
    """How far a step record is.

    Attributes:
        name: Maestro's name of the step record.
        step: The step's name.
        params: Values of its parameters, by name.
        state: Maestro's name of its state; `INTERRUPTED` when it was running and no conductor lives.
        restarts: How often Maestro has restarted it.
        samples: Its samples by state; one for a record that is not sampled, all 0 before it is submitted and for a
            plain step, which Maestro runs.
        rate: Samples per second, lately; None before the first has ended.
    """

    name: str
    step: str
    params: dict[str, str]
    state: str
    restarts: int
    samples: Counts
    rate: float | None

    @property
    def time_left_s(self) -> float | None:
        """Seconds until its last sample ends, if it goes on as lately; None when it does not run."""
        if self.state != "RUNNING" or not self.rate:
            return None
        return (self.samples.running + self.samples.pending) / self.rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """A worker that has not been forgotten, or that is waited for.

    Attributes:
        name: Its name; empty for one that is awaited.
        group: Its worker group.
        node: The machine it runs on, or is awaited on.
        state: `starting`, `idle`, `busy`, `draining`, `stopping`, `dead` or `awaited`.
    """

    name: str
    group: str
    node: str
    state: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationStatus:
    """An allocation, as the conductor has last seen it.

    Attributes:
        name: Its name: that of its worker group, or that of the key `allocation`.
        number: Counts the allocations of this name, from 1.
        job: Identifier for the batch system; None before it is submitted.
        state: Name of its `states.AllocationState`.
        reason: The batch system's words: why it waits, or how it ended.
        slots: The most slots that its workers have had at a time.
        seconds: For how long it has had its nodes; None before it has ended, and when no conductor has seen its
            begin or its end.
        sample_seconds: Time of attempts in it that have ended by themselves, summed over its slots.
        interrupted_seconds: Time of attempts in it that its end, or a cancellation, has ended.
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
        """Time of all its slots; 0 when it is not known, or was more than a conductor has seen of it."""
        known_s = self.slots * (self.seconds or 0.0)
        return known_s if known_s >= self.sample_seconds + self.interrupted_seconds else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """How far a study is."""

    study: str
    path: Path
    state: StudyState
    steps: list[StepStatus]
    allocations: list[AllocationStatus]
    workers: list[WorkerStatus]

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more unless somebody starts a conductor."""
        return self.state not in (StudyState.PENDING, StudyState.RUNNING)

    def to_json(self) -> dict[str, Any]:
        """Return what `maestro-celery status --json` prints; scripts rely on these keys."""
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
        }
