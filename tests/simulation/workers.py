"""The Celery worker: the real worker process with real range tasks, behind a simulated consumer of messages."""

from __future__ import annotations

import contextlib
import itertools
import signal
from types import SimpleNamespace
from typing import Any

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.files import share_clock
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.worker_identity import EXIT_REPLACE, mark
from maestro_celery_plugin.worker import gate as gate_module
from maestro_celery_plugin.worker import worker_process
from simulation import kernel as sim
from simulation.kernel import ENDLESS, Process
from simulation.threads import _Waiters

__all__ = ["start_worker"]


def start_worker(world: Any, arguments: Any, supervisor: Process) -> Process:
    """Start the worker of a supervisor."""
    kernel = sim.kernel
    worker: Process

    def main() -> int:
        kernel.sleep(0.1 + kernel.random.random() * world.start_s)
        return _Consumer(world, arguments, supervisor, worker).run()

    worker = kernel.process(supervisor.node, f"worker {arguments.name}", main)
    worker.parent = supervisor
    worker.marker = supervisor.locals["marker"]
    worker.locals["mark"] = mark(arguments.session, arguments.name)
    worker.marker = ""  # a worker is no sample
    worker.on_signal = lambda number: kernel.kill(worker, number)  # until Celery has its handlers
    worker.on_exit.append(lambda process: world.on_exit(process))
    world.workers.append(worker)
    return worker


class _Consumer:
    """What Celery does: it takes messages for free slots, and ends warmly after SIGTERM."""

    def __init__(self, world: Any, arguments: Any, supervisor: Process, me: Process) -> None:
        self._world, self._arguments, self._me = world, arguments, me
        self._supervisor = ProcessId(supervisor.pid, supervisor.start)
        self._ids = itertools.count()
        self._running = 0
        self._changed = _Waiters()
        self._is_terminated = False
        self._process: Any = None

    def run(self) -> int:
        try:
            share_clock(self._arguments.session.path)
            app = SimpleNamespace(
                url=self._world.broker.url,
                conf=SimpleNamespace(task_queues=self._arguments.group.queues),
                signer=SimpleNamespace(decode=lambda message: message[0]),
            )
            self._url = app.url
            self._process = worker_process.WorkerProcess(self._arguments, self._supervisor, app)
        except (OSError, EnsembleError) as error:
            sim.kernel.trace(f"{self._me} cannot start: {error}")
            return 1
        gate = sim.current().locals.setdefault("gate", gate_module.Gate())  # type: ignore[union-attr]
        gate.slots = self._world.profile.slots
        gate.step = SimpleNamespace(adjust=lambda: None, wake=self._changed.notify_all)
        self._me.on_signal = self._on_signal
        self._process.open(self._arguments.name, self._world.profile.slots)
        sim.kernel.sleep(sim.kernel.random.random() * 0.3)
        self._process.mark_ready()
        self._world.ready[self._arguments.name] = sim.kernel.now
        self._consume(gate)
        while self._running:
            self._changed.wait(ENDLESS)
        return EXIT_REPLACE if self._process.must_be_replaced else 0

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGTERM and not self._is_terminated:
            self._is_terminated = True
            with contextlib.suppress(OSError):  # Celery logs the error of a receiver, and continues
                self._process.mark_terminated()
            self._changed.notify_all()
            self._world.broker.wake()

    def _consume(self, gate: Any) -> None:
        queues = self._arguments.group.queues
        while not self._is_terminated:
            if not gate.has_free_slot:
                self._changed.wait(1.0)
                continue
            task = self._world.broker.receive(self._url, queues, 1.0)
            if task is None:
                continue
            gate.received += 1
            message = f"message {next(self._ids)}"
            gate.accept(message)
            self._running += 1
            sim.kernel.spawn(self._me, lambda task=task, message=message: self._execute(gate, task, message), message)

    def _execute(self, gate: Any, task: Any, message: str) -> None:
        try:
            self._process._receive((task,))
        except (OSError, EnsembleError) as error:
            sim.kernel.trace(f"{self._me}: task failed: {error}")
        finally:
            gate.finish(message)
            self._running -= 1
            self._changed.notify_all()
