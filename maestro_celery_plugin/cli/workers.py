"""`maestro-celery workers`: start workers of a study on this machine, or in the allocation around this process."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.conductor.worker_sources import request_for
from maestro_celery_plugin.config.groups import batch_of, is_for_this_machine, require_groups, serving_groups
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import is_locked
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.maestro.specification import load_ensemble
from maestro_celery_plugin.plugins import current_allocation
from maestro_celery_plugin.processes import forget_variable
from maestro_celery_plugin.report.terminal import wide_console
from maestro_celery_plugin.report.worker_list import live_workers, workers_table
from maestro_celery_plugin.spec.overrides import Overrides, variables_of
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, Session
from maestro_celery_plugin.study.stopped_workers import read_stopped
from maestro_celery_plugin.study.worker_identity import worker_command

__all__ = ["command", "start_workers", "study_of", "worker_lines"]


@click.command("workers")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--group", "groups", multiple=True, help="Worker group; may be repeated. [default: all for this machine]")
@click.option("--echo", is_flag=True, help="Print the command lines and start no worker.")
@click.option("--list", "is_list", is_flag=True, help="List the live workers of the study, and start no worker.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print the workers as JSON.")
@vars_option
def command(
    study: Path, groups: tuple[str, ...], echo: bool, is_list: bool, as_json: bool, variables: tuple[str, ...]
) -> None:
    """Start workers of a study on this machine, and wait until they have left.

    STUDY is the directory of a study, or a specification with a running study. Inside an allocation, the workers of a
    group with a batch system start on the nodes of the allocation.
    """
    if as_json and not is_list:
        raise click.UsageError("--json needs --list.")
    if is_list:
        _list(study_of(study, variables), groups, as_json=as_json)
        return
    lines = worker_lines(study_of(study, variables), groups)
    for name, line in lines.items():
        click.echo(line if echo else f"Starting worker group '{name}': {line}")
    forget_variable(ENVIRONMENT_VARIABLE)  # workers read the URL in the session, and samples must not inherit it
    sys.exit(0 if echo else start_workers(lines))


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
        wide_console().print(workers_table(listed), crop=False)
    else:
        click.echo("The study has no live workers.")
    if stopped is not None:
        click.echo(stopped.sentence)


def study_of(path: Path, variables: Sequence[str] = (), *, may_have_ended: bool = False) -> Path:
    """Return the directory of a study: the path itself, or the newest running study of a specification.

    Args:
        path: The directory, or the specification.
        variables: The variables with which the study of the specification was launched, as ``NAME=VALUE``.
        may_have_ended: Whether the newest study of a specification may also be one that has ended.

    Raises:
        StudyError: there is no such study.
    """
    if path.is_dir():
        return path.absolute()
    if not path.is_file():
        raise StudyError(f"'{path}' is neither the directory of a study nor a specification.")
    specification = load_ensemble(path, Overrides(variables=variables_of(variables)))
    # maestro.py:436-452: <OUTPUT_PATH>/<name>_<time>, with blanks of the name as underscores.
    parent = Path(specification.output_path or ".")
    name = re.compile(re.escape(specification.name.replace(" ", "_")) + r"_\d{8}-\d{6}")
    # The launch writes the one file; the conductor, which may not have begun yet, locks the other one.
    file = "batch.info" if may_have_ended else "merlin_info/conductor.lock"
    files = (path / file for path in parent.glob("*_*-*") if name.fullmatch(path.name))
    found = sorted((path for path in files if path.is_file()), key=lambda path: path.stat().st_mtime)
    studies = [parent / path.relative_to(parent).parts[0] for path in found if may_have_ended or is_locked(path)]
    if not studies:
        raise StudyError(
            f"No study of '{path}' {'exists' if may_have_ended else 'is running'} below '{parent.absolute()}'; give "
            "the directory that `maestro run` has created."
        )
    return studies[-1].absolute()


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
    serving = serving_groups(plan.settings)
    require_groups(plan.settings, groups)
    chosen = list(groups) or [name for name, group in serving.items() if is_for_this_machine(group)]
    if not chosen:
        machines = ", ".join(f"'{name}': {' or '.join(group.machines)}" for name, group in serving.items())
        raise StudyError(
            f"No worker group is for this machine, {host_name()} ({machines}); use --group to start one anyway."
        )
    return {name: _line(plan, session, name) for name in chosen}


def _line(plan: StudyPlan, session: Session, name: str) -> str:
    """Return the shell command of one group: for all nodes of the allocation around this process, or for one worker."""
    batch = batch_of(plan.settings, plan.settings.resources.workers[name])
    if current_allocation(batch.type) is None:
        return shlex.join(worker_command(session, name))
    return request_for(plan, session, [name]).lines[0]


def start_workers(lines: dict[str, str]) -> int:
    """Start workers and wait for their end; return the first exit code that is not 0.

    The workers receive Ctrl-C as well; then they end their samples and leave.
    """
    commands = [["/bin/sh", "-c", line] for line in lines.values()]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    codes = [_wait(process) for process in processes]
    return next((code for code in codes if code), 0)


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the worker has received the signal as well, and ends
