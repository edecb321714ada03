"""The choice of a broker for a session, and the check whether it answers.

Order: ``--broker`` of `maestro run`, the environment variable, Merlin's ``app.yaml``, the private broker.
If a broker that the user gives by URL does not answer, the plugin raises an error and uses no other broker.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from kombu import Connection
from kombu.utils.url import as_url, safequote, url_to_parts

from maestro_celery_plugin.broker.private import find_server
from maestro_celery_plugin.broker.tls import TLS_KEYS, for_celery, with_tls
from maestro_celery_plugin.errors import BrokerError, BrokerUnavailableError, nearest
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, Session

__all__ = ["ENVIRONMENT_VARIABLE", "PRIVATE", "BrokerChoice", "check", "check_reachable", "choose", "masked"]

# The value of ``--broker`` and of the environment variable for the private broker, whatever Merlin's app.yaml says.
PRIVATE = "private"
CHECK_TIMEOUT_S = 4.0
# The keys of Merlin's broker block. Those without a use here are for Merlin's server, or for the results.
_BLOCK_KEYS = frozenset(
    (
        *("name", "server", "port", "username", "password", "vhost", "db_num", "path", "url", *TLS_KEYS),
        *("socketname", "pass_file", "encryption_key"),
    )
)
# Default ports by scheme; all other schemes have the default port of Redis.
_PORTS = {"amqps": 5671, "amqp": 5672, "pyamqp": 5672}
_REDIS_PORT = 6379
_SCHEMES = ("redis", "rediss", "redis+socket", "valkey", "valkeys", *_PORTS)
# The password of a URL, which may contain any character: it ends at the last "@".
_PASSWORD = re.compile(r"(?<=://)([^:]*):.*@", re.DOTALL)
_PASSWORD_IN_QUERY = re.compile(r"(?<=[?&])(password|passwd)=[^&]*")
# An "@" after the host: a character of the password that is not encoded has ended the host.
_SPLIT_PASSWORD = re.compile(r"://[^/?#]*[/?#].*@", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class BrokerChoice:
    """The broker of a session.

    Attributes:
        url: URL with the password; None for a private broker.
        source: Where the user has set the broker, for messages.
    """

    url: str | None
    source: str


def choose(option: str | None) -> BrokerChoice:
    """Choose the broker.

    Args:
        option: The value of ``--broker``, a URL or ``private``; None without the option.
    """
    for value, source in ((option, "--broker"), (os.environ.get(ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE)):
        if value:
            return BrokerChoice(None if value.lower() == PRIVATE else _for_kombu(value), source)
    configuration = _merlin_configuration()
    if configuration:
        return BrokerChoice(_for_kombu(_merlin_url(configuration)), str(configuration))
    return BrokerChoice(None, "private broker")


def _for_kombu(url: str) -> str:
    """Return a URL with a scheme that kombu knows: ``redis`` for Valkey, which speaks the protocol of Redis."""
    return re.sub(r"^valkey(?=s?://)", "redis", url, flags=re.IGNORECASE)


def _merlin_configuration() -> Path | None:
    """Return the app.yaml that Merlin would use (config/configfile.py:80-110).

    Raises:
        BrokerError: it cannot be looked for.
    """
    home = Path("~/.merlin").expanduser()
    candidates = [Path("app.yaml"), home / "app.yaml"]
    pointer = home / "config_path.txt"
    try:
        if pointer.is_file():
            candidates.insert(1, Path(pointer.read_text().strip()))
        return next((path for path in candidates if path.is_file()), None)
    except (OSError, UnicodeDecodeError) as cause:
        raise BrokerError(
            f"Merlin's app.yaml cannot be looked for: {cause}. Correct this, or set a broker with --broker URL or "
            "--broker private."
        ) from cause


def _merlin_url(path: Path) -> str:
    """Return the broker URL from the broker block of Merlin's app.yaml.

    Raises:
        BrokerError: the file has no broker block, or the block cannot be used.
    """
    try:
        document = yaml.safe_load(path.read_text())
        broker = document["broker"]
        _check_keys(broker.keys(), path)
        return with_tls(_url_of_block(broker), broker, path)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as cause:
        raise BrokerError(
            f"{path}: no usable broker block ({cause!r}); correct it, or set a broker with --broker URL or "
            "--broker private."
        ) from cause


def _check_keys(keys: Iterable[Any], path: Path) -> None:
    for key in keys:
        if key not in _BLOCK_KEYS:
            raise BrokerError(
                f"{path}: broker: unknown key '{key}'; {nearest(str(key), _BLOCK_KEYS)} `--broker private` uses a "
                "private broker instead."
            )


def _url_of_block(broker: dict[str, Any]) -> str:
    if broker.get("url"):
        return str(broker["url"])
    scheme = {"rabbitmq": "amqps"}.get(broker["name"], broker["name"])
    if scheme == "redis+socket":
        return f"redis+socket://{broker['path']}?virtual_host={broker.get('db_num', 0)}"
    return _server_url(scheme, broker)


def _server_url(scheme: str, broker: dict[str, Any]) -> str:
    user = "" if scheme.startswith("redis") else str(broker.get("username") or os.environ.get("USER", ""))
    user = str(broker.get("username") or user)
    password = str(broker.get("password") or "")
    password_file = Path(password).expanduser() if password else None
    if password_file and password_file.is_file():
        password = password_file.read_text().strip()
    port = broker.get("port") or _PORTS.get(scheme, _REDIS_PORT)
    is_redis = scheme.startswith("redis")
    path = str(broker.get("db_num", 0)) if is_redis else safequote(str(broker.get("vhost") or user))
    server = str(broker["server"] or "").strip("[]")
    if not server:
        raise KeyError("server")
    return str(as_url(scheme, server, port, user, password, path))


def masked(url: str) -> str:
    """Return a URL with ``***`` instead of its password.

    kombu's `maybe_sanitize_url` shows a password with a "/", and drops the query.
    """
    return _PASSWORD_IN_QUERY.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", url))


def check(choice: BrokerChoice) -> None:
    """Check within five seconds that the broker can be used.

    Raises:
        BrokerError: the broker does not answer or refuses the password, or no server for a private broker is installed.
    """
    if choice.url is None:
        find_server()
        return
    if _SPLIT_PASSWORD.search(choice.url):
        # The libraries would take a part of the password for the host, and show it in their errors.
        raise BrokerError(
            f"The broker {masked(choice.url)} (from {choice.source}) cannot be used: its URL has an '@' after the "
            "host. In a password or a virtual host, write %2F for '/', %3F for '?', %23 for '#' and %40 for '@'; or "
            "use --broker private."
        )
    try:
        if url_to_parts(choice.url).scheme not in _SCHEMES:
            raise ValueError(f"the URL needs one of the schemes {', '.join(_SCHEMES)}")
        _log_in(choice.url)
    except Exception as cause:  # each transport raises its own errors
        raise BrokerError(
            f"The broker {masked(choice.url)} (from {choice.source}) cannot be used: {_reason(cause)}. "
            "Start it, correct the URL, or use a private broker: --broker private."
        ) from cause


def _log_in(url: str) -> None:
    """Log in to a broker, and log out.

    Raises:
        Exception: the broker does not answer, or refuses the password; each transport has its own errors.
    """
    is_redis = url_to_parts(url).scheme not in _PORTS
    options = {"socket_connect_timeout": CHECK_TIMEOUT_S, "socket_timeout": CHECK_TIMEOUT_S} if is_redis else {}
    address, tls = for_celery(url)
    with Connection(
        address, connect_timeout=CHECK_TIMEOUT_S, transport_options=options, ssl=tls or False
    ) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=CHECK_TIMEOUT_S)
        if is_redis:
            connection.default_channel.client.ping()


def _reason(cause: Exception) -> str:
    return str(cause).strip().rstrip(".") or type(cause).__name__


def check_reachable(session: Session, host: str) -> None:
    """Check that the machine of a worker can reach the broker of the session, and that the broker accepts the password.

    Args:
        session: The session.
        host: Name of the machine, for the message.

    Raises:
        BrokerUnavailableError: the session has no broker yet, or the broker does not answer now.
        BrokerError: the broker refuses the password.
    """
    broker = session.read_broker()
    if broker is None:
        raise BrokerUnavailableError(
            f"The session '{session.path}' has no broker: its study has ended, or its conductor has not started one."
        )
    try:
        _connect(broker.url)
        _log_in(broker.url)
    except Exception as cause:  # each transport raises its own errors
        raise _unreachable(masked(broker.url), host, cause) from cause


def _connect(url: str) -> None:
    """Connect to the host and port of a URL.

    Raises:
        OSError: no server can be reached there.
    """
    parts = url_to_parts(url)
    if parts.hostname:  # otherwise it is a Unix socket
        port = parts.port or _PORTS.get(parts.scheme, _REDIS_PORT)
        socket.create_connection((parts.hostname, port), CHECK_TIMEOUT_S).close()


def _unreachable(shown: str, host: str, cause: Exception) -> BrokerError:
    """Return the error for a broker, whose URL is shown without its password, that a machine cannot use."""
    if _is_refusal(cause):
        return BrokerError(
            f"The broker {shown} refuses the connection from {host}: {_reason(cause)}. Correct its URL: "
            "`maestro-celery resume` has the option --broker."
        )
    if isinstance(cause, OSError):
        return BrokerUnavailableError(
            f"The broker {shown} cannot be reached from {host}: {cause}. Set --broker-host to an address of "
            "the machine of `maestro run` that compute nodes can reach, or --broker to the URL of a broker of your "
            "site (`maestro-celery resume` has both options)."
        )
    return BrokerUnavailableError(f"The broker {shown} does not answer {host}: {_reason(cause)}.")


def _is_refusal(error: BaseException | None) -> bool:
    """Tell whether a broker has answered, and has refused a user, a password or a certificate: this does not pass."""
    # Imported here: their import takes longer than all others of this module, and most processes never need them.
    import amqp
    import redis.exceptions

    refusals = (
        amqp.AccessRefused,
        amqp.NotAllowed,
        redis.exceptions.AuthenticationError,
        redis.exceptions.AuthorizationError,
        redis.exceptions.NoPermissionError,
        ssl.SSLCertVerificationError,
    )
    while error is not None and not isinstance(error, refusals):
        error = error.__cause__ or error.__context__
    return error is not None
