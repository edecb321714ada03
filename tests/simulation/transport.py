"""The broker: messages arrive late, in any order, never, or twice; it may refuse for a while, or lose all messages."""

from __future__ import annotations

import dataclasses
from collections import deque
from types import SimpleNamespace
from typing import Any

from simulation.kernel import Kernel
from simulation.profiles import Profile
from simulation.threads import _Waiters

__all__ = ["Broker"]


@dataclasses.dataclass
class _Queue:
    messages: deque[Any] = dataclasses.field(default_factory=deque)
    waiters: _Waiters = dataclasses.field(default_factory=_Waiters)


class Broker:
    """The task queues of a session.

    Args:
        kernel: The kernel.
        profile: How often it fails.

    Attributes:
        counts: What has happened to messages.
        longest: The largest number of messages that have waited in a task queue at one time.
    """

    def __init__(self, kernel: Kernel, profile: Profile) -> None:
        self._kernel, self._profile, self._random = kernel, profile, kernel.stream("broker")
        self._queues: dict[str, _Queue] = {}
        self.refuses_until = 0.0
        self.generation, self.is_up = 1, True
        self.longest = 0
        self.counts = {"sent": 0, "lost": 0, "doubled": 0, "wiped": 0, "refused": 0, "received": 0}

    @property
    def url(self) -> str:
        """Its address, which changes when a private broker starts again."""
        return f"redis://broker:{self.generation}"

    def app(self) -> Any:
        """Return what stands for a Celery application, which knows the broker of now."""
        return SimpleNamespace(url=self.url, conf=SimpleNamespace(task_queues=("merlin",)))

    def sender(self, app: Any) -> Any:
        def send(task: Any, task_queue: str, level: int = 0) -> None:
            self._send(app.url, task, task_queue)

        return SimpleNamespace(send=send, close=lambda queues, delete: None)

    def check(self, url: str) -> None:
        """Raise the error of a broker that does not answer."""
        if not self.is_up or url != self.url or self._kernel.now < self.refuses_until:
            self.counts["refused"] += 1
            raise ConnectionError("the broker does not answer")

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())

    def _send(self, url: str, task: Any, task_queue: str) -> None:
        self._kernel.operate()
        profile, rng = self._profile, self._random
        if profile.send_s:
            self._kernel.sleep(rng.random() * profile.send_s)
        self.check(url)
        self.counts["sent"] += 1
        copies = 1
        if self._kernel.now < profile.faults_end_s:
            if rng.random() < profile.lose_rate:
                copies = 0
                self.counts["lost"] += 1
            elif rng.random() < profile.double_rate:
                copies = 2
                self.counts["doubled"] += 1
        for _ in range(copies):
            delay_s = rng.expovariate(1 / profile.deliver_s) if profile.deliver_s else 0.001
            if rng.random() < profile.late_rate and self._kernel.now < profile.faults_end_s:
                delay_s += rng.uniform(0, profile.late_s)
            self._kernel.call(delay_s, lambda: self._arrive(url, task_queue, task))
        if copies and rng.random() < profile.unanswered_rate and self._kernel.now < profile.faults_end_s:
            raise ConnectionError("the broker has received a message, and its answer was lost")

    def _arrive(self, url: str, name: str, task: Any) -> None:
        if url != self.url:
            return
        queue = self._queue(name)
        queue.messages.append(task)
        self.longest = max(self.longest, len(queue.messages))
        queue.waiters.notify_one()  # as BRPOP does: the consumer that has waited longest gets the message

    def count(self, url: str) -> int:
        """Return the number of waiting messages."""
        self.check(url)
        return sum(len(queue.messages) for queue in self._queues.values())

    def receive(self, url: str, names: tuple[str, ...], timeout_s: float) -> Any:
        """Return a message, in any order; None after a time-out or from a broker that does not answer."""
        if not self.is_up or url != self.url or self._kernel.now < self.refuses_until:
            self._kernel.sleep(min(timeout_s, 1.0))
            return None
        for name in names:
            queue = self._queue(name)
            if queue.messages:
                index = self._random.randrange(len(queue.messages)) if self._profile.reorders else 0
                self.counts["received"] += 1
                message = queue.messages[index]
                del queue.messages[index]
                return message
        self._queue(names[0]).waiters.wait(timeout_s)
        return None

    def wake(self) -> None:
        """Let consumers look again."""
        for queue in self._queues.values():
            queue.waiters.notify_all()

    def wipe(self) -> None:
        """Lose all messages."""
        lost = sum(len(queue.messages) for queue in self._queues.values())
        self.counts["wiped"] += lost
        for queue in self._queues.values():
            queue.messages.clear()
        self._kernel.trace(f"broker wiped of {lost} messages")

    def die(self) -> None:
        """End a private broker, with all messages."""
        self.wipe()
        self.is_up = False

    def start_again(self) -> None:
        """Start a private broker again, at another address."""
        self.generation, self.is_up = self.generation + 1, True
