"""What `-fg` shows: one line for each step, the allocations and the workers, and at the end what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from maestro_celery_plugin.batch.allocation import job_words
from maestro_celery_plugin.report.failed_samples import failures
from maestro_celery_plugin.report.live.step_groups import StepGroup, group_steps, samples_per_record
from maestro_celery_plugin.report.model import StudyState, StudyStatus, WorkerStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.steps_table import by_urgency, steps_table
from maestro_celery_plugin.report.terminal import (
    command_words,
    count_words,
    duration_words,
    outcome_text,
    plain,
    shortened,
    state_text,
    whole,
)

__all__ = [
    "allocation_lines",
    "end_view",
    "line_of",
    "problem_lines",
    "progress_view",
    "title_of",
    "worker_line",
    "worker_totals",
]

# Allocations and sentences about problems that are shown.
_SHOWN = 3
# The kinds of failures that are shown at the end.
_SHOWN_FAILURES = 3


def progress_view(status: StudyStatus, reader: StatusReader, console: Console, elapsed_s: float) -> Group:
    """Return what fits into the terminal while the study runs; each line is one line there.

    Args:
        status: The status.
        reader: The reader of the status.
        console: The terminal.
        elapsed_s: Seconds since the begin of the display.
    """
    title = [title_of(status, console.width, elapsed_s)]
    below = [
        line_of(line, console.width)
        for line in (*problem_lines(status), *allocation_lines(status), *worker_totals(status))
    ]
    below = below[: max(0, console.height // 2 - 2)]
    rows = max(1, console.height - len(title) - len(below) - 3)  # the headings, the number of others, the cursor
    return Group(*title, *_table(_groups(status, reader), console, rows), *below)


def end_view(status: StudyStatus, reader: StatusReader, console: Console, elapsed_s: float, *, advises: bool) -> Group:
    """Return the last state, which stays on the terminal: all steps, and failures.

    Args:
        status: The status.
        reader: The reader of the status.
        console: The terminal.
        elapsed_s: Seconds since the begin of the display.
        advises: Whether to add commands that help; no, if another message does so.
    """
    groups = _groups(status, reader)
    parts: list[RenderableType] = [title_of(status, console.width, elapsed_s), *_table(groups, console, len(groups))]
    kinds = reader.failure_kinds(_SHOWN_FAILURES)
    if kinds:
        parts.append(failures(kinds, status.path))
    parts += [line_of(line, console.width) for line in problem_lines(status)]
    return Group(*parts, *_next_commands(status, has_failures=bool(kinds))) if advises else Group(*parts)


def line_of(text: Text, width: int) -> Text:
    """Return a text that fits into one line of the terminal; an ellipsis stands for the rest."""
    text.truncate(width, overflow="ellipsis")
    return whole(text)


def _groups(status: StudyStatus, reader: StatusReader) -> list[StepGroup]:
    return group_steps(status.steps, samples_per_record(reader.plan))


def title_of(status: StudyStatus, width: int, elapsed_s: float = 0.0) -> Text:
    """Return the name and the state of the study in one line, whose state is always whole."""
    state = outcome_text(status.state.name, status.failed_samples)
    end = Text.assemble("  ", state, Text(f"  {duration_words(elapsed_s)}" if elapsed_s >= 1 else "", "dim"))
    name = plain(status.study)
    return line_of(Text(shortened(name.plain, max(12, width - end.cell_len)), "bold").append_text(end), width)


def _table(groups: Sequence[StepGroup], console: Console, rows: int) -> list[RenderableType]:
    steps = [group.whole for group in groups]
    if len(steps) > rows:
        chosen = {id(step) for step in by_urgency(steps, rows)}
        steps = [step for step in steps if id(step) in chosen]
    table = steps_table(steps, console.width, ascii_only=console.options.ascii_only, heading="step", must_fit=True)
    hidden = len(groups) - len(steps)
    return [table, Text(f"and {count_words(hidden, 'more step')}", style="dim")] if hidden else [table]


# --- below the table ---


def problem_lines(status: StudyStatus) -> Iterator[Text]:
    """Yield the sentences that need the attention of the user."""
    sentences = [status.broker_problem] if status.broker_problem else []
    sentences += [machine.sentence for machine in status.broken_machines]
    sentences += status.damage
    if status.workers_stopped is not None:
        sentences.append(status.workers_stopped.sentence)
    for sentence in sentences[:_SHOWN]:
        yield plain(sentence, "yellow")
    if len(sentences) > _SHOWN:
        yield Text(f"and {len(sentences) - _SHOWN} more (`maestro-celery status`)", "yellow")


def allocation_lines(status: StudyStatus, limit: int | None = _SHOWN) -> Iterator[Text]:
    """Yield a line for the last allocation of each name, up to a limit."""
    last = {one.name: one for one in status.allocations}
    for one in list(last.values())[:limit]:
        job = job_words(one.job)
        line = Text.assemble("allocation ", plain(f"{one.name}/{one.number}  {job}  "), state_text(one.state))
        slots = f"  {count_words(one.slots, 'slot')}" if one.slots else ""
        yield line.append_text(plain(f"{slots}  {one.reason}".rstrip(), "dim"))
    if limit is not None and len(last) > limit:
        yield Text(f"and {count_words(len(last) - limit, 'more allocation')}", "dim")


def worker_totals(status: StudyStatus) -> Iterator[Text]:
    """Yield a line with the number of workers in each state."""
    if status.workers:
        states = Counter(worker.state for worker in status.workers)
        words = ", ".join(f"{count} {state}" for state, count in states.items())
        yield Text(f"{count_words(states.total(), 'worker')}: {words}", "dim")


def worker_line(worker: WorkerStatus) -> Text:
    """Return a line about a worker."""
    return Text.assemble("worker ", plain(f"{worker.name}  {worker.group}  {worker.node}  "), state_text(worker.state))


# --- the end ---


def _next_commands(status: StudyStatus, *, has_failures: bool) -> Iterator[RenderableType]:
    """Yield the commands that a user needs after the end of a study."""
    study = status.path
    if status.state is StudyState.FINISHED and not has_failures:
        commands = {"The results as a table:": "maestro-celery samples"}
    elif status.state in (StudyState.FAILED, StudyState.FINISHED):
        commands = {
            "To see why:": "maestro-celery explain",
            "To run what has failed again:": "maestro-celery resume --failed",
        }
    else:
        commands = {"To continue the study:": "maestro-celery resume"}
    yield Text("")
    for words, command in commands.items():
        yield Text(words, "dim")
        yield whole(plain(f"  {command_words(command, study)}"))
