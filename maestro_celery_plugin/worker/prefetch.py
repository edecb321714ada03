"""The prefetch of a worker: it takes a message only when it is verified and one of its slots is free.

A Celery worker prefetches messages. While a sample runs for an hour, a prefetched message would wait although other
workers are idle. Celery's option `worker_disable_prefetch` supports only Redis and polls once per second; this bootstep
supports every broker and reacts immediately.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.message import Message

from maestro_celery_plugin.broker.app import TASK_NAME
from maestro_celery_plugin.broker.messages import RangeTask, arguments_of
from maestro_celery_plugin.broker.untrusted import MAX_BYTES, Refusal, protect

__all__ = ["Gate", "PrefetchStep", "RangeConsumer", "RangeRequest", "gate", "install"]

LOGGER = logging.getLogger(__name__)


class PrefetchStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Bootstep that pauses the consumer while no slot is free."""

    requires = ("celery.worker.consumer:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        gate.step = self
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
            qos.can_consume = MethodType(lambda _: gate.has_free_slot and original(), qos)
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
        if gate.has_free_slot and not self._consuming:
            self._consuming = True
            consumer.consume()
        elif not gate.has_free_slot and self._consuming:
            self._consuming = False
            consumer.cancel()


class Gate:
    """Counts the messages that this worker process has accepted and not finished.

    Attributes:
        slots: How many messages may be accepted at the same time.
        is_closed: Whether no further message is accepted.
        is_held: Whether no message is accepted for now.
        received: Number of messages that have arrived, refused ones included.
        refused: Number of refused messages.
        step: The bootstep that pauses the consumer.
    """

    def __init__(self) -> None:
        self.slots = 1
        self.is_closed = self.is_held = False
        self.received = 0
        self.refused: Counter[Refusal] = Counter()
        self.step: PrefetchStep | None = None
        self._accepted: set[str] = set()

    @property
    def has_free_slot(self) -> bool:
        """Whether a further message may be accepted."""
        return not (self.is_closed or self.is_held) and len(self._accepted) < self.slots

    def accept(self, message_id: str) -> None:
        """Take a slot for a verified message."""
        self._accepted.add(message_id)
        if self.step is not None:
            self.step.adjust()

    def finish(self, message_id: str) -> None:
        """Free the slot of a message; any thread may call this method."""
        self._accepted.discard(message_id)
        if self.step is not None:
            self.step.wake()

    def refuse(self, refusal: Refusal) -> None:
        """Count a refused message; log the first of each kind, because anyone can send thousands."""
        if not self.refused[refusal]:
            LOGGER.error("Refused a message that %s. Further messages of this kind are only counted.", refusal.value)
        self.refused[refusal] += 1
        self.received += 1

    def hold(self, *, held: bool) -> None:
        """Pause or continue taking messages; any thread may call this method, and may repeat the call."""
        if self.is_held != held:
            self.is_held = held
            if self.step is not None:
                self.step.wake()

    def close(self) -> None:
        """Stop taking messages; any thread may call this method, and may repeat the call."""
        if not self.is_closed:
            self.is_closed = True
            if self.step is not None:
                self.step.wake()


gate = Gate()


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
                gate.finish(self.id)

        return call


class RangeConsumer(Consumer):  # type: ignore[misc]
    """A consumer that passes only verified messages on to Celery, and only for free slots.

    What Celery executes is made of the verified values alone. So no header of a message has an effect: no delay, no
    expiry, no time limit, no callback.
    """

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """Return the function that Celery calls for each message."""
        handle = super().create_task_handler(*args, **options)

        def verify_and_handle(message: Any) -> None:
            verified = self._verify(message)
            if isinstance(verified, Refusal):
                gate.refuse(verified)
                message.reject_log_error(LOGGER, self.connection_errors)
            elif not gate.has_free_slot:
                # It has arrived after the last slot was taken; another worker may have a free slot.
                message.reject_log_error(LOGGER, self.connection_errors, requeue=True)
            else:
                gate.received += 1
                _accept_and_handle(handle, _message_of(message, self.app.signer.encode(verified)))

        return verify_and_handle

    def _verify(self, message: Any) -> RangeTask | Refusal:
        body = message.body
        arguments = arguments_of(body) if isinstance(body, (bytes, str)) and len(body) <= MAX_BYTES else None
        if arguments is None:
            return Refusal.UNREADABLE
        return self.app.signer.decode(arguments) or Refusal.FOREIGN

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Drop a message that kombu cannot decode; Celery would log all of it."""
        gate.refuse(Refusal.UNREADABLE)
        message.reject_log_error(LOGGER, self.connection_errors)


def _message_of(received: Any, arguments: list[str | int]) -> Message:
    """Return a message with these arguments; its acknowledgement is that of the received message."""
    return Message(
        body=json.dumps([arguments, {}, {}]),
        delivery_tag=received.delivery_tag,
        content_type="application/json",
        content_encoding="utf-8",
        # A new identifier: two messages with the same one would take one slot.
        headers={"task": TASK_NAME, "id": str(uuid.uuid4()), "lang": "py", "ignore_result": True},
        accept=received.accept,
        channel=received.channel,
    )


def _accept_and_handle(handle: Callable[[Message], None], message: Message) -> None:
    message_id = message.headers["id"]
    gate.accept(message_id)
    try:
        handle(message)
    except BaseException:
        gate.finish(message_id)
        raise


def install(app: Celery, slots: int) -> None:
    """Let the workers of an application take only verified messages, and only for free slots."""
    gate.slots = slots
    protect(gate.refuse)
    app.steps["consumer"].add(PrefetchStep)
    app.conf.worker_consumer = RangeConsumer
