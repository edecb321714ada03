"""Rows of the table, and the goals of the plugin."""

from __future__ import annotations

import dataclasses

__all__ = ["COLUMNS", "Goal", "Row"]

_SHORT_S = 0.1
COLUMNS = ("case", "time", "per sample", "marginal", "vs. bare loop", "peak memory", "files + dirs", "goal")


@dataclasses.dataclass(frozen=True)
class Goal:
    """A performance goal of the plugin.

    Attributes:
        text: The goal, with the measured number.
        is_met: Whether the plugin meets it; None if a number is missing.
    """

    text: str
    is_met: bool | None

    def __str__(self) -> str:
        mark = {True: "met", False: "MISSED", None: "unknown"}[self.is_met]
        return f"{mark}: {self.text}"

    @classmethod
    def at_most(cls, what: str, found: float | None, limit: float, unit: str = "") -> Goal:
        """Return the goal that a number is at most a limit; a number that is None is unknown."""
        if found is None:
            return cls(f"{what} <= {limit:g}{unit}", None)
        return cls(f"{what} {found:.3g}{unit} <= {limit:g}{unit}", found <= limit)

    @classmethod
    def at_least(cls, what: str, found: float, limit: float) -> Goal:
        """Return the goal that a number is at least a limit."""
        return cls(f"{what} {found:.3g} >= {limit:g}", found >= limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        case: The measured case, such as a tool.
        time_s: Seconds of the whole case.
        whole_ms: Milliseconds per sample of the whole case.
        marginal_ms: Milliseconds for each additional sample.
        ratio: Marginal time divided by that of the bare loop in the same round.
        memory_mb: Peak memory in 10^6 bytes.
        entries: Files and directories for each additional sample.
        goals: The goals of the plugin for this case.
        note: The reason for missing numbers, or an additional result.
    """

    case: str
    time_s: float | None = None
    whole_ms: float | None = None
    marginal_ms: float | None = None
    ratio: float | None = None
    memory_mb: float | None = None
    entries: float | None = None
    goals: tuple[Goal, ...] = ()
    note: str = ""

    @property
    def cells(self) -> list[str]:
        """The row as text, in the order of `COLUMNS`."""
        return [
            self.case,
            _duration(self.time_s),
            _text(self.whole_ms, "ms", 2),
            _text(self.marginal_ms, "ms", 2),
            _text(self.ratio, "x", 2),
            _text(self.memory_mb, "MB", 0),
            _text(self.entries, "", 1),
            "\n".join([*map(str, self.goals), *filter(None, [self.note])]),
        ]


def _duration(seconds: float | None) -> str:
    return _text(seconds, "s", 2) if seconds is None or seconds >= _SHORT_S else _text(1000 * seconds, "ms", 1)


def _text(value: float | None, unit: str, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f} {unit}".strip()
