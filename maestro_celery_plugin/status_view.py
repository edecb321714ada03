"""The status of a study on a terminal.

What comes from a study (names, values, stderr) is shown as plain text: it may hold anything, so neither
rich's markup nor control sequences of a terminal take effect.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maestro_celery_plugin.sample_status import SampleStatus, values_of
from maestro_celery_plugin.status import StatusReader
from maestro_celery_plugin.study_status import AllocationStatus, StepStatus, StudyState, StudyStatus

__all__ = ["show", "show_failed", "watch"]

WATCH_S = 1.0
# So many workers, slow samples and kinds of failures are shown below the table.
SHOWN = 5
# A table of thousands of step records takes rich many seconds, and nobody reads it.
SHOWN_STEPS = 200
STDERR_LINES = 3
_STDERR_BYTES = 4096
_LINE_LIMIT = 400
# Columns of a terminal from which on each step record takes one line.
_WIDE = 120

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
    "dead": "red",
}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def show(reader: StatusReader, console: Console) -> None:
    """Print the status of a study."""
    console.print(_page(reader.read(), reader, console))


def watch(reader: StatusReader, console: Console) -> None:
    """Show the status of a study until it has ended; reading takes at most a fifth of the time."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            begin = time.monotonic()
            status = reader.read()
            if status.has_ended:
                live.update(_page(status, reader, console), refresh=True)
                return
            live.update(_page(status, reader, console, rows=max(3, console.height // 2)), refresh=True)
            time.sleep(max(WATCH_S, 4 * (time.monotonic() - begin)))


def show_failed(reader: StatusReader, console: Console, limit: int) -> None:
    """Print failed samples with their values; say how many more there are."""
    status = reader.read()
    total = sum(step.samples.failed for step in status.steps)
    samples = reader.failed(limit)
    for sample, values in zip(samples, values_of(samples), strict=True):
        _print_whole(console, _headline(sample, sample.end))
        if values != {}:
            _print_whole(console, _plain(f"  {_value_words(values)}"))
        _print_whole(console, _plain(f"  {sample.directory}", "dim"))
    if total > len(samples):
        console.print(f"\n{total - len(samples)} more of {total} failed samples; --limit {total} lists all.")
    elif not total:
        console.print("No sample has failed.")


def _print_whole(console: Console, text: Text) -> None:
    """Print a line without wrapping it, so that paths can be copied and lines be searched."""
    console.print(text, soft_wrap=True)


def _value_words(values: dict[str, str] | None) -> str:
    if values is None:
        return "(the sample table cannot be read any more)"
    return "  ".join(f"{label}={value}" for label, value in values.items())


# --- page ---


def _page(status: StudyStatus, reader: StatusReader, console: Console, rows: int = SHOWN_STEPS) -> Group:
    """Return everything, with up to `rows` step records."""
    steps = _most_active(status.steps, rows)
    parts: list[RenderableType] = [_title(status), _steps_table(steps, wide=console.width >= _WIDE)]
    if len(steps) < len(status.steps):
        parts.append(_rest_words(status.steps, steps))
    parts += [*_advice(status), *_allocations(status), *_workers(status)]
    slowest = reader.slowest(SHOWN)
    if slowest:
        lines = (_headline(sample, _duration_words(sample.duration_s)) for sample in slowest)
        parts.append(_section("Slowest samples", lines))
    kinds = reader.failure_kinds(SHOWN)
    if kinds:
        parts.append(_failures(kinds, status.path))
    return Group(*parts)


def _title(status: StudyStatus) -> Text:
    title = Text.assemble(_plain(status.study, "bold"), "  ", _state_text(status.state.name), "\n")
    return title.append_text(_plain(str(status.path), "dim"))


def _advice(status: StudyStatus) -> list[RenderableType]:
    if status.state is StudyState.INTERRUPTED:
        words = "The conductor of this study has died before its end. To go on with it:"
    elif status.state is StudyState.PENDING:
        words = "No conductor has run this study yet. If none is about to start:"
    else:
        return []
    command = _plain(f"  maestro-celery resume {status.path}", "bold")
    return [Text(f"\n{words}\n", style="yellow").append_text(command)]


def _section(title: str, lines: Iterable[Text]) -> Group:
    indented = (Padding(line, (0, 0, 0, 2), expand=False) for line in lines)
    return Group(Text(f"\n{title}", style="bold"), *indented)


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
    return [_name(step), _state_text(step.state), _bar(step), *_numbers(step), _rate(step), _time_left(step)]


def _narrow_row(step: StepStatus) -> list[RenderableType]:
    pace = ", ".join(words for words in (_rate(step), _time_left(step)) if words)
    name = Text.assemble(_name(step), "\n", _state_text(step.state))
    progress = Table.grid()
    progress.add_row(_bar(step))
    progress.add_row(Text(pace, style="dim"))
    return [name, progress, *_numbers(step)]


def _name(step: StepStatus) -> Text:
    restarts = f" (restarts: {step.restarts})" if step.restarts else ""
    return _plain(step.name).append(restarts, style="yellow")


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
    return _duration_words(step.time_left_s) if step.time_left_s else ""


# --- allocations, workers and samples ---


def _allocations(status: StudyStatus) -> list[RenderableType]:
    """Return the last allocation of each name; how many there were before it, its number tells."""
    last = {one.name: one for one in status.allocations}
    if not last:
        return []
    lines = []
    for one in list(last.values())[:SHOWN]:
        job = f"job {one.job}" if one.job else "not submitted"
        line = Text.assemble(_plain(f"{one.name}/{one.number}  {job}  "), _state_text(one.state))
        lines.append(line.append_text(_plain(f"  {one.reason}" if one.reason else "", "dim")))
    ended = [one for one in status.allocations if one.slot_seconds]
    if ended:
        lines.append(_plain(_use_words(ended), "dim"))
    if len(last) > SHOWN:
        lines.append(Text(f"and {len(last) - SHOWN} more (--json has all)", style="dim"))
    return [_section("Allocations", lines)]


def _use_words(ended: Sequence[AllocationStatus]) -> str:
    """Return what the slots of allocations that have ended were used for."""
    total_s = sum(one.slot_seconds for one in ended)
    parts = {
        "samples": sum(one.sample_seconds for one in ended) / total_s,
        "samples that were interrupted": sum(one.interrupted_seconds for one in ended) / total_s,
    }
    parts["neither"] = 1 - sum(parts.values())
    words = ", ".join(f"{share:.0%} {what}" for what, share in parts.items())
    return f"{len(ended)} ended, {_duration_words(total_s)} of their slots: {words}"


def _workers(status: StudyStatus) -> list[RenderableType]:
    if not status.workers:
        return []
    lines = [
        Text.assemble(_plain(f"{w.name}  {w.group}  {w.node}  "), _state_text(w.state))
        for w in status.workers[:SHOWN]
    ]
    if len(status.workers) > SHOWN:
        rest = Counter(worker.state for worker in status.workers[SHOWN:])
        words = ", ".join(f"{n} {state}" for state, n in rest.items())
        lines.append(Text(f"and {rest.total()} more: {words}", style="dim"))
    return [_section("Workers", lines)]


def _failures(kinds: Sequence[tuple[SampleStatus, int]], study: Path) -> Group:
    """Return one failed sample of each kind, with the last lines of its stderr."""
    lines: list[Text] = []
    for sample, count in kinds:
        more = f", and {count - 1} more" if count > 1 else ""
        lines.append(_headline(sample, sample.end).append(more))
        lines += [_plain(f"  {line}", "dim") for line in _last_lines(sample.stderr)]
    hint = _plain(f"all, with values and directories: maestro-celery status --failed {study}", "dim")
    return _section("Failed samples", [*lines, hint])


def _headline(sample: SampleStatus, words: str) -> Text:
    name = _plain(sample.manifest.name)
    if sample.manifest.sampled:
        name.append(f"  sample {sample.index}")
    return name.append(f"  {words}", style="bold")


def _last_lines(path: Path) -> list[str]:
    """Return the last lines of a text file that may be huge, absent, or no text."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _STDERR_BYTES))
            text = file.read(_STDERR_BYTES).decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    return [line[:_LINE_LIMIT] for line in lines if line][-STDERR_LINES:]


def _duration_words(seconds: float) -> str:
    """Return a duration in two units: ``0.12 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, hours, days = int(seconds / 60), int(seconds / 3600), int(seconds / 86400)
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{days} d {hours % 24} h"


def _state_text(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))


def _plain(text: str, style: str = "") -> Text:
    """Return text with control characters made visible, as in ``\\x1b``."""
    return Text(_CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text), style=style)
