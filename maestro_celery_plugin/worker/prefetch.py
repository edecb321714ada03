"""The prefetch of a worker: it takes a message only when it is verified and one of its slots is free.

A Celery worker prefetches messages. While a sample runs for an hour, a prefetched message would wait although other
workers are idle. Celery's option `worker_disable_prefetch` supports only Redis and polls once per second; this bootstep
supports every broker and reacts immediately.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import MethodType
from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer import Tasks

from maestro_celery_plugin.broker.envelope import protect
from maestro_celery_plugin.worker.gate import gate
from maestro_celery_plugin.worker.range_consumer import RangeConsumer

__all__ = ["PrefetchStep", "install"]


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
            self.wake()  # so that the loop begins with `_drain`

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
        self._drain()

    def _drain(self) -> None:
        """Handle the messages that have come with the answer to a command, such as that to consume.

        With TLS, they can lie decrypted in the process. The event loop watches the socket, and does not see them.
        """
        connection: Any = self._consumer.connection
        hub = self._consumer.hub
        if hub is not None and connection is not None and connection.transport.driver_type == "amqp":
            hub.call_soon(connection.transport.on_readable, connection.connection, hub)


def install(app: Celery, slots: int) -> None:
    """Let the workers of an application take only verified messages, and only for free slots."""
    gate.slots = slots
    protect(gate.refuse)
    app.steps["consumer"].add(PrefetchStep)
    # RabbitMQ refuses a limit for a whole channel with quorum queues, and Celery does not know the type that a virtual
    # host or a policy has given to a queue. `PrefetchStep` sets the limit of each consumer.
    Tasks.qos_global = lambda step, consumer: False
    app.conf.worker_consumer = RangeConsumer
