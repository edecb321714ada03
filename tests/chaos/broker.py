"""The broker of a study, and what can be done to its messages and connections."""

from __future__ import annotations

import contextlib
import random

import redis
from amqp.exceptions import AMQPError
from intruder import admin_of
from kombu import Connection
from kombu.exceptions import KombuError
from proxy import Proxy

from maestro_celery_plugin.study.session import Session

__all__ = ["PAUSES_S", "Broker"]

PAUSES_S = (1, 2, 4, 8)


class Broker:
    """The broker of a study.

    Args:
        url: URL of a Redis or RabbitMQ server; None for the private broker.
        choose: Random choices.
    """

    def __init__(self, url: str | None, choose: random.Random) -> None:
        self._url, self._choose = url, choose
        self._proxy = Proxy(url) if url else None

    @property
    def options(self) -> tuple[str, ...]:
        """The options of `maestro run` for this broker, which the study reaches through a proxy."""
        return ("--broker", self._proxy.url) if self._proxy else ()

    @property
    def is_private(self) -> bool:
        return self._url is None

    def close(self) -> None:
        if self._proxy:
            self._proxy.close()

    def flush(self, session: Session) -> None:
        """Delete all messages."""
        with contextlib.suppress(OSError, redis.RedisError):
            if self._is_rabbitmq:
                self._on_queue(session, "queue_purge")
            else:
                self._admin(session).flushall()

    def drop_clients(self, session: Session) -> None:
        """Close all connections; on RabbitMQ, delete the queue under its consumers."""
        with contextlib.suppress(OSError, redis.RedisError):
            if self._is_rabbitmq:
                self._on_queue(session, "queue_delete")
            else:
                self._admin(session).execute_command("CLIENT", "KILL", "SKIPME", "yes")

    def go_away(self) -> None:
        """End all connections to a broker by URL, which cannot be reached for some seconds, and keeps its messages."""
        if self._proxy is not None:
            self._proxy.go_away(self._choose.choice(PAUSES_S))

    def _admin(self, session: Session) -> redis.Redis:
        """Return a client with all rights, which the users of a private broker do not have."""
        if self._url is not None:
            return redis.Redis.from_url(self._url, socket_timeout=3)
        return admin_of(session, socket_timeout=3)

    @property
    def _is_rabbitmq(self) -> bool:
        return (self._url or "").startswith("amqp")

    def _on_queue(self, session: Session, operation: str) -> None:
        # The broker may be down; amqp and kombu raise their own errors.
        errors = (OSError, AMQPError, KombuError)
        with contextlib.suppress(*errors), Connection(self._url, connect_timeout=3) as connection:
            getattr(connection.default_channel, operation)(session.queue("merlin"))
