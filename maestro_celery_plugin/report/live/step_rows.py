"""The rows of `status --watch`: steps, and below them step records, in the order and with the filter of a user."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Sequence
from typing import Any

from maestro_celery_plugin.report.live.step_groups import FAILED_STATES, StepGroup
from maestro_celery_plugin.report.model import StepStatus

__all__ = ["Order", "Row", "step_rows"]

# The step records below a closed step: those that need attention, up to this number, or more if there is room.
_SHOWN_OF_CLOSED = 3


class Order(enum.Enum):
    """The order of steps, and of the step records of each step."""

    ATTENTION = "attention"
    """Those that have failed, then those with failed samples, then those that run."""
    STUDY = "study"
    """Maestro's order."""
    NAME = "name"
    """By name."""
    FAILED = "failed samples"
    """Those with the most failed samples first."""
    LEFT = "time left"
    """Those that need the longest time first."""

    def next(self) -> Order:
        """Return the next order, or the first one after the last."""
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: a step, or a step record below its step.

    Attributes:
        step: Name of the step.
        status: Its numbers.
        record: Name of the step record; None for a step with several ones.
        is_open: Whether a step shows all its step records; None for a step record, and for a step with only one.
    """

    step: str
    status: StepStatus
    record: str | None
    is_open: bool | None

    @property
    def key(self) -> tuple[str, str | None]:
        """What identifies the row when its place changes."""
        return self.step, self.record


def step_rows(
    groups: Sequence[StepGroup],
    *,
    order: Order,
    filter_text: str,
    opened: frozenset[str],
    closed: frozenset[str],
    room: int,
) -> list[Row]:
    """Return the rows; each step is followed by its step records, if it is open, or else by those that need attention.

    Args:
        groups: The steps.
        order: Their order.
        filter_text: Text that a name, a state or a value of a parameter contains; empty for all.
        opened: The steps that the user has opened.
        closed: The steps that the user has closed.
        room: The number of rows that the terminal shows; all steps are open if all step records fit in.
    """
    found = [(group, [one for one in group.records if _matches(one, filter_text)]) for group in groups]
    found = [(group, records) for group, records in found if records]
    all_fit = sum(len(records) + (len(group.records) > 1) for group, records in found) <= room
    urgent = sum(any(_attention(one) < _RUNNING for one in records) for _, records in found)
    shown = max(_SHOWN_OF_CLOSED, (room - len(found)) // max(1, urgent))
    rows = []
    key = _KEYS[order]
    for group, records in sorted(found, key=lambda one: key(one[0].whole)):
        if len(group.records) == 1:
            rows.append(Row(group.step, group.whole, group.records[0].name, None))
            continue
        is_open = group.step in opened or (group.step not in closed and (all_fit or bool(filter_text)))
        rows.append(Row(group.step, group.whole, None, is_open))
        chosen = sorted(records, key=key)
        if not is_open:
            chosen = sorted((one for one in records if _attention(one) < _RUNNING), key=_attention_key)
            chosen = [] if group.step in closed else chosen[:shown]
        rows += [Row(group.step, one, one.name, None) for one in chosen]
    return rows


def _matches(step: StepStatus, text: str) -> bool:
    if not text:
        return True
    parameters = (f"{name}={value}" for name, value in step.params.items())
    failed = "failed" if step.samples.failed else ""
    return text.casefold() in " ".join((step.name, step.state, failed, *parameters)).casefold()


# The place of a step record that runs well among those that need attention.
_RUNNING = 2


def _attention(step: StepStatus) -> int:
    if step.state in FAILED_STATES or step.state == "INTERRUPTED":
        return 0
    if step.samples.failed:
        return 1
    return {"RUNNING": _RUNNING, "PENDING": 3, "INITIALIZED": 4}.get(step.state, 5)


def _attention_key(step: StepStatus) -> tuple[int, int]:
    return _attention(step), -step.samples.failed


def _natural(name: str) -> list[str | int]:
    """Return what orders names with numbers as people do: ``X.2`` before ``X.10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


_KEYS: dict[Order, Callable[[StepStatus], Any]] = {
    Order.ATTENTION: _attention_key,
    Order.STUDY: lambda step: 0,
    Order.NAME: lambda step: _natural(step.name),
    Order.FAILED: lambda step: -step.samples.failed,
    Order.LEFT: lambda step: -(step.time_left_s or 0.0),
}
