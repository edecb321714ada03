"""The kernel: simulated time, nodes, processes and threads; one seed decides on every order and every delay.

A thread is a greenlet. It runs until it blocks: a sleep, a lock, an operation of the file system. Then the kernel runs
the thread whose time comes next; a random number orders threads of the same time. So any two runs with the same seed
are equal to the letter.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

from greenlet import greenlet

__all__ = ["ENDLESS", "Died", "Kernel", "Node", "Process", "StuckError", "Thread", "current", "kernel"]

ENDLESS = math.inf
# Unix seconds of the beginning of a simulation.
EPOCH = 1_800_000_000.0
# A thread that does this many operations without waiting does not end.
_BUSY_LIMIT = 300_000


class Died(BaseException):
    """The process of a thread was killed; nothing that follows has an effect."""


class StuckError(Exception):
    """The simulation cannot continue: a thread runs for ever, or the world does not come to its end."""


class Node:
    """A machine: its name, its clocks, and the processes that run on it.

    Attributes:
        skew_s: How far its wall clock is ahead of the true time.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.skew_s = 0.0
        self.boots = 1
        self.is_up = True
        self.processes: dict[int, Process] = {}
        self.client: Any = None  # its view of the file system
        self.random: random.Random  # for the faults of its file operations

    @property
    def machine(self) -> str:
        """Its identity, which changes with each boot."""
        return f"{self.name}#{self.boots}"


class Process:
    """A process: its threads, its open files, and the module globals that each real process has for itself.

    Args:
        node: Its machine.
        pid: Its number.
        name: Its name in the trace.

    Attributes:
        on_signal: Called in a thread of the process for a signal that can be caught.
        on_exit: Called by the kernel when the process has ended, in any way.
        locals: Its own copies of module globals.
        paused_until: None of its threads runs before this time.
        killer: The attempt at a sample that has killed it; None for any other end.
    """

    def __init__(self, node: Node, pid: int, name: str) -> None:
        self.node, self.pid, self.name = node, pid, name
        self.start = pid * 10 + 1
        self.threads: list[Thread] = []
        self.descriptors: set[int] = set()
        self.locks: set[Any] = set()
        self.locals: dict[str, Any] = {}
        self.exit_handlers: list[Callable[[], Any]] = []
        self.paused_until = 0.0
        self.killer: Any = None
        self.code: int | None = None
        self.parent: Process | None = None
        self.marker = ""
        self.on_signal: Callable[[int], None] | None = None
        self.on_exit: list[Callable[[Process], None]] = []

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.code is None

    def __repr__(self) -> str:
        return f"<{self.name} {self.pid} on {self.node.name}>"


class Thread:
    """A thread of a process.

    Attributes:
        used_s: The time that it has used since it has last waited. The time of the others goes on when it waits.
        earliest: Its time when it has begun to wait.
    """

    __slots__ = ("earliest", "greenlet", "is_done", "name", "process", "token", "used_s", "was_notified")

    def __init__(self, process: Process, name: str) -> None:
        self.process, self.name = process, name
        self.greenlet: greenlet
        self.token, self.was_notified, self.is_done = 0, False, False
        self.used_s = self.earliest = 0.0


