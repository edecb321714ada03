"""The dispatcher: signs range tasks and puts them on the session's queues."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from maestro_celery_plugin.broker.app import TASK_NAME, queue_for
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.study.session import Session

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Dispatcher"]


class Dispatcher:
    """Sends range tasks; safe to use from several threads."""

    def __init__(self, session: Session, app: Celery) -> None:
        self._session, self._app, self._signer = session, app, session.signer()

    def send(self, task: RangeTask, task_queue: str) -> None:
        """Send a task once.

        Raises:
            Exception: what the transport raises when the broker is away.
        """
        signature = self._signer.sign(*task.fields)
        self._app.send_task(
            TASK_NAME,
            args=[*task.fields, signature],
            queue=queue_for(self._session, task_queue),
            ignore_result=True,
            retry=False,
        )

    def close(self, queues: Iterable[str], *, delete: bool) -> None:
        """Leave the broker.

        Args:
            queues: Task queues of the session.
            delete: Whether they shall be deleted, as on a broker that others use too.
        """
        with contextlib.suppress(Exception):  # the broker may be gone, which is as good
            if delete:
                with self._app.connection_for_write(connect_timeout=2) as connection:
                    for name in queues:
                        connection.default_channel.queue_delete(self._session.queue(name))
            self._app.close()
            self._app.pool.force_close_all()
