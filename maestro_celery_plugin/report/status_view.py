"""The status of a study on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maestro_celery_plugin import clock
from maestro_celery_plugin.report.failed_samples import failures, headline
from maestro_celery_plugin.report.model import AllocationStatus, StepStatus, StudyState, StudyStatus, WorkerStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import duration_words, outcome_text, plain, section, state_text
from maestro_celery_plugin.states import WorkerState

__all__ = ["show", "watch"]

WATCH_S = 1.0
# The number of allocations, workers, slow samples and kinds of failures that are shown below the table.
SHOWN = 5
# rich needs many seconds for a table of thousands of step records, and a user cannot read so many.
SHOWN_STEPS = 200
# The smallest width of a terminal, in columns, in which each step record takes one line.
_WIDE = 120


def show(reader: StatusReader, console: Console) -> StudyStatus:
    """Print the status of a study; return it."""
    status = reader.read()
    console.print(_page(status, reader, console))
    return status


def watch(reader: StatusReader, console: Console) -> StudyStatus:
    """Show the status of a study until it has ended, and return it; spend at most a fifth of the time on reading."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            begin = clock.monotonic()
            status = reader.read()
            if status.has_ended:
                live.update(_page(status, reader, console), refresh=True)
                return status
            live.update(_page(status, reader, console, rows=max(3, console.height // 2)), refresh=True)
            clock.sleep(max(WATCH_S, 4 * (clock.monotonic() - begin)))


# --- page ---


def _page(status: StudyStatus, reader: StatusReader, console: Console, rows: int = SHOWN_STEPS) -> Group:
    """Return the whole output, with up to `rows` step records."""
    steps = _most_active(status.steps, rows)
    parts: list[RenderableType] = [_title(status), _steps_table(steps, wide=console.width >= _WIDE)]
    if len(steps) < len(status.steps):
        parts.append(_rest_words(status.steps, steps))
    parts += [*_advice(status), *_warnings(status), *_allocations(status), *_workers(status)]
    slowest = reader.slowest(SHOWN)
    if slowest:
        lines = (headline(sample, duration_words(sample.duration_s)) for sample in slowest)
        parts.append(section("Slowest samples", lines))
    kinds = reader.failure_kinds(SHOWN)
    if kinds:
        parts.append(failures(kinds, status.path))
    return Group(*parts)


def _title(status: StudyStatus) -> Text:
    title = Text.assemble(
        plain(status.study, "bold"), "  ", outcome_text(status.state.name, status.failed_samples), "\n"
    )
    return title.append_text(plain(str(status.path), "dim"))


def _advice(status: StudyStatus) -> list[RenderableType]:
    if status.state is StudyState.DRYRUN:
        words = "It was a dry run, whose steps do not run; `maestro run` without --dry starts a study."
        return [Text(f"\n{words}", style="yellow")]
    if status.state is StudyState.INTERRUPTED:
        words = "The conductor died before the study ended. To continue the study:"
    elif status.state is StudyState.PENDING:
        words = "No conductor has run this study yet. If none is about to start:"
    else:
        return []
    command = plain(f"  maestro-celery resume {status.path}", "bold")
    return [Text(f"\n{words}\n", style="yellow").append_text(command)]


# --- step records ---


def _most_active(steps: list[StepStatus], rows: int) -> list[StepStatus]:
    """Return the step records to show: if not all fit, those that run, then those that failed."""
    if len(steps) <= rows:
        return steps
    rank = {"RUNNING": 0, "FAILED": 1, "TIMEDOUT": 1, "PENDING": 2, "INITIALIZED": 3}
    order = sorted(range(len(steps)), key=lambda number: rank.get(steps[number].state, 4))
    return [steps[number] for number in sorted(order[:rows])]


def _rest_words(steps: list[StepStatus], shown: list[StepStatus]) -> Text:
    rest = Counter(step.state for step in steps) - Counter(step.state for step in shown)
    words = ", ".join(f"{count} {state}" for state, count in rest.most_common())
    return Text(f"and {rest.total()} more step records: {words} (--json has all)", style="dim")


def _steps_table(steps: list[StepStatus], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")
    table.add_column("step record", overflow="fold")
    if wide:
        table.add_column("state")
    table.add_column("progress" if wide else "rate, time left", width=30 if wide else 20)
    for heading in ("total", "finished", "failed", "running", "pending"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("rate", justify="right", no_wrap=True)
        table.add_column("time left", justify="right", no_wrap=True)
    for step in steps:
        table.add_row(*(_wide_row(step) if wide else _narrow_row(step)))
    return table


def _wide_row(step: StepStatus) -> list[RenderableType]:
    return [
        _name(step),
        outcome_text(step.state, step.samples.failed),
        _bar(step),
        *_numbers(step),
        _rate(step),
        _time_left(step),
    ]


def _narrow_row(step: StepStatus) -> list[RenderableType]:
    pace = ", ".join(words for words in (_rate(step), _time_left(step)) if words)
    name = Text.assemble(_name(step), "\n", outcome_text(step.state, step.samples.failed))
    progress = Table.grid()
    progress.add_row(_bar(step))
    progress.add_row(Text(pace, style="dim"))
    return [name, progress, *_numbers(step)]


def _name(step: StepStatus) -> Text:
    restarts = f" (restarts: {step.restarts})" if step.restarts else ""
    return plain(step.name).append(restarts, style="yellow")


def _bar(step: StepStatus) -> RenderableType:
    samples = step.samples
    if not samples.total:
        return Text("")
    style = "red" if samples.failed else "cyan"
    return ProgressBar(
        total=samples.total,
        completed=samples.finished + samples.failed,
        complete_style=style,
        finished_style="red" if samples.failed else "green",
    )


def _numbers(step: StepStatus) -> list[Text]:
    samples = step.samples
    if not samples.total:
        return [Text("")] * 5
    failed = Text(str(samples.failed), style="red" if samples.failed else "")
    others = [Text(str(n)) for n in (samples.total, samples.finished, samples.running, samples.pending)]
    return [*others[:2], failed, *others[2:]]


def _rate(step: StepStatus) -> str:
    return f"{step.rate:.{0 if step.rate >= 100 else 2}f}/s" if step.rate and step.samples.total > 1 else ""


def _time_left(step: StepStatus) -> str:
    return duration_words(step.time_left_s) if step.time_left_s else ""


# --- allocations, workers and samples ---


def _warnings(status: StudyStatus) -> list[RenderableType]:
    sentences = [*status.damage, *(machine.sentence for machine in status.broken_machines)]
    return [section("Warnings", map(plain, sentences))] if sentences else []


def _allocations(status: StudyStatus) -> list[RenderableType]:
    """Return the last allocation of each name; its number counts the allocations of that name."""
    last = {one.name: one for one in status.allocations}
    if not last:
        return []
    lines = []
    for allocation in list(last.values())[:SHOWN]:
        job = f"job {allocation.job}" if allocation.job else "not submitted"
        line = Text.assemble(plain(f"{allocation.name}/{allocation.number}  {job}  "), state_text(allocation.state))
        lines.append(line.append_text(plain(f"  {allocation.reason}" if allocation.reason else "", "dim")))
    ended = [one for one in status.allocations if one.slot_seconds]
    if ended:
        lines.append(plain(_usage_words(ended), "dim"))
    if len(last) > SHOWN:
        lines.append(Text(f"and {len(last) - SHOWN} more (--json has all)", style="dim"))
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


def _workers(status: StudyStatus) -> list[RenderableType]:
    if not status.workers:
        return []
    lines = [_worker(worker) for worker in status.workers[:SHOWN]]
    if len(status.workers) > SHOWN:
        rest = Counter(worker.state for worker in status.workers[SHOWN:])
        words = ", ".join(f"{n} {state}" for state, n in rest.items())
        lines.append(Text(f"and {rest.total()} more: {words}", style="dim"))
    return [section("Workers", lines)]


def _worker(worker: WorkerStatus) -> Text:
    noun = "message" if worker.refused_messages == 1 else "messages"
    refused = f"  {worker.refused_messages} {noun} refused" if worker.refused_messages else ""
    held = "  its last samples have failed; `maestro-celery explain`" if worker.state is WorkerState.HELD else ""
    line = Text.assemble(plain(f"{worker.name}  {worker.group}  {worker.node}  "), state_text(worker.state))
    return line.append_text(plain(f"{held}{refused}", "yellow"))
