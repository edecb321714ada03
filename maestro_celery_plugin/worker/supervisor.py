"""The supervisor of a worker, and its child, the Celery worker that runs samples.

    python -m maestro_celery_plugin.worker [--name NAME] [--allocation NAME/NUMBER] SESSION GROUP

The supervisor does not import Celery; it waits. When the Celery worker has ended for any reason, the supervisor ends
the samples that still run, so that no sample outlives the worker that records its end.
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
    forget_variable,
    host_name,
)
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, Session
from maestro_celery_plugin.study.worker_identity import EXIT_REPLACE, MARKER, claim_name, log_of, mark, worker_stem
from maestro_celery_plugin.worker.arguments import WorkerArguments

__all__ = ["main"]

# Time in which a worker that has received SIGTERM must end its samples, first with SIGTERM, then with SIGKILL.
_STOP_LIMIT_S = 8
# Time between SIGTERM and SIGKILL for processes that a dead worker has left behind. Either they have received SIGTERM
# before, or no other process will end them.
KILL_GRACE_S = 1.0
# A new worker replaces a worker that was killed or has lost its broker, up to this number of workers in sequence.
_MAX_WORKERS = 20
# A user may start a worker before the conductor has stored the configuration of the group.
GROUP_LIMIT_S = 30.0

_end_requested = threading.Event()


def main() -> NoReturn:
    """Run a worker of a session."""
    parser = argparse.ArgumentParser(prog="python -m maestro_celery_plugin.worker", description=main.__doc__)
    parser.add_argument("session", type=Path)
    parser.add_argument("group")
    parser.add_argument("--name", default="")
    parser.add_argument("--allocation", default="")
    options = parser.parse_args()
    session = Session(options.session)
    forget_variable(ENVIRONMENT_VARIABLE)  # a batch system may pass it on from the environment of the submission
    if os.path.exists(session.path):  # noqa: PTH110 (Path.exists raises an error without permission)
        clock.wait_until(lambda: session.has_group(options.group), GROUP_LIMIT_S, interval_s=0.2)
    try:
        group = session.read_group(options.group)
    except StudyError as error:
        sys.exit(f"error: worker on {host_name()}: {error}")
    adopt_orphans()
    number = 0
    # The conductor, which has given the worker its name, starts the next worker itself, with another name.
    for _ in range(1 if options.name else _MAX_WORKERS):
        name = options.name or _claim_name_and_log(session, options.group, options.allocation)
        number = number or int(name.rpartition("-")[2])
        code = _supervise(
            WorkerArguments(session=session, group=group, name=name, allocation=options.allocation, number=number)
        )
        if not _must_restart(session, code, in_allocation=bool(options.allocation)):
            break
    # SIGTERM requests the end. If it kills a worker that has no handler for it yet, this is not an error.
    sys.exit(0 if code == -signal.SIGTERM else code & 0xFF)


def _claim_name_and_log(session: Session, group: str, allocation: str) -> str:
    """Claim a name for this worker, and redirect its output to the log of this name."""
    name = claim_name(session, worker_stem(group, allocation).rstrip("-"))
    print(f"worker '{name}' on {host_name()}: its log is '{log_of(session, name)}'", flush=True)
    log = os.open(log_of(session, name), os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    return name


def _must_restart(session: Session, code: int, *, in_allocation: bool) -> bool:
    """Tell whether a new worker must replace this worker.

    An allocation needs a new worker if this worker was killed. A worker that has lost its broker is always replaced.
    """
    was_killed = code < 0 and in_allocation and not _end_requested.is_set()
    _end_requested.clear()
    return (was_killed or code == EXIT_REPLACE) and not session.stop_requested and session.path.exists()


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
    end_marked(MARKER, mark(session, name), grace_s=KILL_GRACE_S)
    session.heartbeats.remove(name)
    return os.waitstatus_to_exitcode(status)


def _forward_signals(session: Session, name: str, child: int) -> None:
    """Send SIGTERM to the child when this process must end, and kill the child if it does not end in time."""

    def end(number: int, frame: FrameType | None) -> None:
        _end_requested.set()
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
