"""The choice of a broker for a session, and the check whether it answers.

Order: ``--broker`` of `maestro run`, the environment variable, the user's configuration, Merlin's ``app.yaml``, the
private broker.
If a broker that the user gives by URL does not answer, the plugin raises an error and uses no other broker.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from kombu import Connection
from kombu.utils.url import url_to_parts

from maestro_celery_plugin.broker.failures import PORTS, REDIS_PORT, failure_of, is_refusal, reason_of
from maestro_celery_plugin.broker.merlin_configuration import merlin_configuration, read_merlin
from maestro_celery_plugin.broker.private import find_server
from maestro_celery_plugin.broker.tls import for_celery, tls_problem
from maestro_celery_plugin.config.user_configuration import configuration_path, read_configuration
from maestro_celery_plugin.errors import BrokerError, BrokerUnavailableError
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, Session

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "PRIVATE",
    "BrokerChoice",
    "check",
    "check_reachable",
    "check_text",
    "choices",
    "choose",
    "masked",
]

# The value of ``--broker``, of the environment variable and of the user's configuration for the private broker.
PRIVATE = "private"
CHECK_TIMEOUT_S = 4.0
_SCHEMES = ("redis", "rediss", "redis+socket", "valkey", "valkeys", *PORTS)
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
        celery: Settings of Celery that belong to it (`celery_settings.py`).
        notes: Sentences about settings that have no effect.
    """

    url: str | None
    source: str
    celery: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def choose(option: str | None) -> BrokerChoice:
    """Choose the broker.

    Args:
        option: The value of ``--broker``, a URL or ``private``; None without the option.

    Raises:
        BrokerError: the broker of Merlin's app.yaml cannot be used.
        ConfigurationError: the user's configuration cannot be used.
    """
    return next(choices(option))


