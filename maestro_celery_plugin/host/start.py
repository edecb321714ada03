"""The start of a session's host, by the conductor of one of its studies or by `maestro-celery session resume`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from maestro_celery_plugin import clock, python_processes
from maestro_celery_plugin.broker.private import START_TIMEOUT_S
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import ProcessFields
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.files import is_locked, read_text, tail, write_atomically
from maestro_celery_plugin.machine import is_this_machine, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.python_processes import PythonProcess
from maestro_celery_plugin.study.session import Session

__all__ = ["MODULE", "begin", "has_host", "host_of", "log_of", "start_broker", "write_host"]

MODULE = "maestro_celery_plugin.host"
# The hosts that have begun and for which nobody has waited yet, by the path of their session.
_BEGUN: dict[Path, PythonProcess] = {}


def begin(session: Session, *, with_broker: bool = False) -> PythonProcess | None:
    """Begin to start the host of a session.

    Args:
        session: The session.
        with_broker: Whether the session needs a private broker, for which `start_broker` waits.

    Returns:
        The process, also when it has begun before; None if the host runs already.

    Raises:
        OSError: the process cannot be started.
    """
    if with_broker:
        session.want_private_broker()
    if host_of(session):
        return None
    begun = _BEGUN.get(session.path)
    if begun is None or begun.poll() is not None:
        with log_of(session).open("ab") as output:
            begun = python_processes.start(MODULE, [str(session.path)], session.path, output)
        _BEGUN[session.path] = begun
    return begun


def start_broker(session: Session) -> None:
    """Start the private broker of a session, unless it already runs, and wait until it answers.

    Raises:
        BrokerError: the broker did not start.
    """
    process = begin(session, with_broker=True)
    _BEGUN.pop(session.path, None)

    def has_broker() -> bool:
        broker, host = session.read_broker(), host_of(session)
        return broker is not None and host is not None and broker.supervisor == (host.pid, host.start)

    def is_over() -> bool:
        return has_broker() or (host_of(session) is None if process is None else process.poll() is not None)

    log = log_of(session)
    if not clock.wait_until(is_over, START_TIMEOUT_S):
        if process is not None:
            process.kill()
        raise BrokerError(
            f"The private broker has not started within {START_TIMEOUT_S:.0f} s: this machine is busy, or its file "
            f"system is slow. '{log}' ends with:\n{tail(log)}"
        )
    if not has_broker():
        raise BrokerError(f"The private broker did not start; '{log}' ends with:\n{tail(log)}")


def log_of(session: Session) -> Path:
    """Return the log of the host, with the messages of the broker's server."""
    return session.path / "host.log"


def write_host(session: Session, host: ProcessId) -> None:
    """Store which process is the host."""
    text = json.dumps({"process": [host.pid, host.start], "machine": machine_id()})
    write_atomically(session.path / "host.json", text, mode=0o600, durable=False)


@dataclasses.dataclass(frozen=True)
class _StoredHost:
    process: ProcessFields
    machine: str


def _read_host(session: Session) -> tuple[ProcessId, str] | None:
    try:
        stored = conversion.from_json(_StoredHost, read_text(session.path / "host.json"))
    except (FileNotFoundError, ValueError):
        return None
    return ProcessId(*stored.process), stored.machine


def host_of(session: Session) -> ProcessId | None:
    """Return the host of a session on this machine; None if it is dead, or on another machine."""
    found = _read_host(session)
    if found is None or not is_this_machine(found[1]):
        return None
    return found[0] if found[0].is_alive else None


def has_host(session: Session) -> bool:
    """Tell whether a session has a host, on any machine: it holds a lock."""
    return is_locked(session.path / "host.lock")
