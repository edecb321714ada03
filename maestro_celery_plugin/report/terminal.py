"""Text for a terminal: escaped text, headings, states, durations.

Text from a study (names, values, stderr) may contain rich's markup and control sequences of a terminal; both are shown
as text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click
from rich.cells import cell_len, chop_cells
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maestro_celery_plugin.states import WorkerState

__all__ = [
    "command_words",
    "count_words",
    "duration_words",
    "outcome_text",
    "outcome_words",
    "plain",
    "print_table",
    "section",
    "shortened",
    "state_style",
    "state_text",
    "whole",
]

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
    """Return lines below a heading; a line of `whole` is not wrapped."""
    return Group(Text(f"\n{title}", style="bold"), *map(_indented, lines))


def _indented(line: Text) -> RenderableType:
    if line.no_wrap:
        return whole(Text("  ").append_text(line))
    return Padding(line, (0, 0, 0, 2), expand=False)


def whole(text: Text) -> Text:
    """Return a line that is neither wrapped nor cropped, so that a user can copy a command or a path from it.

    Its console must print with ``crop=False``.
    """
    text.no_wrap, text.overflow = True, "ignore"
    return text


def print_table(headings: Mapping[str, str], rows: Sequence[Sequence[Text]]) -> None:
    """Print a table in the width of the terminal: columns without text are left out, and long texts are folded.

    Args:
        headings: The headings, with what happens to a text that is too long: ``fold``, or ``right`` and ``left`` for
            columns that are not folded, and their side.
        rows: The texts of each row.
    """
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    filled = [number for number in range(len(headings)) if any(row[number].plain for row in rows)]
    for number, (heading, kind) in enumerate(headings.items()):
        if number in filled:
            table.add_column(
                heading, overflow="fold", no_wrap=kind != "fold", justify="right" if kind == "right" else "left"
            )
    for row in rows:
        table.add_row(*(row[number] for number in filled))
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def count_words(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 worker``, ``2 workers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def command_words(command: str, study: Path) -> str:
    """Return a command for a study, such as ``maestro-celery resume /home/ada/sweep``, in the words of a shell."""
    return f"{command} {shlex.quote(str(study))}"


def shortened(name: str, width: int) -> str:
    """Return a name in at most `width` columns: the middle is left out, because names differ at their ends.

    ``simulate_channel_RE.1000`` in 16 columns is ``simula…l_RE.1000``.
    """
    if cell_len(name) <= width:
        return name
    head = (width - 1) // 2 - width // 8
    tail = width - 1 - head
    backwards = chop_cells(name[::-1], tail)[0] if tail > 0 else ""
    return f"{chop_cells(name, head)[0] if head > 0 else ''}…{backwards[::-1]}"


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
    return Text(state, style=state_style(state))


def state_style(state: str, failed: int = 0) -> str:
    """Return the colour of a state, which is not green if samples have failed."""
    return "yellow" if failed and state == "FINISHED" else _STYLES.get(state, "")


def outcome_text(state: str, failed: int) -> Text:
    """Return the name of a state; if it is FINISHED although samples have failed, add their number."""
    return Text(outcome_words(state, failed), style=state_style(state, failed))


def outcome_words(state: str, failed: int) -> str:
    """Return the words of `outcome_text`: ``FINISHED, 5 failed``."""
    return f"{state}, {failed} failed" if failed and state == "FINISHED" else state


def plain(text: str, style: str = "") -> Text:
    """Return text with control characters made visible, as in ``\\x1b``."""
    return Text(_CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text), style=style)
