"""A worker: a supervisor process, and under it the Celery worker that runs samples.

    python -m maestro_celery_plugin.worker [--name NAME] [--allocation NAME/NUMBER] SESSION GROUP

The supervisor imports little and does nothing but wait. When the Celery worker has ended, however it
did, the supervisor ends what is left of its samples, so that no sample outlives the worker that has to
record its end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.processes import (
    ProcessId,
    adopt_orphans,
    die_with_parent,
    end_descendants,
    end_marked,
    host_name,
)
from maestro_celery_plugin.study.group_config import WorkerTerms
from maestro_celery_plugin.study.session import Session

__all__ = [
    "MARKER",
    "MOVED",
    "PROCESS_MARKER",
    "WorkerArguments",
    "is_of_stem",
    "main",
    "mark",
    "stem_of",
    "worker_command",
    "worker_stem",
]

# Environment variables by which a dead worker's samples are found.
MARKER = "MAESTRO_CELERY_WORKER"
PROCESS_MARKER = "MAESTRO_CELERY_PROCESS"


def stem_of(group: str) -> str:
    """Return a group's name as it stands in the names of its workers, which are names of files, too."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", group)


def worker_stem(group: str, allocation: str) -> str:
    """Return what the names of a group's workers in an allocation begin with: ``sim-2-`` in ``sim/2``."""
    return "-".join((stem_of(group), *allocation.split("/")[1:], ""))


def is_of_stem(writer: str, stem: str) -> bool:
    """Tell whether a worker, or a process of its pool, has a name of a stem: ``sim-2-1``, ``sim-2-1.99`` of ``sim-2-``.

    ``sim-2-1-1`` is that of the group `sim-2` in its first allocation, not of `sim` in its second.
    """
    rest = writer.removeprefix(stem)
    return rest != writer and rest.partition(".")[0].isdigit()


def mark(session: Session, name: str) -> str:
    """Return the value of a marker: names of workers are unique in their session only."""
    return f"{session.path}:{name}"


# Exit code of a worker that has left because the broker is elsewhere now (sysexits.h, EX_TEMPFAIL).
MOVED = 75
# A worker that was told to end gets this long for its samples' SIGTERM and SIGKILL.
_STOP_LIMIT_S = 8
# What is left of a dead worker's samples has had its SIGTERM, or is nobody's any more.
GRACE_S = 1.0
# In an allocation, a worker that was killed is followed by another one, but not for ever.
_LIVES = 20

_told_to_end = threading.Event()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """What a worker is started with.

    Attributes:
        session: The session.
        terms: What its group works by.
        name: The worker's name, unique in the session.
        allocation: The allocation it runs in, such as ``sim/2``; empty for none of ours.
        number: Which worker of its allocation it is, from 1 on.
    """

    session: Session
    terms: WorkerTerms
    name: str
    allocation: str
    number: int


def worker_command(session: Session, group: str, *, name: str = "", allocation: str = "") -> list[str]:
    """Return the command line that starts a worker, with the Python of this process and so its environment.

    Args:
        session: The session it works for.
        group: Its worker group.
        name: Its name, and where its output goes, if that is settled; else it finds a name and opens its log.
        allocation: The allocation it runs in.
    """
    options = [f"--{key}={value}" for key, value in (("name", name), ("allocation", allocation)) if value]
    return [sys.executable, "-m", "maestro_celery_plugin.worker", *options, "--", str(session.path), group]


def main() -> NoReturn:
    """Run a worker of a session."""
    parser = argparse.ArgumentParser(prog="python -m maestro_celery_plugin.worker", description=main.__doc__)
    parser.add_argument("session", type=Path)
    parser.add_argument("group")
    parser.add_argument("--name", default="")
    parser.add_argument("--allocation", default="")
    given = parser.parse_args()
    session = Session(given.session)
    try:
        terms = WorkerTerms.read(session, given.group)
    except StudyError as error:
        sys.exit(f"error: worker on {host_name()}: {error}")
    adopt_orphans()
    number = 0
    for _ in range(_LIVES if given.allocation else 1):
        name = given.name or _take_name(session, given.group, given.allocation)
        number = number or int(name.rpartition("-")[2])
        code = _supervise(
            WorkerArguments(session=session, terms=terms, name=name, allocation=given.allocation, number=number)
        )
        if not _shall_begin_again(session, code):
            break
    # SIGTERM is how a worker is told to leave; one that has no handler for it yet leaves by that, too.
    sys.exit(0 if code == -signal.SIGTERM else code & 0xFF)


def _take_name(session: Session, group: str, allocation: str) -> str:
    """Find a name for this worker, and let its output go to the log of that name."""
    name = session.claim_worker_name(worker_stem(group, allocation).rstrip("-"))
    print(f"worker '{name}' on {host_name()}: its log is '{session.worker_log(name)}'", flush=True)
    log = os.open(session.worker_log(name), os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    return name


def _shall_begin_again(session: Session, code: int) -> bool:
    """Whether another worker shall take the place of one in an allocation that goes on.

    It shall when the worker was killed, or has left because the broker is elsewhere now.
    """
    was_killed = code < 0 and not _told_to_end.is_set()
    _told_to_end.clear()
    return (was_killed or code == MOVED) and not session.stop_requested and session.path.exists()


def _supervise(arguments: WorkerArguments) -> int:
    """Start the Celery worker, wait for its end, and clear up after it; return its exit code."""
    session, name = arguments.session, arguments.name
    os.environ[MARKER] = mark(session, name)
    supervisor = ProcessId.of(os.getpid())
    child = os.fork()
    if child == 0:
        die_with_parent(supervisor.pid)
        from maestro_celery_plugin.worker.celery_worker import run

        run(arguments, supervisor)
    _forward_signals(session, name, child)
    status = _wait(child)
    signal.alarm(0)
    end_descendants()
    end_marked(MARKER, mark(session, name), grace_s=GRACE_S)
    session.remove_heartbeat(name)
    return os.waitstatus_to_exitcode(status)


def _forward_signals(session: Session, name: str, child: int) -> None:
    """Pass SIGTERM on, and kill the child when it has not ended in time."""

    def end(number: int, frame: FrameType | None) -> None:
        _told_to_end.set()
        session.request_worker_stop(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        signal.alarm(_STOP_LIMIT_S)

    def kill(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    # LSF sends SIGUSR2 at the time limit, and SIGINT before SIGTERM (bsub -W, bkill).
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, kill)


def _wait(child: int) -> int:
    """Wait for the child's end, and collect adopted orphans meanwhile; return the child's status."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return status


if __name__ == "__main__":
    main()
