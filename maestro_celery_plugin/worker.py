"""A worker: a supervisor process, and under it the Celery worker that runs samples.

    python -m maestro_celery_plugin.worker SESSION NAME GROUP IDLE_LIMIT_S QUEUES ARGS

The supervisor imports little and does nothing but wait. When the Celery worker has ended, however it
did, the supervisor ends what is left of its samples, so that no sample outlives the worker that has to
record its end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from maestro_celery_plugin.processes import ProcessId, adopt_orphans, die_with_parent, end_descendants, end_marked
from maestro_celery_plugin.session import Session

__all__ = ["MARKER", "PROCESS_MARKER", "WorkerArguments", "main", "mark"]

# Environment variables by which a dead worker's samples are found.
MARKER = "MAESTRO_CELERY_WORKER"
PROCESS_MARKER = "MAESTRO_CELERY_PROCESS"


def mark(session: Session, name: str) -> str:
    """Return the value of a marker: names of workers are unique in their session only."""
    return f"{session.path}:{name}"


# A worker that was told to end gets this long for its samples' SIGTERM and SIGKILL.
_STOP_LIMIT_S = 8
# What is left of a dead worker's samples has had its SIGTERM, or is nobody's any more.
GRACE_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """What a worker is started with.

    Attributes:
        session: The session's directory.
        name: The worker's name, unique in the session.
        group: Its worker group.
        idle_limit_s: Seconds without work after which it leaves when nobody conducts the study.
        queues: Task queues it serves.
        args: Options of `celery worker`.
    """

    session: Path
    name: str
    group: str
    idle_limit_s: float
    queues: tuple[str, ...]
    args: str

    def command(self) -> list[str]:
        """Return the command line that starts the worker."""
        values = [str(self.session), self.name, self.group, str(self.idle_limit_s), json.dumps(self.queues), self.args]
        return [sys.executable, "-m", "maestro_celery_plugin.worker", "--", *values]

    @classmethod
    def from_command_line(cls) -> WorkerArguments:
        """Read the arguments of this process."""
        parser = argparse.ArgumentParser(description="Run a worker of a session.")
        for name in ("session", "name", "group", "idle_limit_s", "queues", "args"):
            parser.add_argument(name)
        given = parser.parse_args()
        return cls(
            session=Path(given.session),
            name=given.name,
            group=given.group,
            idle_limit_s=float(given.idle_limit_s),
            queues=tuple(json.loads(given.queues)),
            args=given.args,
        )


def main() -> NoReturn:
    """Start the Celery worker, wait for its end, and clear up after it."""
    arguments = WorkerArguments.from_command_line()
    session = Session(arguments.session)
    os.environ[MARKER] = mark(session, arguments.name)
    supervisor = ProcessId.of(os.getpid())
    adopt_orphans()
    child = os.fork()
    if child == 0:
        die_with_parent()
        from maestro_celery_plugin.celery_worker import run

        run(arguments, supervisor)
    _forward_signals(session, arguments.name, child)
    status = _wait(child)
    end_descendants()
    end_marked(MARKER, mark(session, arguments.name), grace_s=GRACE_S)
    session.remove_heartbeat(arguments.name)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _forward_signals(session: Session, name: str, child: int) -> None:
    """Pass SIGTERM on, and kill the child when it has not ended in time."""

    def end(number: int, frame: FrameType | None) -> None:
        session.request_worker_stop(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        signal.alarm(_STOP_LIMIT_S)

    def kill(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGALRM, kill)


def _wait(child: int) -> int:
    """Wait for the child's end, and collect adopted orphans meanwhile; return the child's status."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return status


if __name__ == "__main__":
    main()
