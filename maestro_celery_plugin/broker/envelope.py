"""The envelope of a message: it has no effect, because anyone may write messages to a shared broker.

kombu and amqp decode the envelope of a message before Celery sees the message, and raise errors that end a worker if
they cannot decode it. RabbitMQ then delivers the message to the next worker. `protect` changes the two libraries in the
process of a worker, so that only the signed body of a message counts.
"""

from __future__ import annotations

import base64
import enum
import json
import uuid
from collections.abc import Callable
from typing import Any

import amqp.serialization
import kombu.transport.redis
from amqp.spec import Basic
from kombu import compression

__all__ = ["MAX_BYTES", "Refusal", "protect"]

# Longer than any message of this plugin: two paths and a few numbers. Such a message is refused before it is decoded.
MAX_BYTES = 256 * 1024


class Refusal(enum.Enum):
    """Why a worker refuses a message."""

    UNREADABLE = "cannot be read"
    """The message is not in the format of this plugin."""
    FOREIGN = "does not belong to this session"
    """The message has no valid signature."""


def protect(refuse: Callable[[Refusal], None]) -> None:
    """Let this process ignore what it cannot decode.

    Args:
        refuse: Called for each message that is dropped before Celery sees it.
    """
    _CheckedChannel.refuse = staticmethod(refuse)
    kombu.transport.redis.Transport.Channel = _CheckedChannel
    # amqp calls the decoder of a class of contents; there is only this one.
    amqp.serialization.PROPERTY_CLASSES[Basic.CLASS_ID] = _decode_properties
    # No message of this plugin is compressed. kombu would decompress any size.
    for content_type in compression.encoders():
        compression.register(_refuse_compression, _refuse_compression, content_type)


class _CheckedChannel(kombu.transport.redis.Channel):  # type: ignore[misc]
    """A Redis channel that drops what is not a message, and replaces the envelope of a message."""

    # After the loss of the broker, kombu tries to send unacknowledged messages back, and fails on the closed channel.
    # The messages are not needed: the ledger records which samples must run.
    do_restore = False
    refuse: Callable[[Refusal], None]

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)
        client.set_response_callback("BRPOP", self._check)
        return client

    def _check(self, response: Any, **_: Any) -> tuple[bytes, str] | None:
        """Return the answer of BRPOP with another envelope; None, as after a time-out, for what is not a message."""
        if not response:
            return None
        key, item = response
        body = _body_of(item)
        if body is None:
            self.refuse(Refusal.UNREADABLE)
            return None
        return key, json.dumps(_envelope(body, key.decode().rsplit(self.sep, 1)[0]))


def _body_of(item: bytes) -> bytes | None:
    """Return the body of a message in the format of kombu (virtual/base.py, Message.serializable)."""
    if len(item) > MAX_BYTES:
        return None
    try:
        message = json.loads(item)
        body = message["body"].encode()
        return base64.b64decode(body) if message["properties"].get("body_encoding") == "base64" else body
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _envelope(body: bytes, queue: str) -> dict[str, Any]:
    """Return a message in the format of kombu whose envelope says only from which queue it came."""
    return {
        "body": base64.b64encode(body).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def _decode_properties(buffer: Any, offset: int) -> tuple[dict[str, Any], int]:
    """Return the properties of an AMQP message; none if amqp cannot decode them."""
    try:
        properties: tuple[dict[str, Any], int] = amqp.serialization.decode_properties_basic(buffer, offset)
        return properties
    except Exception:  # not UTF-8, a date after the year 9999, a table in a table in a table ...
        return {}, offset


def _refuse_compression(body: Any) -> bytes:
    raise ValueError("Messages of maestro-celery-plugin are not compressed.")
