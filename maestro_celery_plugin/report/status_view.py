"""The status of a study on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import job_words
from maestro_celery_plugin.report.failed_samples import failures, headline
from maestro_celery_plugin.report.model import AllocationStatus, StepStatus, StudyState, StudyStatus, WorkerStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.steps_table import by_urgency, hidden_words, most_urgent, steps_table, totals
from maestro_celery_plugin.report.terminal import (
    command_words,
    duration_words,
    outcome_text,
    plain,
    section,
    state_text,
    whole,
)
from maestro_celery_plugin.states import WorkerState

__all__ = ["show", "show_last", "watch"]

WATCH_S = 1.0
# The number of allocations, workers, slow samples and kinds of failures that are shown below the table.
SHOWN = 5
# The same while the status must fit into the terminal, and the number of step records that are more important.
SHOWN_ON_SCREEN = 2
_LEAST_STEPS = 4
# What a line about a worker says about its state.
_WHY = {
    WorkerState.DISCONNECTED: "  it cannot reach the broker",
    WorkerState.HELD: "  its last samples have failed; `maestro-celery explain`",
}
# A user cannot read more step records.
SHOWN_STEPS = 200


def show(reader: StatusReader, console: Console) -> StudyStatus:
    """Print the status of a study; return it."""
    status = reader.read()
    console.print(_page(status, reader, console), crop=False)
    return status


def watch(reader: StatusReader, console: Console) -> StudyStatus:
    """Show the status of a study until it has ended, and return it; spend at most a tenth of the time on reading."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            begin = clock.monotonic()
            status = reader.read()
            if status.has_ended:
                live.transient = True  # the last status replaces it, with whole commands
                break
            live.update(_screen(status, reader, console), refresh=True)
            clock.sleep(max(WATCH_S, 9 * (clock.monotonic() - begin)))
    show_last(status, reader, console)
    return status


def show_last(status: StudyStatus, reader: StatusReader, console: Console) -> None:
    """Print the last status of a watch; in a terminal, what fits there."""
    page = _screen if console.is_terminal else _page
    console.print(page(status, reader, console), crop=False)


# --- page ---


def _page(status: StudyStatus, reader: StatusReader, console: Console) -> Group:
    """Return the whole output, with up to `SHOWN_STEPS` step records."""
    steps = most_urgent(status.steps, SHOWN_STEPS)
    parts = [*_head(status), *_table(steps, status, console), *_allocations(status, SHOWN), *_workers(status, SHOWN)]
    return Group(*parts, *_slowest(reader), *_failures(status, reader, SHOWN))


