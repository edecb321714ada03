"""The step records of one step as a group: their numbers together, and which of them a user must look at first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.report.model import StepStatus
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.status_csv import FINAL_STATES

__all__ = ["FAILED_STATES", "StepGroup", "group_steps", "samples_per_record"]

FAILED_STATES = ("FAILED", "TIMEDOUT", "UNKNOWN")
# The state of a group whose step records differ: the first of these that one of them has.
_FIRST = ("RUNNING", "INTERRUPTED", "PENDING", "INITIALIZED", *FAILED_STATES, "CANCELLED", "FINISHED")


@dataclasses.dataclass(frozen=True)
class StepGroup:
    """The step records of one step.

    Attributes:
        step: Name of the step.
        records: Its step records in Maestro's order.
        whole: The group as if it were one step record; its samples include those that Maestro has not submitted yet.
            Those of a native step are its step records.
    """

    step: str
    records: list[StepStatus]
    whole: StepStatus


def samples_per_record(plan: StudyPlan) -> dict[str, int]:
    """Return the number of samples that a step record of each step has at its submission; native steps are left out."""
    steps = plan.settings.steps.items()
    return {name: plan.rows if facts.sampled else 1 for name, facts in steps if facts.queues}


def group_steps(steps: Sequence[StepStatus], expected: Mapping[str, int]) -> list[StepGroup]:
    """Return the steps in Maestro's order.

    Args:
        steps: The step records.
        expected: The result of `samples_per_record`.
    """
    groups: dict[str, list[StepStatus]] = {}
    for step in steps:
        groups.setdefault(step.step, []).append(step)
    return [StepGroup(name, records, _whole(name, records, expected.get(name))) for name, records in groups.items()]


def _whole(name: str, records: list[StepStatus], expected: int | None) -> StepStatus:
    def rate() -> float | None:
        running = [record.rate for record in records if record.state == "RUNNING"]
        return sum(one for one in running if one) or None

    return StepStatus(
        name=f"{name} x{len(records)}" if len(records) > 1 else name,
        step=name,
        params={},
        state=_state({record.state for record in records}),
        restarts=sum(record.restarts for record in records),
        samples=_counts(records, expected),
        find_rate=rate,
    )


def _state(states: set[str]) -> str:
    """Return the state of a group; it waits as long as a step record does, and runs as long as one runs."""
    return next((state for state in _FIRST if state in states), min(states))


def _counts(records: list[StepStatus], expected: int | None) -> Counts:
    """Return the number of samples in each state; `expected` as in `samples_per_record`, None for a native step."""
    submitted = [record.samples for record in records if record.samples.total]
    if expected is None and not submitted:
        return _counts_of_records(records)
    unsubmitted = sum(not record.samples.total and record.state not in FINAL_STATES for record in records)
    waiting = unsubmitted * (expected or 0)
    return Counts(
        total=sum(one.total for one in submitted) + waiting,
        finished=sum(one.finished for one in submitted),
        failed=sum(one.failed for one in submitted),
        running=sum(one.running for one in submitted),
        pending=sum(one.pending for one in submitted) + waiting,
    )


def _counts_of_records(records: list[StepStatus]) -> Counts:
    finished, failed, running = (
        sum(record.state in states for record in records) for states in (("FINISHED",), FAILED_STATES, ("RUNNING",))
    )
    return Counts(
        total=len(records),
        finished=finished,
        failed=failed,
        running=running,
        pending=len(records) - finished - failed - running,
    )
