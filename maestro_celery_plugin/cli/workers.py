"""Starting the workers of a study by hand, where this process is: on another machine, or in an allocation."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from maestro_celery_plugin.batch.base import batch_system
from maestro_celery_plugin.conductor.worker_sources import batch_of, is_for_this_machine, request_for
from maestro_celery_plugin.config.schema import nearest
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.processes import host_name
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import shared_lock
from maestro_celery_plugin.worker.__main__ import worker_command

__all__ = ["start_workers", "study_of", "worker_lines"]


def study_of(path: Path) -> Path:
    """Return the directory of a study: the path itself, or the newest running study of a specification.

    Raises:
        StudyError: there is none.
    """
    if path.is_dir():
        return path.absolute()
    if not path.is_file():
        raise StudyError(f"'{path}' is neither the directory of a study nor a specification.")
    from maestro_celery_plugin.maestro.specification import EnsembleSpecification

    specification = EnsembleSpecification.load_specification(str(path))
    # maestro.py:436-452: <OUTPUT_PATH>/<name>_<time>, with blanks of the name as underscores.
    parent = Path(specification.output_path or ".")
    name = specification.name.replace(" ", "_")
    found = sorted(parent.glob(f"{name}_*-*/merlin_info/conductor.lock"), key=lambda lock: lock.stat().st_mtime)
    running = [lock.parent.parent for lock in found if not _is_free(lock)]
    if not running:
        raise StudyError(
            f"No study of '{path}' is running below '{parent.absolute()}'; give the directory that `maestro run` "
            "has made."
        )
    return running[-1].absolute()


def _is_free(lock: Path) -> bool:
    with shared_lock(lock) as is_free:
        return is_free


def worker_lines(directory: Path, groups: Sequence[str]) -> dict[str, str]:
    """Return the shell command that starts the workers of each group here.

    Args:
        directory: The study's directory.
        groups: Worker groups; all that are for this machine when there are none.

    Raises:
        StudyError: the study has no such group, or none for this machine, or has ended.
    """
    plan = StudyPlan.read(directory)
    session = Session(plan.session)
    if not session.path.exists():
        raise StudyError(f"The study '{plan.root}' was a dry run, or its session is gone; there is no work.")
    known = {name: group for name, group in plan.settings.resources.workers.items() if group.task_queues}
    for name in groups:
        if name not in known:
            raise StudyError(f"--group: the study has no worker group '{name}'; {nearest(name, known)}")
    chosen = list(groups) or [name for name, group in known.items() if is_for_this_machine(group)]
    if not chosen:
        machines = ", ".join(f"'{name}': {' or '.join(group.machines)}" for name, group in known.items())
        raise StudyError(f"No worker group is for this machine, {host_name()} ({machines}); --group starts one anyway.")
    return {name: _line(plan, session, name) for name in chosen}


def _line(plan: StudyPlan, session: Session, name: str) -> str:
    """Return the line for one group: over the nodes of the allocation around this process, or one worker here."""
    system = batch_system(batch_of(plan.settings, plan.settings.resources.workers[name]).type)
    if system is None or system.held(os.environ) is None:
        return shlex.join(worker_command(session, name))
    return request_for(plan, session, [name]).lines[0]


def start_workers(lines: dict[str, str]) -> int:
    """Start workers and wait for their end; return the first exit code that is not 0.

    Ctrl-C reaches them, too: they end their samples and leave.
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
            continue  # it has had the signal, too
