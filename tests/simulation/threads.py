"""Stand-ins for the modules `threading`, `queue` and `atexit`: the kernel decides which thread runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from simulation import kernel as sim
from simulation.kernel import ENDLESS

__all__ = ["ATEXIT", "QUEUE", "THREADING", "Event", "Lock", "RLock", "SimpleQueue"]


class _Waiters:
    """Threads that wait for something."""

    def __init__(self) -> None:
        self._waiting: deque[sim.Thread] = deque()

    def wait(self, timeout_s: float = ENDLESS) -> bool:
        thread = sim.kernel.thread
        assert thread is not None
        self._waiting.append(thread)
        if sim.kernel.block(timeout_s):
            return True
        self._waiting.remove(thread)
        return False

    def notify_one(self) -> None:
        while self._waiting:
            thread = self._waiting.popleft()
            if thread.process.is_alive:
                sim.kernel.notify(thread)
                return

    def notify_all(self) -> None:
        while self._waiting:
            self.notify_one()


class Lock:
    """A lock; reentrant for `RLock`."""

    is_reentrant = False

    def __init__(self) -> None:
        self._owner: sim.Thread | None = None
        self._depth = 0
        self._waiters = _Waiters()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        thread = sim.kernel.thread
        if self.is_reentrant and self._depth and self._owner is thread:
            self._depth += 1
            return True
        while self._depth:
            if not blocking:
                return False
            self._waiters.wait()
        self._owner, self._depth = thread, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._waiters.notify_one()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    is_reentrant = True


class Event:
    def __init__(self) -> None:
        self._is_set = False
        self._waiters = _Waiters()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._waiters.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._waiters.wait(ENDLESS if timeout is None else timeout)
        return self._is_set


class SimpleQueue:
    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiters = _Waiters()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._waiters.notify_one()

    def get(self) -> Any:
        while not self._items:
            self._waiters.wait()
        return self._items.popleft()

    @classmethod
    def __class_getitem__(cls, _: Any) -> type:
        return cls


class _Thread:
    def __init__(
        self, *, target: Callable[..., Any], args: tuple[Any, ...] = (), name: str = "thread", daemon: bool = False
    ) -> None:
        self._target, self._args, self._name = target, args, name

    def start(self) -> None:
        process = sim.current()
        assert process is not None
        sim.kernel.spawn(process, lambda: self._target(*self._args), self._name)


def _current_thread() -> object:
    return sim.kernel.thread


def _register(action: Callable[[], Any]) -> None:
    process = sim.current()
    if process is not None:
        process.exit_handlers.append(action)


THREADING = SimpleNamespace(
    Thread=_Thread, Lock=Lock, RLock=RLock, Event=Event, current_thread=_current_thread, main_thread=object
)
QUEUE = SimpleNamespace(SimpleQueue=SimpleQueue)
ATEXIT = SimpleNamespace(register=_register)