def _screen(status: StudyStatus, reader: StatusReader, console: Console) -> Group:
    """Return what fits into the terminal: the totals, then the step records that run and those that failed."""
    head = _head(status)
    height = console.height - 1 - _height(head, console)
    least = min(len(status.steps), max(_LEAST_STEPS, height // 3)) + 2  # with the headings, and the number of others
    sections: list[RenderableType] = []
    for section_ in (
        *_failures(status, reader, SHOWN_ON_SCREEN),
        *_workers(status, SHOWN_ON_SCREEN),
        *_allocations(status, SHOWN_ON_SCREEN),
        *_slowest(reader),
    ):
        lines = _height([section_], console)
        if height - lines >= least:
            height -= lines
            sections.append(section_)
    return Group(*head, *_fitting_table(status, console, height), *sections)


def _fitting_table(status: StudyStatus, console: Console, height: int) -> list[RenderableType]:
    """Return the table of step records in at most `height` lines, but with one step record at least."""
    for rows in range(max(1, height - 1), 0, -1):
        parts = _table(by_urgency(status.steps, rows), status, console)
        if _height(parts, console) <= height:
            break
    return parts


def _height(parts: Sequence[RenderableType], console: Console) -> int:
    """Return the number of lines of a part of the output."""
    return len(console.render_lines(Group(*parts), pad=False)) if parts else 0


def _head(status: StudyStatus) -> list[RenderableType]:
    return [*_title(status), *totals(status.steps), *_advice(status), *_warnings(status)]


def _title(status: StudyStatus) -> list[Text]:
    state = outcome_text(status.state.name, status.failed_samples)
    return [Text.assemble(plain(status.study, "bold"), "  ", state), whole(plain(str(status.path), "dim"))]


def _table(steps: list[StepStatus], status: StudyStatus, console: Console) -> list[RenderableType]:
    """Return the table of step records, with the number of those that it does not show."""
    table = steps_table(steps, console.width, ascii_only=console.options.ascii_only)
    return [table, hidden_words(status.steps, steps)] if len(steps) < len(status.steps) else [table]


def _advice(status: StudyStatus) -> list[RenderableType]:
    if status.state is StudyState.DRYRUN:
        words = "It was a dry run, whose steps do not run; `maestro run` without --dry starts a study."
        return [Text(f"\n{words}\n", style="yellow")]
    if status.state is StudyState.INTERRUPTED:
        words = "The conductor died before the study ended. To continue the study:"
    elif status.state is StudyState.PENDING:
        words = "No conductor has run this study yet. If none is about to start:"
    elif status.workers_stopped is not None:
        words = f"{status.workers_stopped.sentence} To start them again:"
    elif status.additions_sentence and status.has_ended:
        words = f"{status.additions_sentence} To run what was added:"
    elif status.additions_sentence:
        return [Text(f"\n{status.additions_sentence}\n", style="yellow")]
    else:
        return []
    command = command_words("maestro-celery resume", status.path)
    return [Text(f"\n{words}", style="yellow"), whole(plain(f"  {command}", "bold")), Text("")]


# --- allocations, workers and samples ---


def _warnings(status: StudyStatus) -> list[RenderableType]:
    problem = [status.broker_problem] if status.broker_problem else []
    sentences = [*problem, *status.damage, *(machine.sentence for machine in status.broken_machines)]
    return [section("Warnings", map(plain, sentences)), Text("")] if sentences else []


def _slowest(reader: StatusReader) -> list[RenderableType]:
    lines = [headline(sample, duration_words(sample.duration_s)) for sample in reader.slowest(SHOWN)]
    return [section("Slowest samples", lines)] if lines else []


def _failures(status: StudyStatus, reader: StatusReader, shown: int) -> list[RenderableType]:
    kinds = reader.failure_kinds(shown)
    return [failures(kinds, status.path)] if kinds else []


def _allocations(status: StudyStatus, shown: int) -> list[RenderableType]:
    """Return the last allocation of each name; its number counts the allocations of that name."""
    last = {one.name: one for one in status.allocations}
    if not last:
        return []
    lines = []
    for allocation in list(last.values())[:shown]:
        job = job_words(allocation.job)
        line = Text.assemble(plain(f"{allocation.name}/{allocation.number}  {job}  "), state_text(allocation.state))
        lines.append(line.append_text(plain(f"  {allocation.reason}" if allocation.reason else "", "dim")))
    ended = [one for one in status.allocations if one.slot_seconds]
    if ended:
        lines.append(plain(_usage_words(ended), "dim"))
    if len(last) > shown:
        lines.append(Text(f"and {len(last) - shown} more (--json has all)", style="dim"))
    return [section("Allocations", lines)]


def _usage_words(ended: Sequence[AllocationStatus]) -> str:
    """Return how the slot time of allocations that have ended was used."""
    total_s = sum(one.slot_seconds for one in ended)
    parts = {
        "samples": sum(one.sample_seconds for one in ended) / total_s,
        "interrupted samples": sum(one.interrupted_seconds for one in ended) / total_s,
    }
    parts["neither"] = 1 - sum(parts.values())
    words = ", ".join(f"{share:.0%} {use}" for use, share in parts.items())
    return f"{len(ended)} ended, {duration_words(total_s)} of slot time: {words}"


def _workers(status: StudyStatus, shown: int) -> list[RenderableType]:
    if not status.workers:
        return []
    lines = [_worker(worker) for worker in status.workers[:shown]]
    if len(status.workers) > shown:
        rest = Counter(worker.state for worker in status.workers[shown:])
        words = ", ".join(f"{n} {state}" for state, n in rest.items())
        lines.append(Text(f"and {rest.total()} more: {words}", style="dim"))
    return [section("Workers", lines)]


def _worker(worker: WorkerStatus) -> Text:
    noun = "message" if worker.refused_messages == 1 else "messages"
    refused = f"  {worker.refused_messages} {noun} refused" if worker.refused_messages else ""
    why = _WHY.get(worker.state, "")
    line = Text.assemble(plain(f"{worker.name}  {worker.group}  {worker.node}  "), state_text(worker.state))
    return line.append_text(plain(f"{why}{refused}", "yellow"))
