"""The Celery application of a session; every relevant setting has an explicit value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader
from kombu import Exchange, Queue

from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.study.session import Session

__all__ = ["make_app", "queue_for"]

TASK_NAME = "maestro_celery.run_range"

# Redis delivers a message again if no worker has acknowledged it for this long. A worker acknowledges a message as soon
# as a slot takes it; the ledger, not the broker, decides what runs again.
_VISIBILITY_TIMEOUT_S = 7 * 24 * 3600

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
    "task_default_delivery_mode": "transient",
    "task_publish_retry": False,
    "task_send_sent_event": False,
    "task_soft_time_limit": None,
    "task_time_limit": None,
    "worker_prefetch_multiplier": 1,
    "worker_send_task_events": True,
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


class _Loader(AppLoader):  # type: ignore[misc]
    """A loader that reads no configuration module; only the settings of this module apply."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:
        """Return no settings, even if ``CELERY_CONFIG_MODULE`` is set."""
        return {}


class _SessionApp(Celery):  # type: ignore[misc]
    """An application that uses the broker of its session, even if ``CELERY_BROKER_URL`` is set."""

    url: str

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to the broker of the session."""
        return self._connection(url or self.url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to the broker of the session."""
        return self._connection(url or self.url, **options)


def make_app(session: Session, socket_timeout_s: float | None = None) -> Celery:
    """Create the application of a session, for a sender or a worker.

    Args:
        session: The session.
        socket_timeout_s: Seconds to wait for an answer of the broker; None for no limit.

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
    app.url = broker.url
    app.conf.update(SETTINGS)
    app.conf.broker_url = broker.url
    app.conf.broker_transport_options = _transport_options(broker.url, socket_timeout_s)
    app.finalize()
    return app


def _transport_options(url: str, socket_timeout_s: float | None) -> dict[str, Any]:
    if not url.startswith(("redis", "valkey")):
        return {"read_timeout": socket_timeout_s, "write_timeout": socket_timeout_s} if socket_timeout_s else {}
    return {
        "socket_timeout": socket_timeout_s,
        "visibility_timeout": _VISIBILITY_TIMEOUT_S,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "retry_on_timeout": True,
    }


def queue_for(session: Session, task_queue: str) -> Queue:
    """Return Celery's queue for a task queue.

    The queue uses the default exchange, which needs no binding. A binding would be lost when Redis loses its data.
    """
    return Queue(session.queue(task_queue), Exchange("", "direct"), routing_key=session.queue(task_queue))


def declare(app: Celery, queues: Iterable[Queue]) -> None:
    """Declare the queues; RabbitMQ drops a message to a queue that does not exist."""
    with app.pool.acquire(block=True) as connection:
        for queue in queues:
            queue(connection.default_channel).declare()
