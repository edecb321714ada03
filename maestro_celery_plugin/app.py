"""The Celery application of a session, with every setting that matters set explicitly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.session import Session

__all__ = ["make_app", "queue_for"]

TASK_NAME = "maestro_celery.run_range"

# Redis gives a message to another worker when it was not acknowledged for this long. Ours are
# acknowledged as soon as a slot takes them; the ledger, not the broker, knows what has to run again.
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
    "worker_pool": "threads",
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


def make_app(session: Session) -> Celery:
    """Make the application that sends to, or works for, a session.

    Raises:
        BrokerError: the session has no broker.
    """
    broker = session.read_broker()
    if broker is None:
        raise BrokerError(f"The session '{session.path}' has no broker; its study has ended.")
    app = Celery("maestro_celery", set_as_current=False, autofinalize=False)
    app.conf.update(SETTINGS)
    app.conf.broker_url = broker["url"]
    app.conf.broker_transport_options = _transport_options(broker)
    app.finalize()
    return app


def _transport_options(broker: Mapping[str, Any]) -> dict[str, Any]:
    if not broker["url"].startswith(("redis", "valkey")):
        return {}
    return {
        "visibility_timeout": _VISIBILITY_TIMEOUT_S,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "retry_on_timeout": True,
    }


def queue_for(session: Session, task_queue: str) -> Queue:
    """Return Celery's queue for a task queue.

    It hangs on the default exchange, so that a message finds it without a binding, which a wiped
    Redis would have lost.
    """
    return Queue(session.queue(task_queue), Exchange("", "direct"), routing_key=session.queue(task_queue))


def declare(app: Celery, queues: Iterable[Queue]) -> None:
    """Make sure that the queues exist; a message to a queue that does not is dropped by RabbitMQ."""
    with app.pool.acquire(block=True) as connection:
        for queue in queues:
            queue(connection.default_channel).declare()
