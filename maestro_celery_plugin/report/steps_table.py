"""The table of step records on a terminal: one line for each, and their totals."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from maestro_celery_plugin.report.model import StepStatus
from maestro_celery_plugin.report.terminal import duration_words, outcome_words, plain, shortened, state_style, whole

__all__ = ["by_urgency", "hidden_words", "most_urgent", "steps_table", "totals"]

# The smallest width of a terminal, in columns, with all columns of the table.
_WIDE = 120
_BAR_WIDTHS = {True: (10, 30), False: (8, 20)}
# The number of columns that are never left out: state, finished, running; and without the last one, if the lines must
# fit into the terminal.
_KEPT = {False: 3, True: 2}
# A name is not shortened to fewer columns.
_SHORTEST_NAME = {False: 12, True: 6}
_URGENT_OUTCOMES = ("FAILED", "TIMEDOUT", "UNKNOWN", "INTERRUPTED", "FINISHED with failures", "RUNNING", "PENDING")
# Signs of a bar for finished, failed and other samples, which differ without colours, too.
_SIGNS, _ASCII_SIGNS = "━x.", "=x."


# --- choice of step records ---


def _urgency(step: StepStatus) -> int:
    """Return 0 for a step record that runs, 1 with failures, 2 if it can run, 3 if it waits, 4 if it has finished."""
    if step.state == "RUNNING":
        return 0
    if step.state in ("FAILED", "TIMEDOUT", "UNKNOWN") or step.samples.failed:
        return 1
    return {"INTERRUPTED": 2, "PENDING": 2, "INITIALIZED": 3}.get(step.state, 4)


def by_urgency(steps: Sequence[StepStatus], rows: int) -> list[StepStatus]:
    """Return up to `rows` step records, the running and the failed ones first; the failed ones get half of the rows."""
    order = sorted(steps, key=_urgency)
    running = sum(step.state == "RUNNING" for step in order)
    failed = sum(_urgency(step) == 1 for step in order)
    first = max(rows - failed, rows - rows // 2)
    return [*order[: min(running, first)], *order[running:], *order[min(running, first) : running]][:rows]


def most_urgent(steps: Sequence[StepStatus], rows: int) -> list[StepStatus]:
    """Return the step records of `by_urgency` in Maestro's order."""
    if len(steps) <= rows:
        return list(steps)
    chosen = {id(step) for step in by_urgency(steps, rows)}
    return [step for step in steps if id(step) in chosen]


def hidden_words(steps: Sequence[StepStatus], shown: Sequence[StepStatus]) -> Text:
    """Return how many step records are not shown, by state."""
    rest = _by_outcome(steps) - _by_outcome(shown)
    return Text(f"and {rest.total()} more step records: {_numbers(rest)} (--json has all)", style="dim")


def _by_outcome(steps: Sequence[StepStatus]) -> Counter[str]:
    """Return the number of step records in each state; those that have finished with failed samples are apart."""
    with_failed = {"FINISHED": "FINISHED with failures"}
    return Counter(with_failed.get(step.state, step.state) if step.samples.failed else step.state for step in steps)


def _numbers(outcomes: Counter[str], *, urgent_first: bool = False) -> str:
    ordered = outcomes.most_common()
    if urgent_first:
        ordered.sort(key=lambda one: _URGENT_OUTCOMES.index(one[0]) if one[0] in _URGENT_OUTCOMES else 9)
    return ", ".join(f"{count} {outcome}" for outcome, count in ordered)


def totals(steps: Sequence[StepStatus], *, urgent_first: bool = False) -> list[Text]:
    """Return the number of step records and of samples in each state; nothing for a single step record.

    Args:
        steps: The step records.
        urgent_first: Whether failures are first, because the end may be cut off; otherwise the largest number is.
    """
    if len(steps) < 2:
        return []
    counts = [step.samples for step in steps]
    samples = {name: sum(getattr(one, name) for one in counts) for name in ("finished", "failed", "running", "pending")}
    line = Text(f"{sum(samples.values())} samples: ")
    for number, (name, count) in enumerate(samples.items()):
        line.append(", " if number else "").append(f"{count} {name}", "red" if name == "failed" and count else "")
    return [Text(f"{len(steps)} step records: {_numbers(_by_outcome(steps), urgent_first=urgent_first)}"), line]


