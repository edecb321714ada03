"""The check whether a broker by URL can be reached; a private broker is restarted by the conductor.

It is a hint for users: while the broker is away, samples wait although workers and conductor are alive.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.session import Session

__all__ = ["BrokerCheck"]

_TIMEOUT_S = 1.0
# Some brokers log each connection that ends without a login.
_INTERVAL_S = 10.0
_PORTS = {"amqps": 5671, "amqp": 5672, "pyamqp": 5672}
_REDIS_PORT = 6379


class BrokerCheck:
    """Tries to connect to the broker of a session, at most every ten seconds.

    Args:
        session: The session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._problem, self._next_at = "", float("-inf")

    def problem(self) -> str:
        """Return a sentence if no broker of the session accepts a connection from this machine; else an empty text."""
        if clock.monotonic() >= self._next_at:
            self._problem = self._check()
            self._next_at = clock.monotonic() + _INTERVAL_S
        return self._problem

    def _check(self) -> str:
        try:
            broker = self._session.read_broker()
        except OSError:  # the session of another user, which only its owner can read
            return ""
        if broker is None or broker.supervisor is not None:
            return ""
        places = []
        for url in broker.url.split(";"):  # kombu connects to the first of several brokers that answers
            try:
                place, error = _connect(url)
            except ValueError:  # kombu has understood this URL, and this check does not
                return ""
            if error is None:
                return ""
            places.append(f"at {place} ({error.strerror or error})")
        return (
            f"The broker {' or '.join(places)} does not accept connections from this machine. Until it does, workers "
            "run only what they have received; nothing is lost."
        )


def _connect(url: str) -> tuple[str, OSError | None]:
    """Connect to the broker of a URL, without a login; return its place, and the error if nobody accepts.

    Raises:
        ValueError: the URL has no host or no valid port.
    """
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        place = unquote(parts.path)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_TIMEOUT_S)
            return place, _error_of(lambda: client.connect(place))
    if not parts.hostname:
        raise ValueError(url)
    host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme, _REDIS_PORT)
    return f"{host}:{port}", _error_of(lambda: socket.create_connection((host, port), _TIMEOUT_S).close())


def _error_of(action: Callable[[], None]) -> OSError | None:
    try:
        action()
    except OSError as error:
        return error
    return None
