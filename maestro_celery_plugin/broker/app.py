"""The Celery application of a session; every relevant setting has an explicit value."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable
from typing import Any

from amqp.exceptions import PreconditionFailed
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.loaders.app import AppLoader
from kombu import Exchange, Queue

from maestro_celery_plugin.broker.messages import Signer
from maestro_celery_plugin.broker.priority import MAX_PRIORITY
from maestro_celery_plugin.broker.tls import for_celery
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.study.session import Session

__all__ = ["count_waiting", "declare", "import_transport", "is_redis", "make_app", "queue_for", "queue_sizes"]

TASK_NAME = "maestro_celery.run_range"

SETTINGS: dict[str, Any] = {
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "result_backend": None,
    "task_ignore_result": True,
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    "task_create_missing_queues": True,
    # Otherwise Celery replaces the default exchange of a queue, and binds the queue to an exchange "celery", which all
    # users of a broker share.
    "task_default_exchange": "",
    "task_default_delivery_mode": "transient",
    "task_publish_retry": False,
    "task_send_sent_event": False,
    "task_soft_time_limit": None,
    "task_time_limit": None,
    "worker_prefetch_multiplier": 1,
    # Whoever reaches a shared broker could end the workers with a command.
    "worker_enable_remote_control": False,
    # A user sets `-E` for a monitor. The events of a message cost a worker more time than the message itself.
    "worker_send_task_events": False,
    "worker_hijack_root_logger": True,
    "worker_redirect_stdouts": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_enable_prefetch_count_reduction": False,
    "worker_max_tasks_per_child": None,
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": 5.0,
    "broker_heartbeat": 60,
    "enable_utc": True,
}


# Whoever cannot connect tries again later; kombu would wait for six seconds, and a slot or the conductor with it.
_ONE_TRY = {"max_retries": 0}


class _Loader(AppLoader):  # type: ignore[misc]
    """A loader that reads no configuration module; only the settings of this module apply."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:
        """Return no settings, even if ``CELERY_CONFIG_MODULE`` is set."""
        return {}


class _SessionApp(Celery):  # type: ignore[misc]
    """An application that uses the broker of its session, even if ``CELERY_BROKER_URL`` is set.

    Attributes:
        url: URL of the broker.
        address: The URL in Celery's form; `conf.broker_url` would be that of the environment.
        signer: Signs and checks the messages of the session.
    """

    url: str
    address: str
    signer: Signer

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to the broker of the session."""
        return self._connection(url or self.address, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to the broker of the session."""
        return self._connection(url or self.address, **options)

    def _get_backend(self) -> DisabledBackend:
        """Return the backend that stores no results, without a search for others in all installed packages."""
        return DisabledBackend(app=self)


def import_transport() -> None:
    """Import what a connection to a private broker needs, in advance."""
    importlib.import_module("celery.app.amqp")
    importlib.import_module("kombu.transport.redis")


def make_app(session: Session, socket_timeout_s: float | None = None, *, confirms: bool = False) -> Celery:
    """Create the application of a session, for a sender or a worker.

    Args:
        session: The session.
        socket_timeout_s: Seconds to wait for an answer of the broker; None for no limit.
        confirms: Whether RabbitMQ must confirm each message, so that a sender notices a dead connection.

    Raises:
        BrokerError: the session has no broker.
    """
    broker = session.read_broker()
    if broker is None:
        raise BrokerError(
            f"The session '{session.path}' has no broker: its study has ended, or its conductor has not started one; "
            "the log of the conductor shows why."
        )
    app = _SessionApp("maestro_celery", loader=_Loader, set_as_current=False, autofinalize=False)
    app.url, app.signer = broker.url, Signer(session.secret)
    app.conf.update({**SETTINGS, **broker.celery})
    app.address, tls = for_celery(broker.url)
    app.conf.broker_url = app.address
    app.conf.broker_use_ssl = tls or False
    app.conf.broker_transport_options = {
        **_transport_options(broker.url, socket_timeout_s, confirms),
        **broker.celery.get("broker_transport_options", {}),
    }
    app.finalize()
    return app


def is_redis(url: str) -> bool:
    """Tell whether the broker at a URL is Redis or Valkey."""
    return url.startswith(("redis", "valkey"))


def _transport_options(url: str, socket_timeout_s: float | None, confirms: bool) -> dict[str, Any]:
    if not is_redis(url):
        return {
            **_ONE_TRY,
            **({"read_timeout": socket_timeout_s, "write_timeout": socket_timeout_s} if socket_timeout_s else {}),
            **({"confirm_publish": True} if confirms else {}),
        }
    return {
        **_ONE_TRY,
        "socket_timeout": socket_timeout_s,
        "priority_steps": list(range(MAX_PRIORITY + 1)),
        # kombu would keep each delivered message in keys that all users of the database share, and deliver it again
        # hours later. The ledger, not the broker, decides what runs again.
        "ack_emulation": False,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "retry_on_timeout": True,
    }


def queue_for(session: Session, task_queue: str) -> Queue:
    """Return Celery's queue for a task queue.

    The queue uses the default exchange, which needs no binding. A binding would be lost when Redis loses its data.
    Its messages have priorities (`priority.py`).
    """
    name, broker = session.queue(task_queue), session.read_broker()
    highest = MAX_PRIORITY if broker is None or broker.has_priorities else None  # for RabbitMQ; Redis ignores it
    return Queue(name, Exchange("", "direct"), routing_key=name, max_priority=highest)


def declare(app: Celery, session: Session, task_queues: Iterable[str]) -> None:
    """Declare the queues of a session; RabbitMQ drops a message to a queue that does not exist.

    Raises:
        Exception: the broker does not answer; each transport has its own errors.
    """
    with app.pool.acquire(block=True) as connection:
        # After an error, kombu 5.7 returns a closed connection to its pool, and `channel` does not open it again.
        connection.ensure_connection(**_ONE_TRY)
        for name in task_queues:
            try:
                _declare(connection, queue_for(session, name))
            except PreconditionFailed as refusal:
                if "x-max-priority" in str(refusal) and "invalid arg" in str(refusal):
                    _note_unsorted(session)
                _declare(connection, queue_for(session, name), is_new=True)


def _declare(connection: Any, queue: Queue, *, is_new: bool = False) -> None:
    """Declare a queue; a new one replaces that of an earlier release, and its messages are sent again."""
    with connection.channel() as channel:  # RabbitMQ closes a channel after a refusal
        if is_new:
            channel.queue_delete(queue.name)
        queue(channel).declare()


def _note_unsorted(session: Session) -> None:
    """Store that the broker refuses priorities: RabbitMQ for quorum queues, the default of some virtual hosts."""
    broker = session.read_broker()
    if broker is not None:
        session.write_broker(dataclasses.replace(broker, has_priorities=False))


def count_waiting(app: Celery, queues: Iterable[Queue]) -> int:
    """Return the number of messages in the queues, over a connection of its own.

    Raises:
        Exception: the broker does not answer; each transport has its own errors.
    """
    return sum(queue_sizes(app, [queue.name for queue in queues]))


def queue_sizes(app: Celery, names: Iterable[str]) -> list[int]:
    """Return the number of messages in each of Celery's queues, over a connection of its own.

    Raises:
        Exception: the broker does not answer; each transport has its own errors.
    """
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=app.conf.broker_connection_timeout)
        return [_size(connection, name) for name in names]


def _size(connection: Any, name: str) -> int:
    try:
        with connection.channel() as channel:  # RabbitMQ closes the channel if there is no such queue
            return int(channel.queue_declare(queue=name, passive=True).message_count)
    except connection.channel_errors:
        return 0
