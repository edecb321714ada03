"""The identity of a worker: its name, its log, its mark in the environment of samples, and its command line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from maestro_celery_plugin.files import tail
from maestro_celery_plugin.python_processes import command_line
from maestro_celery_plugin.study.session import Session

__all__ = [
    "EXIT_NO_BROKER",
    "EXIT_REPLACE",
    "MARKER",
    "PROCESS_MARKER",
    "WORKER_MODULE",
    "claim_name",
    "claimed_names",
    "has_stem",
    "is_pool_process",
    "last_output",
    "log_of",
    "mark",
    "node_of",
    "start_line",
    "stem_of",
    "worker_arguments",
    "worker_command",
    "worker_of",
    "worker_stem",
]

# The module of a worker, which its command line contains.
WORKER_MODULE = "maestro_celery_plugin.worker"
# Environment variables that identify the samples of a dead worker, and of a dead process of a worker's pool.
MARKER = "MAESTRO_CELERY_WORKER"
PROCESS_MARKER = "MAESTRO_CELERY_PROCESS"
# Exit code of a worker that a new worker must replace, because it has lost its broker (sysexits.h, EX_TEMPFAIL).
EXIT_REPLACE = 75
# Exit code of a worker that has waited for its broker and has not reached it (sysexits.h, EX_UNAVAILABLE).
EXIT_NO_BROKER = 69
# The part of a log that `node_of` reads.
_HEAD_BYTES = 1 << 16


def stem_of(group: str) -> str:
    """Return a group's name in the form for the names of its workers, which are also file names."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", group)


def worker_stem(group: str, allocation: str) -> str:
    """Return the beginning of the names of a group's workers in an allocation: ``sim-2-`` in ``sim/2``."""
    return "-".join((stem_of(group), *allocation.split("/")[1:], ""))


def has_stem(writer: str, stem: str) -> bool:
    """Tell whether the name of a worker, or of a process of its pool, has a stem.

    ``sim-2-1`` and ``sim-2-1.99`` have the stem ``sim-2-``. ``sim-2-1-1`` does not: it is a worker of the group
    `sim-2` in its first allocation, not of `sim` in its second.
    """
    worker = worker_of(writer)
    rest = worker.removeprefix(stem)
    return rest != worker and rest.isdigit()


def worker_of(name: str) -> str:
    """Return the worker of a process of a pool, ``sim-1`` for ``sim-1.99``; the name of a worker stays as it is."""
    return name.partition(".")[0]


def is_pool_process(name: str) -> bool:
    """Tell whether a name is that of a process of a worker's pool, such as ``sim-1.99``."""
    return "." in name


def mark(session: Session, name: str) -> str:
    """Return the value of a marker; names of workers are unique in one session only."""
    return f"{session.path}:{name}"


def log_of(session: Session, name: str) -> Path:
    """Return the log of a worker, which is outside of the session's private directory."""
    return session.path.parent / "workers" / f"{name}.log"


def start_line(name: str, node: str, slots: int, queues: Sequence[str]) -> str:
    """Return the line in the log of a worker with which the worker starts; `node_of` reads it."""
    return f"worker '{name}' on {node}: {slots} slots for the task queues {', '.join(queues)}"


def node_of(session: Session, name: str) -> str:
    """Return the machine on which a worker has last started, from its log; empty if it is not known.

    The heartbeat of a worker has it as well, but only as long as the worker lives.
    """
    start = re.compile(rf"^worker '{re.escape(name)}' on (\S+): \d+ slots ", re.MULTILINE)
    try:
        with log_of(session, name).open("rb") as log:
            found = start.findall(log.read(_HEAD_BYTES).decode(errors="replace"))
    except OSError:
        return ""
    return str(found[-1]) if found else ""


def last_output(session: Session, stems: tuple[str, ...]) -> str:
    """Return the end of the log of a worker whose name begins with one of `stems`; empty without such a log."""
    logs = sorted(log for log in log_of(session, "any").parent.glob("*.log") if log.name.startswith(stems))
    return next(filter(None, map(tail, logs)), "")


def claim_name(session: Session, stem: str, first: int = 1) -> str:
    """Return a name that no worker of the session has used yet, and create its log.

    The process that creates the log owns the name (open(2), O_EXCL), even if nodes claim names at the same time.

    Args:
        session: The session of the worker.
        stem: The beginning of the name.
        first: The number to try first.
    """
    log_of(session, stem).parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(first):
        name = f"{stem}-{number}"
        try:
            log_of(session, name).touch(exist_ok=False)
        except FileExistsError:
            continue
        session.claimed_names.append(name)
        return name
    raise AssertionError("the numbers do not end")


def claimed_names(session: Session) -> frozenset[str]:
    """Return the names of all workers that have started so far, or are about to start."""
    return frozenset(log.stem for log in log_of(session, "any").parent.glob("*.log"))


def worker_command(session: Session, group: str, *, allocation: str = "") -> list[str]:
    """Return the command line that starts a worker with the Python interpreter and the packages of this process.

    The worker claims its name itself.

    Args:
        session: The session of the worker.
        group: The worker group.
        allocation: The allocation of the worker.
    """
    return command_line(WORKER_MODULE, worker_arguments(session, group, allocation=allocation))


def worker_arguments(session: Session, group: str, *, name: str = "", allocation: str = "") -> list[str]:
    """Return the command-line arguments of a worker.

    Args:
        session: The session of the worker.
        group: The worker group.
        name: Name of the worker, whose log the caller has opened; empty for a worker that claims its name itself.
        allocation: The allocation of the worker.
    """
    options = [f"--{key}={value}" for key, value in (("name", name), ("allocation", allocation)) if value]
    return [*options, "--", str(session.path), group]