# --- table ---


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column after that of the names: its heading and its cells."""

    heading: str
    cells: list[Text]
    is_number: bool = True

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.heading, *(cell.plain for cell in self.cells))))

    def all_cells(self) -> list[Text]:
        """Return the heading and the cells, all of the same width."""
        width, found = self.width, [Text(self.heading, "dim"), *self.cells]
        for cell in found:
            spaces = width - cell_len(cell.plain)
            if self.is_number:
                cell.pad_left(spaces)
            else:
                cell.pad_right(spaces)
        return found


def steps_table(
    steps: Sequence[StepStatus],
    width: int,
    *,
    ascii_only: bool = False,
    heading: str = "step record",
    must_fit: bool = False,
) -> Group:
    """Return one line for each step record; if the terminal is too narrow, names are shortened and columns left out.

    Args:
        steps: The step records.
        width: The columns of the terminal.
        ascii_only: Whether the terminal has no other characters.
        heading: The heading of the names.
        must_fit: Whether lines are cut off at the end of the terminal, so that narrow ones have fewer columns.
    """
    is_wide = width >= _WIDE
    gap = 2 if is_wide else 1
    restarts = [f" (restarts: {step.restarts})" if step.restarts else "" for step in steps]
    names = [plain(step.name).plain for step in steps]
    longest = max(map(cell_len, (heading, *map(str.__add__, names, restarts))))
    columns = _columns(steps, wide=is_wide)
    least, most = _BAR_WIDTHS[is_wide]
    room = width - sum(column.width + gap for column in columns)
    shortest = min(longest, _SHORTEST_NAME[must_fit])
    while len(columns) > _KEPT[False] and room - least - gap < _least_room(columns[-1], longest, wide=is_wide):
        room += columns.pop().width + gap
    while len(columns) > _KEPT[must_fit] and room < min(longest, _SHORTEST_NAME[False]):
        room += columns.pop().width + gap
    bar_width = min(most, max(least, room - longest - gap))
    if room - bar_width - gap >= shortest:
        bars = [_bar(step, bar_width, _ASCII_SIGNS if ascii_only else _SIGNS) for step in steps]
        columns.insert(1, _Column("progress", bars, is_number=False))
        room -= bar_width + gap
    room = min(longest, max(room, shortest))
    cells = [_name(name, suffix, room) for name, suffix in zip(names, restarts, strict=True)]
    columns = [_Column(heading, cells, is_number=False), *columns]
    rows = zip(*(column.all_cells() for column in columns), strict=True)
    return Group(*(whole(_line(row, gap)) for row in rows))


def _least_room(last: _Column, longest: int, *, wide: bool) -> int:
    """Return the least width of names with which the last column is shown: whole names matter more than a rate."""
    return longest if last.heading == "rate" and not wide else min(longest, _SHORTEST_NAME[False])


def _line(cells: Sequence[Text], gap: int) -> Text:
    line = Text(" " * gap).join(cells)
    line.rstrip()
    return line


def _name(name: str, suffix: str, width: int) -> Text:
    return Text(shortened(name, max(1, width - len(suffix)))).append(suffix, "yellow")


def _columns(steps: Sequence[StepStatus], *, wide: bool) -> list[_Column]:
    """Return the columns without that of the bars; those at the end are the first to be left out."""
    counts = [step.samples for step in steps]
    states = [Text(_state_words(step), state_style(step.state, step.samples.failed)) for step in steps]
    columns = [
        _Column("state", states, is_number=False),
        _Column("finished", [Text(f"{one.finished}/{one.total}" if one.total else "") for one in counts]),
        _Column("running", [Text(str(one.running) if one.total else "") for one in counts]),
    ]
    if wide:
        columns.append(_Column("pending", [Text(str(one.pending) if one.total else "") for one in counts]))
    left = [_time_left(step, short=not wide) for step in steps]
    if any(left):
        columns.append(_Column("time left" if wide else "left", [Text(words) for words in left]))
    rates = [_rate(step) for step in steps]
    if any(rates):
        columns.append(_Column("rate", [Text(words) for words in rates]))
    return columns


def _state_words(step: StepStatus) -> str:
    """Return ``RUNNING, 2 failed``; a step record with one sample has no number."""
    if step.samples.failed and step.samples.total > 1:
        return f"{step.state}, {step.samples.failed} failed"
    return outcome_words(step.state, step.samples.failed)


def _bar(step: StepStatus, width: int, signs: str) -> Text:
    """Return a bar that is red only where samples failed; a single failed sample has a sign, too."""
    total, finished, failed = step.samples.total, step.samples.finished, step.samples.failed
    if not total:
        return Text("")
    failed_width = max(1, width * failed // total) if failed else 0
    # Only the end of the last sample fills the bar.
    ended = finished + failed == total
    finished_width = width - failed_width if ended else min(width * finished // total, width - failed_width)
    bar = Text(signs[0] * finished_width, "green" if finished == total else "cyan")
    bar.append(signs[1] * failed_width, "red")
    return bar.append(signs[2] * (width - finished_width - failed_width), "dim")


def _rate(step: StepStatus) -> str:
    return f"{step.rate:.{0 if step.rate >= 100 else 2}f}/s" if step.rate and step.samples.total > 1 else ""


def _time_left(step: StepStatus, *, short: bool) -> str:
    if not step.time_left_s:
        return ""
    words = duration_words(step.time_left_s)
    return " ".join(words.split()[:2]) if short else words
