"""Prefetch control: a worker takes a message only when one of its slots is free.

A Celery worker prefetches messages. While a sample runs for an hour, a prefetched message would wait although other
workers are idle. Celery's option `worker_disable_prefetch` supports only Redis and polls once per second; this bootstep
supports every broker and reacts immediately.
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

__all__ = ["PrefetchStep", "RangeRequest", "close", "gated_strategy", "hold", "install"]

LOGGER = logging.getLogger(__name__)


class PrefetchStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Bootstep that pauses the consumer while no slot is free."""

    requires = ("celery.worker.consumer:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        _gate.step = self
        self._consumer = consumer
        self._pipe: tuple[int, int] | None = None
        self._consuming = True

    def start(self, consumer: Any) -> None:
        """Control the consumer; Celery calls this method again after each reconnection."""
        self._consuming = True
        if consumer.hub is None:
            return
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        consumer.hub.add_reader(self._pipe[0], self._on_wake)
        qos: Any = getattr(consumer.task_consumer.channel, "qos", None)
        if hasattr(qos, "can_consume"):  # Redis, and all other transports that kombu polls
            original: Callable[[], bool] = qos.can_consume
            qos.can_consume = MethodType(lambda _: _gate.has_free_slot and original(), qos)
        else:
            consumer.task_consumer.qos(prefetch_count=1)

    def stop(self, consumer: Any) -> None:
        """Detach from the event loop."""
        if self._pipe is not None:
            consumer.hub.remove_reader(self._pipe[0])  # kombu ignores a loop that is closed (hub.py, _unregister)
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    terminate = stop

    def wake(self) -> None:
        """Make the event loop check for free slots now; any thread may call this method."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # the pipe is full, so that the loop wakes anyway, or it is closed
                os.write(self._pipe[1], b"!")

    def _on_wake(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._pipe[0], 4096)
        self.adjust()

    def adjust(self) -> None:
        """Start or stop consuming on a broker that pushes messages (RabbitMQ)."""
        consumer: Any = self._consumer.task_consumer
        if consumer is None or hasattr(getattr(consumer.channel, "qos", None), "can_consume"):
            return
        if _gate.has_free_slot and not self._consuming:
            self._consuming = True
            consumer.consume()
        elif not _gate.has_free_slot and self._consuming:
            self._consuming = False
            consumer.cancel()


class _Gate:
    """Counts the messages that this worker process has accepted and not finished."""

    def __init__(self) -> None:
        self.slots = 1
        self.is_closed = self.is_held = False
        self._accepted: set[str] = set()
        self.step: PrefetchStep | None = None

    @property
    def has_free_slot(self) -> bool:
        return not (self.is_closed or self.is_held) and len(self._accepted) < self.slots

    def accept(self, message_id: str) -> None:
        self._accepted.add(message_id)
        if self.step is not None:
            self.step.adjust()

    def finish(self, message_id: str) -> None:
        self._accepted.discard(message_id)
        if self.step is not None:
            self.step.wake()


_gate = _Gate()


class RangeRequest(Request):  # type: ignore[misc]
    """A request that frees a slot at its end, and whose acknowledgement may fail.

    Celery ends a worker that acknowledges a message of a lost connection. Here, a failed acknowledgement does not
    matter, because the ledger, not the broker, records which samples must run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection_errors = (Exception,)
        # Celery derives a class for each task, and that class does not call methods of this class (create_request_cls).
        for name in ("on_success", "on_failure"):
            setattr(self, name, self._with_finish(getattr(self, name)))

    def _with_finish(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return callback(*args, **kwargs)
            finally:
                _gate.finish(self.id)

        return call


def gated_strategy(task: Any, app: Celery, consumer: Any, **options: Any) -> Callable[..., None]:
    """Return a message handler that calls Celery's message handler only if a slot is free.

    A message that arrives after the last slot was taken goes back to its queue for another worker.
    """
    handle = default_strategy(task, app, consumer, **options)

    def handle_if_slot_free(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> None:
        if not _gate.has_free_slot:
            reject(LOGGER, (Exception,), requeue=True)
            return
        _gate.accept(message.headers["id"])
        handle(message, body, ack, reject, callbacks, **more)

    return handle_if_slot_free


def close() -> None:
    """Stop taking messages; any thread may call this function, and may repeat the call."""
    if not _gate.is_closed:
        _gate.is_closed = True
        if _gate.step is not None:
            _gate.step.wake()


def hold(*, held: bool) -> None:
    """Pause or continue taking messages; any thread may call this function, and may repeat the call."""
    if _gate.is_held != held:
        _gate.is_held = held
        if _gate.step is not None:
            _gate.step.wake()


def install(app: Celery, slots: int) -> None:
    """Let the workers of an application take messages only for free slots."""
    _gate.slots = slots
    app.steps["consumer"].add(PrefetchStep)
