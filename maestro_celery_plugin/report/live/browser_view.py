"""The screen of `status --watch`: what a user has chosen (`browser.py`) of the last status, line by line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from maestro_celery_plugin.report.live.browser import Browser, Page, place_of
from maestro_celery_plugin.report.live.progress_view import (
    allocation_lines,
    line_of,
    problem_lines,
    title_of,
    worker_line,
    worker_totals,
)
from maestro_celery_plugin.report.live.sample_output import failure_line, output_lines
from maestro_celery_plugin.report.live.step_groups import StepGroup, group_steps, samples_per_record
from maestro_celery_plugin.report.live.step_rows import Row, step_rows
from maestro_celery_plugin.report.model import StepStatus, StudyState, StudyStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_status import SampleStatus
from maestro_celery_plugin.report.steps_table import steps_table, totals
from maestro_celery_plugin.report.terminal import count_words, plain

__all__ = ["StudyScreen"]

# The failed samples that a user can select.
_FAILURES = 1000
_LEAST_ROWS = 3
_HELP = (
    ("up, down, j, k", "move"),
    ("page up, page down, space", "move by a page"),
    ("home, end, g, G", "go to the first or the last row"),
    ("enter", "open or close a step; a step record: its failed samples; a failed sample: its stderr"),
    ("f, F", "failed samples of the selected row, of the study"),
    ("e, o", "stderr or stdout of a failed sample"),
    ("w", "allocations and workers"),
    ("s", "next order: attention, study, name, failed samples, time left"),
    ("/", "show only rows that contain a text, such as 'failed', a name, or X=0.5; esc ends it"),
    ("esc", "go back"),
    ("q, Ctrl-C", "leave; the study goes on"),
)
_KEYS = {
    Page.STEPS: "q quit  ? help  enter open  f failed  s sort  / filter  w workers",
    Page.FAILURES: "esc back  enter stderr  o stdout  q quit  ? help",
    Page.OUTPUT: "esc back  e stderr  o stdout  q quit  ? help",
    Page.WORKERS: "esc back  q quit  ? help",
    Page.HELP: "esc back  q quit",
}


class StudyScreen:
    """The last status of a study in the size of the terminal.

    Args:
        reader: The reader of the study.
        console: The terminal.

    Attributes:
        status: The last status.
    """

    status: StudyStatus

    def __init__(self, reader: StatusReader, console: Console) -> None:
        self._reader, self._console = reader, console
        self._expected = samples_per_record(reader.plan)
        self._groups: list[StepGroup] = []
        self._values: dict[tuple[int, int], str] = {}

    def update(self, status: StudyStatus) -> None:
        """Take over a status that the reader has read."""
        self.status, self._groups = status, group_steps(status.steps, self._expected)

    # --- what there is (`browser.Content`) ---

    def rows(self, browser: Browser) -> Sequence[Row]:
        """Return the rows of the steps."""
        return step_rows(
            self._groups,
            order=browser.order,
            filter_text=browser.filter_text,
            opened=browser.opened,
            closed=browser.closed,
            room=self.room(browser),
        )

    def failed(self, browser: Browser) -> Sequence[SampleStatus]:
        """Return the failed samples of the scope, up to `_FAILURES`."""
        if browser.scope is None:
            return self._reader.failed(_FAILURES)
        step, name = browser.scope
        if name is not None:
            record = self._reader.record(name)
            return record.failed(_FAILURES) if record else []
        found: list[SampleStatus] = []
        for status in self._records(step):
            record = self._reader.record(status)
            found += record.failed(_FAILURES - len(found)) if record else []
        return found

    def _records(self, step: str) -> Iterator[str]:
        return (record.name for group in self._groups if group.step == step for record in group.records)

    def text_lines(self, browser: Browser) -> int:
        """Return the number of lines of a page of text."""
        return len(self._text(browser))

    def room(self, browser: Browser) -> int:
        """Return the number of rows or lines between the head and the foot."""
        taken = len(self._head(browser)) + len(self._foot(browser)) + (browser.page is Page.STEPS)
        return max(1, self._console.height - taken)

    # --- what is shown ---

    def lines(self, browser: Browser) -> list[Text]:
        """Return the lines of the screen, as many as the terminal has."""
        width, height = self._console.size
        head, foot = self._head(browser), self._foot(browser)
        body = self._body(browser)
        body = body[: max(0, height - len(head) - len(foot))]
        body += [Text("")] * (height - len(head) - len(foot) - len(body))
        return [line_of(line, width) for line in (*head, *body, *foot)][:height]

    def _head(self, browser: Browser) -> list[Text]:
        width, status = self._console.width, self.status
        lines = [title_of(status, width)]
        if browser.page is Page.STEPS:
            room = self._console.height - len(lines) - 2 - _LEAST_ROWS
            return [*lines, *totals(status.steps, urgent_first=True), *_advice(status), *problem_lines(status)][
                : max(1, room)
            ]
        return [*lines, *self._heading(browser)]

    def _heading(self, browser: Browser) -> list[Text]:
        if browser.page is Page.FAILURES:
            step, record = browser.scope or (None, None)
            count, of = len(self.failed(browser)), record or step
            more = "the first " if count == _FAILURES else ""
            return [plain(f"{more}{count_words(count, 'failed sample')}{f' of {of}' if of else ''}", "bold")]
        if browser.page is Page.OUTPUT and browser.sample is not None:
            return [failure_line(browser.sample, self._values)]
        return [Text("Allocations and workers" if browser.page is Page.WORKERS else "Keys", "bold")]

    def _foot(self, browser: Browser) -> list[Text]:
        keys = Text(_KEYS[browser.page], "dim")
        if browser.page is not Page.STEPS:
            return [keys]
        if browser.is_typing:
            keys = Text.assemble("filter: ", plain(browser.filter_text, "bold"), "_  (enter, esc)")
        elif browser.filter_text:
            keys = Text.assemble("filter: ", plain(browser.filter_text, "bold"), "  esc ends it  ", keys)
        resources = [*allocation_lines(self.status), *worker_totals(self.status)]
        return [*resources[: max(0, self._console.height // 4 - 2)], Text(f"order: {browser.order.value}", "dim"), keys]

    def _body(self, browser: Browser) -> list[Text]:
        if browser.page is Page.STEPS:
            return self._steps(browser)
        if browser.page is Page.FAILURES:
            return self._failures(browser)
        lines, room = self._text(browser), self.room(browser)
        last = max(0, len(lines) - room)
        begin = last if browser.place < 0 else min(browser.place, last)
        return lines[begin : begin + room]

    def _steps(self, browser: Browser) -> list[Text]:
        rows = self.rows(browser)
        if not rows:
            return [Text("No step has this text." if browser.filter_text else "No step has begun.", "dim")]
        place, room = place_of(rows, browser.row), self.room(browser)
        begin = _begin(place, len(rows), room)
        shown = [self._named(row, is_selected=row is rows[place]) for row in rows[begin : begin + room]]
        console = self._console
        table = steps_table(
            shown, console.width, ascii_only=console.options.ascii_only, heading="  step", must_fit=True
        )
        lines = [line for line in table.renderables if isinstance(line, Text)]
        lines[1 + place - begin].stylize("reverse")
        return lines

    def _named(self, row: Row, *, is_selected: bool) -> StepStatus:
        mark = ">" if is_selected else " "
        sign = " " if row.is_open is None else ("-" if row.is_open else "+")
        is_below = row.is_open is None and row.status.name != row.step
        # Below its step, Maestro's name `<step>_<parameters>` needs only its parameters.
        name = f"  {row.status.name.removeprefix(f'{row.step}_')}" if is_below else row.status.name
        return dataclasses.replace(row.status, name=f"{mark}{sign}{name}")

    def _failures(self, browser: Browser) -> list[Text]:
        samples, room = self.failed(browser), self.room(browser)
        if not samples:
            return [Text("No sample has failed.", "dim")]
        place = min(browser.place, len(samples) - 1)
        begin = _begin(place, len(samples), room)
        lines = []
        for number, sample in enumerate(samples[begin : begin + room], begin):
            line = Text("> " if number == place else "  ").append_text(failure_line(sample, self._values))
            if number == place:
                line.stylize("reverse")
            lines.append(line)
        return lines

    def _text(self, browser: Browser) -> list[Text]:
        """Return all lines of a page of text."""
        if browser.page is Page.OUTPUT and browser.sample is not None:
            return output_lines(browser.sample, shows_stdout=browser.shows_stdout, width=self._console.width)
        if browser.page is Page.WORKERS:
            lines = [*allocation_lines(self.status, limit=None), *map(worker_line, self.status.workers)]
            return lines or [Text("There is no allocation and no worker.", "dim")]
        wrapped = (Text(f"{keys}: {words}").wrap(self._console, self._console.width) for keys, words in _HELP)
        return [line for lines in wrapped for line in lines]


def _advice(status: StudyStatus) -> Iterator[Text]:
    """Yield what a user can do about a study without a conductor."""
    if status.state is StudyState.INTERRUPTED:
        yield Text("The conductor died; `maestro-celery resume` continues the study.", "yellow")
    elif status.state is StudyState.PENDING:
        yield Text("No conductor has begun; `maestro-celery resume` starts one if none is about to.", "yellow")


def _begin(place: int, count: int, room: int) -> int:
    """Return the first row that is shown, so that the selected one is in the middle, if it can be."""
    return max(0, min(place - room // 2, count - room))