class Kernel:
    """The simulated time, and the threads that wait for it.

    Args:
        seed: Decides on everything that happens.

    Attributes:
        now: Seconds since the beginning.
        steps: The number of thread switches so far.
        faults: Errors that no thread has caught.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.random = self.stream("order")
        self.now = 0.0
        self.steps = 0
        self.faults: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.thread: Thread | None = None
        self._heap: list[tuple[float, float, int, Any, int]] = []
        self._sequence = itertools.count()
        self._pids = itertools.count(1000)
        self._hub: greenlet | None = None
        self._trace = hashlib.sha256()
        self.log: list[str] | None = None
        self._busy = 0

    def stream(self, name: str) -> random.Random:
        """Return random numbers of their own for one part of the world, so that it changes little when others do."""
        return random.Random(f"{self._seed} {name}")

    # --- trace ---

    def trace(self, what: str) -> None:
        """Add what has happened to the trace, whose hash two equal runs share."""
        line = f"{self.now:.6f} {what}"
        self._trace.update(line.encode() + b"\n")
        if self.log is not None:
            self.log.append(line)

    @property
    def trace_hash(self) -> str:
        """The hash of the trace so far."""
        return self._trace.hexdigest()[:16]

    # --- processes and threads ---

    def node(self, name: str) -> Node:
        """Add a machine."""
        node = self.nodes[name] = Node(name, len(self.nodes))
        node.random = self.stream(f"operations of {name}")
        return node

    def process(self, node: Node, name: str, main: Callable[[], Any] | None = None) -> Process:
        """Start a process; it ends when `main` returns. Without `main`, it has no thread and ends by `exit`."""
        process = Process(node, next(self._pids), name)
        node.processes[process.pid] = process
        self.trace(f"start {process}")
        if main is not None:
            self.spawn(process, lambda: self._run_main(process, main), "main")
        return process

    def _run_main(self, process: Process, main: Callable[[], Any]) -> None:
        code = 1
        try:
            code = main() or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else (1 if error.code else 0)
        finally:
            if process.is_alive:
                self.call(0.0, lambda: self.exit(process, code))

    def spawn(self, process: Process, function: Callable[[], Any], name: str = "thread") -> Thread:
        """Start a thread of a process."""
        thread = Thread(process, name)
        thread.greenlet = greenlet(lambda: self._run_thread(thread, function), parent=self._hub)
        process.threads.append(thread)
        self._push(self.thread_now, thread)
        return thread

    def _run_thread(self, thread: Thread, function: Callable[[], Any]) -> None:
        try:
            function()
        except Died:
            pass
        except SystemExit:
            pass
        except Exception as error:
            import traceback

            text = "".join(traceback.format_exception(error))
            self.faults.append(f"{thread.process.name} {thread.name}: {text}")
        finally:
            thread.is_done = True
            if thread.process.is_alive:
                thread.process.threads.remove(thread)

    def exit(self, process: Process, code: int) -> None:
        """End a process at once; only the kernel calls this, outside of any thread."""
        if not process.is_alive:
            return
        process.code = code
        self.trace(f"end {process} code {code}")
        process.node.processes.pop(process.pid, None)
        threads, process.threads = process.threads, []
        for thread in threads:
            if not thread.is_done and thread.greenlet:
                thread.token += 1
                self._switch(thread, Died)
            elif not thread.is_done:
                thread.token += 1  # it has not begun
        for action in process.on_exit:
            action(process)
        if process.marker and not threads:
            return  # a sample, which has started no process
        for child in [p for p in process.node.processes.values() if p.parent is process]:
            self.signal(child, 15 if child.on_signal else 0)

    def kill(self, process: Process, number: int = 9) -> None:
        """Kill a process from any thread; a thread that kills its own process does not continue."""
        if not process.is_alive:
            return
        if self.thread is None:
            self.exit(process, -number)
            return
        self.call(0.0, lambda: self.exit(process, -number))
        if self.thread.process is process:
            self.block(ENDLESS)

    def leave(self, process: Process, code: int) -> None:
        """End the process of this thread with an exit code (os._exit)."""
        self.call(0.0, lambda: self.exit(process, code))
        self.block(ENDLESS)

    def signal(self, process: Process, number: int) -> None:
        """Send a signal."""
        if not process.is_alive or number == 0:
            return
        if number == 9 or process.on_signal is None:
            self.kill(process, number)
        else:
            handler = process.on_signal
            self.spawn(process, lambda: handler(number), f"signal {number}")

    def find(self, node: Node, pid: int) -> Process | None:
        """Return the live process with a number on a node."""
        return node.processes.get(pid)

    # --- time ---

    def _push(self, at: float, what: Any, token: int = 0) -> None:
        heapq.heappush(self._heap, (at, self.random.random(), next(self._sequence), what, token))

    def call(self, delay_s: float, action: Callable[[], Any]) -> None:
        """Call a function of the harness, outside of any thread, after a delay."""
        self._push(self.thread_now + delay_s, action)

    def block(self, timeout_s: float) -> bool:
        """Let this thread wait; return whether it was notified before the time-out."""
        thread = self.thread
        assert thread is not None
        if not thread.process.is_alive:
            raise Died
        thread.token += 1
        thread.was_notified = False
        if timeout_s < ENDLESS:
            self._push(self.now + thread.used_s + max(0.0, timeout_s), thread, thread.token)
        thread.earliest, thread.used_s = self.now + thread.used_s, 0.0
        assert self._hub is not None
        self._hub.switch()
        if not thread.process.is_alive:
            raise Died
        return thread.was_notified

    def sleep(self, seconds: float) -> None:
        """Let this thread sleep."""
        self.block(max(0.0, seconds))

    @property
    def thread_now(self) -> float:
        """The time of the present thread."""
        return self.now if self.thread is None else self.now + self.thread.used_s

    def notify(self, thread: Thread) -> None:
        """Let a thread continue that waits in `block`."""
        thread.was_notified = True
        thread.token += 1
        self._push(max(self.thread_now, thread.earliest), thread, thread.token)

    def operate(self) -> None:
        """Count an operation of this thread, which must not run for ever without waiting."""
        self._busy += 1
        if self._busy > _BUSY_LIMIT:
            raise StuckError(f"{self.thread and self.thread.process} does not wait")
        if self.thread is not None and not self.thread.process.is_alive:
            raise Died

    def _switch(self, thread: Thread, error: type[BaseException] | None = None) -> None:
        before, self.thread, self._busy = self.thread, thread, 0
        thread.greenlet.parent = greenlet.getcurrent()
        hub, self._hub = self._hub, greenlet.getcurrent()
        try:
            if error is None:
                thread.greenlet.switch()
            else:
                thread.greenlet.throw(error)
        finally:
            self.thread, self._hub = before, hub

    def run(self, until: float, steps: int, is_over: Callable[[], bool]) -> None:
        """Run until the world is over, or until a time, or for a number of steps."""
        self._hub = greenlet.getcurrent()
        while self._heap and not is_over():
            at, _, _, what, token = heapq.heappop(self._heap)
            if isinstance(what, Thread):
                if what.is_done or what.token != token or not what.process.is_alive:
                    continue
                if what.process.paused_until > at:
                    self._push(what.process.paused_until, what, token)
                    continue
            if at > until or self.steps >= steps:
                return
            self.now = max(self.now, at)
            self.steps += 1
            if isinstance(what, Thread):
                self._switch(what)
            else:
                what()

    def shut_down(self) -> None:
        """End all processes, so that no greenlet stays suspended."""
        self._hub = greenlet.getcurrent()
        for node in self.nodes.values():
            while node.processes:
                process = next(iter(node.processes.values()))
                process.on_exit.clear()
                self.exit(process, -9)


# The kernel of the simulation that runs now.
kernel: Kernel


def use(new: Kernel) -> None:
    """Let a kernel be the present one."""
    global kernel
    kernel = new


def current() -> Process | None:
    """Return the process whose thread runs now; None for the harness, and without a simulation."""
    try:
        thread = kernel.thread
    except NameError:
        return None
    return None if thread is None else thread.process
