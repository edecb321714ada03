"""Rows of the table, and goals beside them."""

from __future__ import annotations

import dataclasses

__all__ = ["COLUMNS", "Goal", "Row"]

COLUMNS = ("case", "time", "per sample", "marginal", "vs. bare loop", "peak memory", "files + dirs", "goal")


@dataclasses.dataclass(frozen=True)
class Goal:
    """Something the plugin promises.

    Attributes:
        text: The goal, with the number found.
        is_met: Whether it is met; None when what it is compared with is missing.
    """

    text: str
    is_met: bool | None

    def __str__(self) -> str:
        mark = {True: "met", False: "MISSED", None: "unknown"}[self.is_met]
        return f"{mark}: {self.text}"

    @classmethod
    def at_most(cls, what: str, found: float | None, limit: float, unit: str = "") -> Goal:
        """Return the goal that a number is no more than a limit; None is an unknown number."""
        if found is None:
            return cls(f"{what} <= {limit:g}{unit}", None)
        return cls(f"{what} {found:.3g}{unit} <= {limit:g}{unit}", found <= limit)

    @classmethod
    def at_least(cls, what: str, found: float, limit: float) -> Goal:
        """Return the goal that a number is no less than a limit."""
        return cls(f"{what} {found:.3g} >= {limit:g}", found >= limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        case: The tool, or what was measured.
        time_s: Seconds of the whole.
        whole_ms: Milliseconds per sample of the whole.
        marginal_ms: Milliseconds that one sample more takes.
        ratio: Marginal time by that of the bare loop in the same round.
        memory_mb: Peak memory in 10^6 bytes.
        entries: Files and directories that one sample leaves.
        goals: What the plugin promises about it.
        note: Why there are no numbers, or what else was seen.
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
            _text(self.time_s, "s", 2),
            _text(self.whole_ms, "ms", 2),
            _text(self.marginal_ms, "ms", 2),
            _text(self.ratio, "x", 2),
            _text(self.memory_mb, "MB", 0),
            _text(self.entries, "", 1),
            "\n".join([*map(str, self.goals), *filter(None, [self.note])]),
        ]


def _text(value: float | None, unit: str, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f} {unit}".strip()
