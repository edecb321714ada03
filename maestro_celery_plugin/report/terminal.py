"""Text for a terminal: escaped text, headings, states, durations.

Text from a study (names, values, stderr) may contain rich's markup and control sequences of a terminal; both are shown
as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from maestro_celery_plugin.states import WorkerState

__all__ = ["duration_words", "outcome_text", "outcome_words", "plain", "section", "state_text"]

_STYLES = {
    "FINISHED": "green",
    "RUNNING": "cyan",
    "FAILED": "red",
    "TIMEDOUT": "red",
    "UNKNOWN": "red",
    "CANCELLED": "yellow",
    "INTERRUPTED": "yellow",
    "TIMED_OUT": "yellow",
    "PREEMPTED": "yellow",
    "NODE_FAILED": "red",
    "BOOT_FAILED": "red",
    "OUT_OF_MEMORY": "red",
    WorkerState.DEAD: "red",
}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def section(title: str, lines: Iterable[Text]) -> Group:
    """Return lines below a heading."""
    indented = (Padding(line, (0, 0, 0, 2), expand=False) for line in lines)
    return Group(Text(f"\n{title}", style="bold"), *indented)


def duration_words(seconds: float) -> str:
    """Return a duration in two units: ``0.12 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, hours, days = int(seconds / 60), int(seconds / 3600), int(seconds / 86400)
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{days} d {hours % 24} h"


def state_text(state: str) -> Text:
    """Return the name of a state in its colour."""
    return Text(state, style=_STYLES.get(state, ""))


def outcome_text(state: str, failed: int) -> Text:
    """Return the name of a state; if it is FINISHED although samples have failed, add their number."""
    return Text(outcome_words(state, failed), style="yellow") if failed and state == "FINISHED" else state_text(state)


def outcome_words(state: str, failed: int) -> str:
    """Return the words of `outcome_text`: ``FINISHED, 5 failed``."""
    return f"{state}, {failed} failed" if failed and state == "FINISHED" else state


def plain(text: str, style: str = "") -> Text:
    """Return text with control characters made visible, as in ``\\x1b``."""
    return Text(_CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text), style=style)
