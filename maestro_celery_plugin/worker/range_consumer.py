"""The consumer of a worker: it passes verified messages on to Celery, each with a request that frees its slot."""

from __future__ import annotations

import functools
import json
import logging
import uuid
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.message import Message

from maestro_celery_plugin.broker.app import TASK_NAME
from maestro_celery_plugin.broker.envelope import MAX_BYTES, Refusal
from maestro_celery_plugin.broker.messages import RangeTask, arguments_of
from maestro_celery_plugin.worker.gate import gate

__all__ = ["RangeConsumer", "RangeRequest"]

LOGGER = logging.getLogger(__name__)


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
