"""The groups of failed samples on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from maestro_celery_plugin.report.distinction import Rule
from maestro_celery_plugin.report.failed_samples import headline
from maestro_celery_plugin.report.failure_groups import FailureGroup, StepFailures
from maestro_celery_plugin.report.terminal import plain

__all__ = ["print_failures"]

# Groups of a step that a user reads.
SHOWN = 10


def print_failures(steps: Iterable[StepFailures], console: Console) -> None:
    """Print the groups of each step, each with what distinguishes its samples."""
    is_first = True
    for step in steps:
        if not is_first:
            console.print()
        is_first = False
        console.print(plain(f"{step.step}: {step.failed} of {step.ended} samples have failed", "bold"), soft_wrap=True)
        for group in step.groups[:SHOWN]:
            for line in _lines(group, step):
                console.print(line, soft_wrap=True)
        rest = step.groups[SHOWN:]
        if rest:
            count = sum(group.count for group in rest)
            console.print(plain(f"  {count} more in {len(rest)} smaller groups (--json has all)", "dim"))
        if step.unread:
            words = f"The stderr of {step.unread} more failed samples was not read; they are in no group."
            console.print(plain(f"  {words}", "dim"), soft_wrap=True)
    if is_first:
        console.print("No sample has failed.")


def _lines(group: FailureGroup, step: StepFailures) -> Iterator[Text]:
    yield Text("")
    line = f": {group.line}" if group.line else ", nothing on stderr"
    yield plain(f"  {group.count}  ").append(plain(group.end, "bold red")).append(plain(line))
    for rule in group.rules:
        yield plain(f"      {_words(rule, step)}")
    if group.suspicion:
        yield plain(f"      Perhaps, with so few samples: {_words(group.suspicion, step)}")
    elif not group.rules:
        yield plain(f"      {_nothing(group, step)}", "dim")
    yield Text("      first: ", "dim").append(headline(group.first, str(group.first.directory)))


def _words(rule: Rule, step: StepFailures) -> str:
    others = f"{rule.false_hits} of {rule.others} {'that finished' if step.finished else 'others'}"
    return f"{rule.hits} of {rule.samples} have {rule.words}; {others}"


def _nothing(group: FailureGroup, step: StepFailures) -> str:
    if not step.columns:
        return "The samples of the step have no values, parameters or machines that differ."
    if group.count == step.ended:
        return "All samples of the step that have ended are in this group."
    others = "those that finished" if step.finished else "the others"
    names = ", ".join(step.columns)
    return f"Nothing distinguishes {'it' if group.count == 1 else 'them'} clearly from {others}: {names}"
