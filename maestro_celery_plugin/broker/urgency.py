"""The urgency of messages: which message a worker receives first when several wait in one task queue.

A sample that runs again goes before samples that have never run: its worker was lost, or it has requested another run.
Messages of the same urgency keep their order. The rest of a range, which a worker sends back, keeps the urgency of the
range.
"""

from __future__ import annotations

import enum

from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.states import RunMode

__all__ = ["MAX_PRIORITY", "Urgency", "priority_of", "urgency_of"]


class Urgency(enum.IntEnum):
    """The urgency of a message; the lowest number is the most urgent."""

    AGAIN = 0
    """Samples that run again."""
    NEW = 2
    """Samples that have not run before."""


# Queues of RabbitMQ have this as `x-max-priority`, and deliver the message with the highest priority first.
MAX_PRIORITY = 3
# kombu has one list in Redis for each of the priorities 0, 3, 6 and 9, and takes from the first list with a message
# (kombu/transport/redis.py, `PRIORITY_STEPS` and `_brpop_start`).
_REDIS_STEP = 3


def urgency_of(task: RangeTask) -> Urgency:
    """Return the urgency of a range task; the samples of an assignment have run before, with few exceptions."""
    return Urgency.NEW if task.mode is RunMode.FIRST else Urgency.AGAIN


def priority_of(task: RangeTask, *, on_redis: bool) -> int:
    """Return the priority of a range task for the broker.

    Args:
        task: The range task.
        on_redis: Whether the broker is Redis or Valkey, where the lowest number comes first.
    """
    urgency = urgency_of(task)
    return _REDIS_STEP * urgency if on_redis else MAX_PRIORITY - urgency
