"""The intake: a worker takes a message only when one of its slots is free for it.

Celery's workers fetch messages ahead. Ahead of a sample that runs for an hour, that would keep samples
from other workers that are idle. Celery's own `worker_disable_prefetch` is for Redis only and looks
again once a second; this step does the same for every broker, and at once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable
from types import MethodType
from typing import Any

from celery import Celery, bootsteps
from celery.worker.request import Request
from celery.worker.strategy import default as default_strategy

__all__ = ["Intake", "RangeRequest", "close", "gated_strategy", "install"]

LOGGER = logging.getLogger(__name__)


class Intake(bootsteps.StartStopStep):  # type: ignore[misc]
    """Bootstep of the consumer that opens and closes the intake of its queues."""

    requires = ("celery.worker.consumer:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        _gate.intake = self
        self._consumer = consumer
        self._pipe: tuple[int, int] | None = None
        self._consuming = True

    def start(self, consumer: Any) -> None:
        """Take charge of the intake, again after each reconnection."""
        self._consuming = True
        if consumer.hub is None:
            return
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        consumer.hub.add_reader(self._pipe[0], self._on_wake)
        qos: Any = getattr(consumer.task_consumer.channel, "qos", None)
        if hasattr(qos, "can_consume"):  # Redis, and whatever else kombu polls
            original: Callable[[], bool] = qos.can_consume
            qos.can_consume = MethodType(lambda _: _gate.has_room and original(), qos)
        else:
            consumer.task_consumer.qos(prefetch_count=1)

    def stop(self, consumer: Any) -> None:
        """Let go of the event loop."""
        if self._pipe is not None:
            with contextlib.suppress(Exception):  # the loop may be gone already
                consumer.hub.remove_reader(self._pipe[0])
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    terminate = stop

    def wake(self) -> None:
        """Let the event loop look at the slots now; may be called from any thread."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # full, which is as good, or closed at the end
                os.write(self._pipe[1], b"!")

    def _on_wake(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._pipe[0], 4096)
        self.adjust()

    def adjust(self) -> None:
        """Begin or end consuming on a broker that pushes messages (RabbitMQ)."""
        consumer: Any = self._consumer.task_consumer
        if consumer is None or hasattr(getattr(consumer.channel, "qos", None), "can_consume"):
            return
        if _gate.has_room and not self._consuming:
            self._consuming = True
            consumer.consume()
        elif not _gate.has_room and self._consuming:
            self._consuming = False
            consumer.cancel()


class _Gate:
    """How many messages this worker process has accepted and not finished."""

    def __init__(self) -> None:
        self.slots = 1
        self.is_closed = False
        self._accepted: set[str] = set()
        self.intake: Intake | None = None

    @property
    def has_room(self) -> bool:
        return not self.is_closed and len(self._accepted) < self.slots

    def accept(self, message_id: str) -> None:
        self._accepted.add(message_id)
        if self.intake is not None:
            self.intake.adjust()

    def finish(self, message_id: str) -> None:
        self._accepted.discard(message_id)
        if self.intake is not None:
            self.intake.wake()


_gate = _Gate()


class RangeRequest(Request):  # type: ignore[misc]
    """A request that tells the intake of its end, and whose acknowledgement may fail.

    Celery ends a worker that acknowledges a message of a connection which was lost meanwhile; here the
    ledger, not the broker, knows what has to run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection_errors = (Exception,)
        # Celery derives a class per task whose methods do not call these (create_request_cls).
        for name in ("on_success", "on_failure"):
            setattr(self, name, self._then_finish(getattr(self, name)))

    def _then_finish(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return callback(*args, **kwargs)
            finally:
                _gate.finish(self.id)

        return call


def gated_strategy(task: Any, app: Celery, consumer: Any, **options: Any) -> Callable[..., None]:
    """Return Celery's message handler, preceded by a look at the slots.

    A message that was on its way when the last slot filled goes back to its queue, for another worker.
    """
    handle = default_strategy(task, app, consumer, **options)

    def handle_if_room(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> None:
        if not _gate.has_room:
            reject(LOGGER, (Exception,), requeue=True)
            return
        _gate.accept(message.headers["id"])
        handle(message, body, ack, reject, callbacks, **more)

    return handle_if_room


def close() -> None:
    """Take no message any more; may be called from any thread, and again."""
    if not _gate.is_closed:
        _gate.is_closed = True
        if _gate.intake is not None:
            _gate.intake.wake()


def install(app: Celery, slots: int) -> None:
    """Let the application's workers take messages only for free slots."""
    _gate.slots = slots
    app.steps["consumer"].add(Intake)
