"""The sender: it signs range tasks and sends them to the queues of a session."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from celery import Celery
from kombu import Queue

from maestro_celery_plugin.broker.app import TASK_NAME, is_redis, queue_for
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.priority import priority_of
from maestro_celery_plugin.config.priority import MEDIUM_LEVEL
from maestro_celery_plugin.study.session import Session

__all__ = ["Sender"]

LOGGER = logging.getLogger(__name__)


class Sender:
    """Sends range tasks; several threads may use it.

    Args:
        session: The session.
        app: The Celery application of the session.
    """

    def __init__(self, session: Session, app: Celery) -> None:
        self._session, self._app = session, app
        self._on_redis = is_redis(app.url)
        self._queues: dict[str, Queue] = {}

    def send(self, task: RangeTask, task_queue: str, level: int = MEDIUM_LEVEL) -> None:
        """Send a task, without a retry.

        Args:
            task: The task.
            task_queue: Its task queue.
            level: The level of its step; new samples of a higher level are received first.

        Raises:
            Exception: the transport has failed; each transport has its own errors.
        """
        with self._app.producer_pool.acquire(block=True) as producer:
            try:
                self._app.send_task(
                    TASK_NAME,
                    args=self._app.signer.encode(task),
                    queue=self._queue(task_queue),
                    priority=priority_of(task, level, on_redis=self._on_redis),
                    ignore_result=True,
                    retry=False,
                    argsrepr="",  # otherwise Celery describes the arguments in the envelope
                    kwargsrepr="",
                    producer=producer,
                )
            except Exception:
                # After a time-out, amqp would use the dead connection again.
                producer.connection.collect()
                raise

    def _queue(self, task_queue: str) -> Queue:
        """Return Celery's queue for a task queue, without a look at the files of the session for each message."""
        if task_queue not in self._queues:
            self._queues[task_queue] = queue_for(self._session, task_queue)
        return self._queues[task_queue]

    def close(self, queues: Iterable[str], *, delete: bool) -> None:
        """Close the connections to the broker.

        Args:
            queues: Task queues of the session.
            delete: Whether to delete the queues first, for example on a broker that other users share.
        """
        try:
            if delete:
                with self._app.connection_for_write(connect_timeout=2) as connection:
                    channel = connection.default_channel
                    # kombu deletes a queue in Redis only if it has a binding; a list without messages does not exist.
                    delete_queue = channel.queue_purge if self._on_redis else channel.queue_delete
                    for name in queues:
                        delete_queue(self._session.queue(name))
            self._app.close()
            self._app.pool.force_close_all()
        except Exception as cause:  # each transport has its own errors; a private broker may not exist any more
            rest = "; queues of this session may remain on the broker" if delete else ""
            LOGGER.info("The connection to the broker was not closed%s: %s", rest, cause)
