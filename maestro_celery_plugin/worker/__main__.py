"""A worker: a supervisor process, and its child, the Celery worker that runs samples.

    python -m maestro_celery_plugin.worker [--name NAME] [--allocation NAME/NUMBER] SESSION GROUP

The supervisor imports little and waits. When the Celery worker has ended for any reason, the supervisor ends the
samples that still run, so that no sample outlives the worker that has to record its end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.processes import (
    ProcessId,
    adopt_orphans,
    die_with_parent,
    end_descendants,
    end_marked,
    host_name,
)
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import MARKER, claim_name, log_of, mark, worker_stem
from maestro_celery_plugin.worker.arguments import MOVED, WorkerArguments

__all__ = ["main"]

# A worker that receives SIGTERM has this long for SIGTERM and SIGKILL of its samples.
_STOP_LIMIT_S = 8
# Processes that a dead worker has left have received SIGTERM before, or no other process will end them.
GRACE_S = 1.0
# In an allocation, another worker replaces a worker that was killed, up to this number of workers.
_LIVES = 20
# A worker that a user starts may be earlier than the conductor, which stores the configuration of the group.
GROUP_LIMIT_S = 30.0

_told_to_end = threading.Event()


def main() -> NoReturn:
    """Run a worker of a session."""
    parser = argparse.ArgumentParser(prog="python -m maestro_celery_plugin.worker", description=main.__doc__)
    parser.add_argument("session", type=Path)
    parser.add_argument("group")
    parser.add_argument("--name", default="")
    parser.add_argument("--allocation", default="")
    given = parser.parse_args()
    session = Session(given.session)
    clock.wait_until(lambda: session.has_group(given.group), GROUP_LIMIT_S, interval_s=0.2)
    try:
        group = session.read_group(given.group)
    except StudyError as error:
        sys.exit(f"error: worker on {host_name()}: {error}")
    adopt_orphans()
    number = 0
    for _ in range(_LIVES if given.allocation else 1):
        name = given.name or _take_name(session, given.group, given.allocation)
        number = number or int(name.rpartition("-")[2])
        code = _supervise(
            WorkerArguments(session=session, group=group, name=name, allocation=given.allocation, number=number)
        )
        if not _must_restart(session, code):
            break
    # SIGTERM requests the end of a worker, also of a worker that has no handler for it yet.
    sys.exit(0 if code == -signal.SIGTERM else code & 0xFF)


def _take_name(session: Session, group: str, allocation: str) -> str:
    """Claim a name for this worker, and redirect its output to the log of this name."""
    name = claim_name(session, worker_stem(group, allocation).rstrip("-"))
    print(f"worker '{name}' on {host_name()}: its log is '{log_of(session, name)}'", flush=True)
    log = os.open(log_of(session, name), os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    return name


def _must_restart(session: Session, code: int) -> bool:
    """Tell whether another worker must replace this one in its allocation.

    This is so when the worker was killed, or has left because the broker has moved.
    """
    was_killed = code < 0 and not _told_to_end.is_set()
    _told_to_end.clear()
    return (was_killed or code == MOVED) and not session.stop_requested and session.path.exists()


def _supervise(arguments: WorkerArguments) -> int:
    """Start the Celery worker, wait for its end, and end its samples; return its exit code."""
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
    session.heartbeats.remove(name)
    return os.waitstatus_to_exitcode(status)


def _forward_signals(session: Session, name: str, child: int) -> None:
    """Forward SIGTERM to the child, and kill the child if it has not ended in time."""

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
    """Wait for the end of the child, and reap adopted orphans; return the status of the child."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return status


if __name__ == "__main__":
    main()