def choices(option: str | None) -> Iterator[BrokerChoice]:
    """Yield the brokers that the user has set, in their order, and the private broker at the end; as `choose`."""
    for value, source in ((option, "--broker"), (os.environ.get(ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE)):
        if value:
            yield _choice(value, source)
    configured = read_configuration().broker
    if configured:
        yield _choice(configured, str(configuration_path()))
    configuration = merlin_configuration()
    if configuration:
        broker = read_merlin(configuration)
        yield BrokerChoice(_for_kombu(broker.url), str(configuration), broker.celery, broker.notes)
    yield BrokerChoice(None, "private broker")


def _choice(value: str, source: str) -> BrokerChoice:
    return BrokerChoice(None if value.lower() == PRIVATE else _for_kombu(value), source)


def _for_kombu(url: str) -> str:
    """Return a URL with a scheme that kombu knows: ``redis`` for Valkey, which speaks the protocol of Redis."""
    return re.sub(r"^valkey(?=s?://)", "redis", url, flags=re.IGNORECASE)


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
    check_text(choice)
    try:
        problem = tls_problem(choice.url)
        if problem:
            raise _unusable(choice, f"{problem}.")
        _log_in(choice.url, choice.celery, tries_queue=True)
    except BrokerError:
        raise
    except Exception as cause:  # each transport raises its own errors
        raise _unusable(choice, failure_of(cause, choice.url)) from cause


def check_text(choice: BrokerChoice) -> None:
    """Check the text of a URL, without its server.

    Raises:
        BrokerError: it can be the URL of no broker.
    """
    if choice.url is None:
        return
    if _SPLIT_PASSWORD.search(choice.url):
        # The libraries would take a part of the password for the host, and show it in their errors.
        raise BrokerError(
            f"The broker {masked(choice.url)} (from {choice.source}) cannot be used: its URL has an '@' after the "
            "host. In a password or a virtual host, write %2F for '/', %3F for '?', %23 for '#' and %40 for '@'; or "
            "use --broker private."
        )
    try:
        scheme = url_to_parts(choice.url).scheme
    except ValueError as cause:
        text = "the host or the port in its URL is invalid; a port is a number up to 65535. Correct the URL."
        raise _unusable(choice, text) from cause
    if scheme not in _SCHEMES:
        close = difflib.get_close_matches(str(scheme), _SCHEMES, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else "."
        raise _unusable(choice, f"the URL needs one of the schemes {', '.join(_SCHEMES)}{hint} Correct the URL.")


def _unusable(choice: BrokerChoice, problem: str) -> BrokerError:
    shown, _, query = masked(choice.url or PRIVATE).partition("?")
    shown = shown if "ssl_" in query else masked(choice.url or PRIVATE)  # without long names of files
    return BrokerError(
        f"The broker {shown} (from {choice.source}) cannot be used: {problem} Or use a private "
        "broker: --broker private."
    )


def _log_in(url: str, celery: Mapping[str, Any], *, tries_queue: bool = False) -> None:
    """Log in to a broker, and log out.

    Args:
        url: URL of the broker.
        celery: Settings of Celery.
        tries_queue: Whether to send a message to a new queue as well.

    Raises:
        Exception: the broker does not answer, or refuses the password; each transport has its own errors.
    """
    is_redis = url_to_parts(url).scheme not in PORTS
    names = ("socket_connect_timeout", "socket_timeout") if is_redis else ("read_timeout", "write_timeout")
    address, tls = for_celery(url)
    with Connection(
        address,
        connect_timeout=CHECK_TIMEOUT_S,
        transport_options=dict.fromkeys(names, CHECK_TIMEOUT_S),
        ssl=tls or False,
        login_method=celery.get("broker_login_method"),
    ) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=CHECK_TIMEOUT_S)
        if is_redis:
            connection.default_channel.client.ping()
        if tries_queue:
            _try_queue(connection, is_redis=is_redis)


def _try_queue(connection: Any, *, is_redis: bool) -> None:
    """Send a message to a new queue and receive it: a user may log in, and have no permission for this.

    Raises:
        Exception: the broker refuses it; each transport has its own errors.
    """
    name, channel = f"mcp-check.{secrets.token_hex(6)}", connection.default_channel
    if is_redis:
        channel.client.lpush(name, "")
        channel.client.rpop(name)
    else:
        channel.queue_declare(name, exclusive=True, durable=False)
        channel.basic_publish(
            channel.prepare_message("", content_type="text/plain", content_encoding="utf-8"),
            exchange="",
            routing_key=name,
        )
        channel.basic_get(name, no_ack=True)
        channel.queue_delete(name)


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
    problem = tls_problem(broker.url)
    if problem:
        raise BrokerError(f"The broker {masked(broker.url)} cannot be used on {host}: {problem}.")
    try:
        _connect(broker.url)
        _log_in(broker.url, broker.celery)
    except Exception as cause:  # each transport raises its own errors
        raise _unreachable(broker.url, host, cause) from cause


def _connect(url: str) -> None:
    """Connect to the host and port of a URL.

    Raises:
        OSError: no server can be reached there.
    """
    parts = url_to_parts(url)
    if parts.hostname:  # otherwise it is a Unix socket
        port = parts.port or PORTS.get(parts.scheme, REDIS_PORT)
        socket.create_connection((parts.hostname, port), CHECK_TIMEOUT_S).close()


def _unreachable(url: str, host: str, cause: Exception) -> BrokerError:
    """Return the error for a broker that a machine cannot use."""
    shown = masked(url)
    if is_refusal(cause):
        return BrokerError(
            f"The broker {shown} refuses the connection from {host}: {failure_of(cause, url)} `maestro-celery resume` "
            "has the option --broker."
        )
    if isinstance(cause, OSError):
        return BrokerUnavailableError(
            f"The broker {shown} cannot be reached from {host}: {cause}. Set --broker-host to an address of "
            "the machine of `maestro run` that compute nodes can reach, or --broker to the URL of a broker of your "
            "site (`maestro-celery resume` has both options)."
        )
    return BrokerUnavailableError(f"The broker {shown} does not answer {host}: {reason_of(cause)}.")
