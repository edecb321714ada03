"""The start of a local worker, which other conductors of the session do not see before its first heartbeat.

session/groups/<group>.start    the last start of a local worker of the group
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import ProcessFields
from maestro_celery_plugin.files import read_text, write_atomically
from maestro_celery_plugin.machine import is_this_machine, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.session import Session

__all__ = ["WorkerStart", "read_start", "write_start"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """The start of a local worker.

    Attributes:
        worker: Name of the worker.
        conductor: (pid, start time) of the conductor that starts it.
        machine: The machine of the conductor (`machine.machine_id`).
    """

    worker: str
    conductor: ProcessFields
    machine: str

    @property
    def is_under_way(self) -> bool:
        """Whether another process of this machine, which lives, has started the worker."""
        is_own = self.conductor[0] == os.getpid()
        return not is_own and is_this_machine(self.machine) and ProcessId(*self.conductor).is_alive


def write_start(session: Session, group: str, worker: str) -> None:
    """Store that this process starts a worker of a group."""
    own = ProcessId.of(os.getpid())
    start = WorkerStart(worker=worker, conductor=(own.pid, own.start), machine=machine_id())
    path = _path(session, group)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, conversion.to_json(start), durable=False)


def read_start(session: Session, group: str) -> WorkerStart | None:
    """Return the last start of a worker of a group; None before the first."""
    try:
        return conversion.from_json(WorkerStart, read_text(_path(session, group)))
    except (FileNotFoundError, ValueError):
        return None


def _path(session: Session, group: str) -> Path:
    return session.path / "groups" / f"{group}.start"
