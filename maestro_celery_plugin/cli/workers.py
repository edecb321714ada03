"""`maestro-celery workers`: start workers of a study on this machine, or in the allocation around this process."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import GROUP, STUDY
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.conductor.worker_sources import request_for
from maestro_celery_plugin.config.groups import LOCAL, batch_of, is_for_this_machine, require_groups, serving_groups
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.plugins import current_allocation
from maestro_celery_plugin.processes import forget_variable
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import command_words
from maestro_celery_plugin.report.worker_list import live_workers, print_workers
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, Session
from maestro_celery_plugin.study.stopped_workers import read_stopped
from maestro_celery_plugin.study.worker_identity import EXIT_NO_BROKER, worker_command

__all__ = ["command", "start_workers", "worker_lines"]

_ENDED = (StudyState.FINISHED, StudyState.FAILED, StudyState.CANCELLED)


@click.command("workers")
@click.argument("study", type=STUDY)
@click.option(
    "--group",
    "groups",
    type=GROUP,
    multiple=True,
    help="Worker group; may be repeated. [default: all for this machine]",
)
@click.option("--echo", is_flag=True, help="Print the command lines and start no worker.")
@click.option("--list", "is_list", is_flag=True, help="List the live workers of the study, and start no worker.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print the workers as JSON.")
@vars_option
def command(
    study: Path, groups: tuple[str, ...], echo: bool, is_list: bool, as_json: bool, variables: tuple[str, ...]
) -> None:
    """Start workers of a study on this machine, and wait until they have left.

    STUDY is the directory of a study, or the specification of a running study. Inside an allocation, the workers of a
    group with a batch system start on the nodes of the allocation.
    """
    if as_json and not is_list:
        raise click.UsageError("--json needs --list.")
    if is_list:
        _list(study_of(study, variables), groups, as_json=as_json)
        return
    directory = study_of(study, variables)
    lines = worker_lines(directory, groups)
    for name, line in lines.items():
        click.echo(line if echo else f"Starting worker group '{name}': {line}")
    for sentence in _without_allocation(directory, lines):
        click.echo(sentence, err=True)
    forget_variable(ENVIRONMENT_VARIABLE)  # workers read the URL in the session, and samples must not inherit it
    sys.exit(0 if echo else start_workers(lines, directory))


def _list(directory: Path, groups: Sequence[str], *, as_json: bool) -> None:
    """Print the live workers of a study."""
    plan = StudyPlan.read(directory)
    require_groups(plan.settings, groups)
    listed = [worker for worker in live_workers(plan) if not groups or worker.group in groups]
    if as_json:
        click.echo(json.dumps([worker.to_json() for worker in listed], indent=1))
        return
    stopped = read_stopped(plan.session)
    if listed:
        print_workers(listed)
    else:
        click.echo("The study has no live workers.")
    if stopped is not None:
        click.echo(stopped.sentence)


def worker_lines(directory: Path, groups: Sequence[str]) -> dict[str, str]:
    """Return the shell command that starts the workers of each group on this machine.

    Args:
        directory: Directory of the study.
        groups: Names of worker groups; all groups for this machine when empty.

    Raises:
        StudyError: the study has no such group or no group for this machine, or has ended.
    """
    plan = StudyPlan.read(directory)
    session = Session(plan.session)
    if not session.path.exists():
        raise StudyError(f"The study '{plan.root}' was a dry run, or its session no longer exists; there is no work.")
    _check_open(plan)
    serving = serving_groups(plan.settings)
    require_groups(plan.settings, groups)
    chosen = list(groups) or [name for name, group in serving.items() if is_for_this_machine(group)]
    if not chosen:
        machines = ", ".join(f"'{name}': {' or '.join(group.machines)}" for name, group in serving.items())
        raise StudyError(
            f"No worker group is for this machine, {host_name()} ({machines}); use --group to start one anyway."
        )
    return {name: _line(plan, session, name) for name in chosen}


def _check_open(plan: StudyPlan) -> None:
    """Check that the study may have work; without a conductor, say what continues it.

    Raises:
        StudyError: the study has ended, or belongs to another user.
    """
    state = StatusReader(plan.root).read().state
    resume = f"`{command_words('maestro-celery resume', plan.root)}`"
    if state in _ENDED:
        raise StudyError(
            f"The study '{plan.root}' has ended ({state.name}); there is no work. {resume} runs what has not finished."
        )
    if state is StudyState.INTERRUPTED:
        click.echo(f"No conductor runs the study, so that nothing is sent to workers; {resume} continues it.", err=True)


def _line(plan: StudyPlan, session: Session, name: str) -> str:
    """Return the shell command of one group: for all nodes of the allocation around this process, or for one worker."""
    batch = batch_of(plan.settings, plan.settings.resources.workers[name])
    if current_allocation(batch.type) is None:
        return shlex.join(worker_command(session, name))
    return request_for(plan, session, [name]).lines[0]


def _without_allocation(directory: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each of these groups with a batch system of which this process is not in an allocation."""
    settings = StudyPlan.read(directory).settings
    for name in names:
        kind = batch_of(settings, settings.resources.workers[name]).type
        if kind != LOCAL and current_allocation(kind) is None:
            yield (
                f"Worker group '{name}' has the batch type '{kind}', but this is no allocation of it: one worker "
                f"starts on {host_name()}. Type the command in a batch script to start the workers of all nodes."
            )


def start_workers(lines: dict[str, str], directory: Path) -> int:
    """Start workers and wait for their end; return the first exit code that is not 0.

    The workers receive Ctrl-C as well; then they end their samples and leave.

    Args:
        lines: The shell command of each group.
        directory: Directory of the study.
    """
    commands = [["/bin/sh", "-c", line] for line in lines.values()]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    codes = [_wait(process) for process in processes]
    for name, code in zip(lines, codes, strict=True):
        if code:
            why = "it has not reached the broker of the study" if code == EXIT_NO_BROKER else "its log says why"
            logs = directory / "merlin_info" / "workers"
            click.echo(f"Worker group '{name}' has ended with exit code {code}: {why} ('{logs}').", err=True)
    return next((code for code in codes if code), 0)


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the worker has received the signal as well, and ends
