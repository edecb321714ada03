"""The broker: messages arrive late, in any order, never, or twice; it may refuse for a while, or lose all messages."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from simulation import kernel as sim
from simulation.kernel import ENDLESS, Kernel
from simulation.profiles import Profile
from simulation.threads import _Waiters

__all__ = ["Broker"]


@dataclasses.dataclass
class _Queue:
    messages: list[Any] = dataclasses.field(default_factory=list)
    waiters: _Waiters = dataclasses.field(default_factory=_Waiters)


class Broker:
    """The task queues of a session.

    Args:
        kernel: The kernel.
        profile: How often it fails.

    Attributes:
        counts: What has happened to messages.
    """

    def __init__(self, kernel: Kernel, profile: Profile) -> None:
        self._kernel, self._profile = kernel, profile
        self._queues: dict[str, _Queue] = {}
        self.refuses_until = 0.0
        self.counts = {"sent": 0, "lost": 0, "doubled": 0, "wiped": 0, "refused": 0, "received": 0}

    def app(self) -> Any:
        """Return what stands for the Celery application."""
        return SimpleNamespace(url="redis://broker", conf=SimpleNamespace(task_queues=("merlin",)), broker=self)

    def sender(self) -> Any:
        return SimpleNamespace(send=self.send, close=lambda queues, delete: None)

    def check(self) -> None:
        """Raise the error of a broker that does not answer."""
        if self._kernel.now < self.refuses_until:
            self.counts["refused"] += 1
            raise ConnectionError("the broker does not answer")

    def await_up(self) -> None:
        self.check()

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())

    def send(self, task: Any, task_queue: str, level: int = 0) -> None:
        self._kernel.operate()
        profile, rng = self._profile, self._kernel.random
        if profile.send_s:
            self._kernel.sleep(rng.random() * profile.send_s)
        self.check()
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
            self._kernel.call(delay_s, lambda: self._arrive(task_queue, task))
        if copies and rng.random() < profile.unanswered_rate and self._kernel.now < profile.faults_end_s:
            raise ConnectionError("the broker has received a message, and its answer was lost")

    def _arrive(self, name: str, task: Any) -> None:
        queue = self._queue(name)
        queue.messages.append(task)
        queue.waiters.notify_all()

    def count(self, names: Any) -> int:
        self.check()
        return sum(len(queue.messages) for queue in self._queues.values())

    def receive(self, names: tuple[str, ...], timeout_s: float) -> Any:
        """Return a message, in any order; None after a time-out or from a broker that does not answer."""
        if self._kernel.now < self.refuses_until:
            self._kernel.sleep(min(timeout_s, 1.0))
            return None
        for name in names:
            queue = self._queue(name)
            if queue.messages:
                index = self._kernel.random.randrange(len(queue.messages)) if self._profile.reorders else 0
                self.counts["received"] += 1
                return queue.messages.pop(index)
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

    def redeliver(self, task: Any, name: str) -> None:
        """Put a message back that a consumer has rejected, or deliver an old one again."""
        self._arrive(name, task)


_ = (sim, ENDLESS)
