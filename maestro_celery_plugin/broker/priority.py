"""The priority of messages: which message a worker receives first when several wait in one task queue.

Samples that run again go before samples that have never run: their worker was lost, or they have requested another
run. New samples go by the level of their step. Messages of the same priority keep their order. The rest of a range,
which a worker sends back, keeps the priority of the range.
"""

from __future__ import annotations

from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.config.priority import HIGHEST_LEVEL
from maestro_celery_plugin.states import RunMode

__all__ = ["MAX_PRIORITY", "priority_of"]

# Priorities are from 0 to this one; queues of RabbitMQ have it as `x-max-priority`.
MAX_PRIORITY = HIGHEST_LEVEL + 1


def priority_of(task: RangeTask, level: int, *, on_redis: bool) -> int:
    """Return the priority of a range task for the broker.

    Args:
        task: The range task. The samples of an assignment have run before, with few exceptions.
        level: The level of its step (`config/priority.py`).
        on_redis: Whether the broker is Redis or Valkey, where the lowest number comes first.
    """
    priority = level if task.mode is RunMode.FIRST else MAX_PRIORITY
    return MAX_PRIORITY - priority if on_redis else priority
