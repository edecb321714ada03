"""The seams: each name of the product and of the standard library that the simulation replaces, in one place.

The product reaches time through `clock`, files and processes through `os`, threads through `threading`, the broker
through `Sender`, samples through `Popen`, and the batch system through `Jobs`. Each of these is one name that this
module replaces; nothing of the product is changed, and nothing else of it is replaced.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from types import SimpleNamespace
from typing import Any

import greenlet
import yaml

from maestro_celery_plugin import clock, files, machine, processes, python_processes
from maestro_celery_plugin.conductor import coordinator, publisher, shared_allocation, worker_sources
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.ledger import claims
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study import cancelled_steps, conductor_lock, members, worker_facts
from maestro_celery_plugin.study import stopped_workers as stop_requests
from maestro_celery_plugin.worker import attempt, own_name, pool_limits, supervisor, worker_process
from maestro_celery_plugin.worker import gate as gate_module
from simulation import kernel as sim
from simulation import system, threads
from simulation.kernel import EPOCH, Process

__all__ = ["PRODUCT", "SimLock", "SimTimeoutError", "current_world", "install"]

PRODUCT = "maestro_celery_plugin"

# The world of the simulation that runs now.
world: Any = None


def current_world() -> Any:
    """Return the world of the present simulation."""
    return world


def use(new: Any) -> None:
    """Let a world be the present one."""
    global world
    world = new


def _process() -> Process:
    process = sim.current()
    assert process is not None
    return process


# --- clock ---


def _monotonic() -> float:
    return sim.kernel.thread_now + 1000.0


def _now() -> float:
    process = sim.current()
    return EPOCH + sim.kernel.thread_now + (process.node.skew_s if process is not None else 0.0)


def _sleep(seconds: float) -> None:
    sim.kernel.sleep(seconds)


def _shared_now() -> float:
    process = sim.current()
    return _now() + (process.locals.get("ahead_s", 0.0) if process is not None else 0.0)


def _adjust(ahead_s: float) -> None:
    _process().locals["ahead_s"] = ahead_s


# --- processes ---


def _process_of(cls: type[ProcessId], pid: int) -> ProcessId:
    found = sim.kernel.find(_process().node, pid)
    return cls(pid, found.start if found is not None else 0)


def _found(self: ProcessId) -> Process | None:
    here = sim.current()
    assert here is not None
    found = sim.kernel.find(here.node, self.pid)
    return found if found is not None and found.start == self.start else None


def _is_alive(self: ProcessId) -> bool:
    return (_found(self) is not None) or self.start == 0


def _signal(self: ProcessId, number: int, *, group: bool = False) -> None:
    found = _found(self)
    if found is not None:
        sim.kernel.signal(found, int(number))


def _kill(pid: int, number: int) -> None:
    found = sim.kernel.find(_process().node, pid)
    if found is None:
        raise ProcessLookupError
    sim.kernel.signal(found, int(number))


def _end_marked(name: str, value: str, *, spare: frozenset[int] = frozenset(), grace_s: float = 5.0) -> int:
    """End the samples of a worker: SIGTERM, then SIGKILL."""
    node = _process().node

    def marked() -> list[Process]:
        return [p for p in node.processes.values() if p.marker == value and p.pid not in spare]

    found = marked()
    for process in found:
        sim.kernel.signal(process, signal.SIGTERM)
    clock.wait_until(lambda: not any(process.is_alive for process in found), grace_s)
    for process in marked():
        sim.kernel.kill(process)
    if found:
        clock.sleep(0.001)
    return len(found)


def _end_descendants() -> None:
    """Kill the samples of the worker of this supervisor, and wait for their end."""
    me = _process()
    for process in [p for p in me.node.processes.values() if p.marker and p.marker == me.locals.get("marker")]:
        sim.kernel.kill(process)
    clock.sleep(0.001)


def _exit_at_once(code: int) -> None:
    sim.kernel.leave(_process(), code)


# --- locks of files ---


class SimTimeoutError(TimeoutError):
    """Stands for `filelock.Timeout`."""


class SimLock:
    """Stands for `filelock.FileLock`: an exclusive lock of a file on the server.

    Args:
        path: The file.
        thread_local: Whether each thread of the process has a lock of its own, which excludes the other threads as well.
    """

    def __init__(self, path: Any, thread_local: bool = True) -> None:
        self._path, self._is_of_thread = os.fspath(path), thread_local
        # For each thread that has the lock: its descriptor, and how often it has it.
        self._held: dict[Any, tuple[int, int]] = {}

    @property
    def _owner(self) -> Any:
        return greenlet.getcurrent() if self._is_of_thread else None

    @property
    def is_locked(self) -> bool:
        return self._owner in self._held

    def acquire(self, timeout: float = -1) -> SimLock:
        if self.is_locked:
            descriptor, depth = self._held[self._owner]
            self._held[self._owner] = descriptor, depth + 1
            return self
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = clock.monotonic() + timeout
        while True:
            try:
                system.FCNTL.flock(descriptor, system.FCNTL.LOCK_EX | system.FCNTL.LOCK_NB)
                break
            except BlockingIOError:
                if timeout >= 0 and clock.monotonic() >= deadline:
                    os.close(descriptor)
                    raise SimTimeoutError(self._path) from None
                clock.sleep(0.05)
        self._held[self._owner] = descriptor, 1
        return self

    def release(self) -> None:
        if not self.is_locked:
            return
        descriptor, depth = self._held.pop(self._owner)
        if depth > 1:
            self._held[self._owner] = descriptor, depth - 1
        else:
            os.close(descriptor)

    def __enter__(self) -> SimLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


# --- what each process has for itself ---


class _ProcessDict(MutableMapping[Any, Any]):
    """A dictionary of which each process has its own."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def _own(self) -> dict[Any, Any]:
        return _process().locals.setdefault(self._name, {})

    def __getitem__(self, key: Any) -> Any:
        return self._own[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._own[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._own[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


class _ProcessGate:
    """The gate of the present process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_own_gate(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_own_gate(), name, value)


def _own_gate() -> Any:
    own = _process().locals
    if "gate" not in own:
        own["gate"] = gate_module.Gate()
    return own["gate"]


# --- the host and the broker ---


class _Host:
    """Stands for the host of a session, which keeps the private broker; it lives on the conductor's node."""

    @staticmethod
    def begin(session: Any, *, with_broker: bool = False) -> None:
        return None

    @staticmethod
    def start_broker(session: Any) -> None:
        if not world.broker.is_up:
            clock.sleep(1.0)
            raise BrokerError("the private broker has not started")

    @staticmethod
    def host_of(session: Any) -> Any:
        return SimpleNamespace(signal=lambda number: None, is_alive=False) if world.broker.is_up else None


# --- replacing ---


def _token_hex(count: int) -> str:
    return f"{sim.kernel.random.getrandbits(8 * count):0{2 * count}x}"


_load_yaml = functools.lru_cache(maxsize=64)(yaml.safe_load)


def _substitutes() -> dict[int, Any]:
    """Return the substitutes by the identity of what they replace in modules of the product."""
    import atexit
    import fcntl
    import gc
    import queue
    import secrets
    import threading

    import filelock

    return {
        id(threading): threads.THREADING,
        id(queue): threads.QUEUE,
        id(atexit): threads.ATEXIT,
        id(fcntl): system.FCNTL,
        id(secrets): SimpleNamespace(token_hex=_token_hex),
        id(gc): SimpleNamespace(freeze=lambda: None),
        id(yaml): SimpleNamespace(safe_load=_load_yaml, YAMLError=yaml.YAMLError, safe_dump=yaml.safe_dump),
        id(filelock.FileLock): SimLock,
        id(filelock.Timeout): SimTimeoutError,
        id(machine.host_name): lambda: _process().node.name,
        id(machine.node_name): lambda: _process().node.name,
        id(machine.machine_id): lambda: _process().node.machine,
        id(machine.machine_number): lambda: _process().node.number + 1,
        id(machine.usable_cpus): lambda: 4,
        id(processes.end_marked): _end_marked,
        id(processes.end_descendants): _end_descendants,
        id(processes.exit_at_once): _exit_at_once,
        id(gate_module.gate): _ProcessGate(),
    }


_installed: list[bool] = []


def install() -> None:
    """Replace the names, once in a process; each substitute refers to the present simulation."""
    if _installed:
        return
    _installed.append(True)
    # No files or processes yet: what the product reads once and keeps must be read before.
    import maestro_celery_plugin.maestro.resume  # noqa: F401 (its names are replaced below)
    from maestro_celery_plugin.plugins import plugin_manager

    plugin_manager()
    substitutes = _substitutes()
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(PRODUCT) and module]
    for module in modules:
        for name, value in list(vars(module).items()):
            if id(value) in substitutes:
                setattr(module, name, substitutes[id(value)])
    clock.monotonic, clock.since_boot, clock.sleep = _monotonic, _monotonic, _sleep
    clock.now, clock.now_ns = _now, lambda: int(_now() * 1e9)
    clock.shared_now, clock.adjust = _shared_now, _adjust
    clock.local_time = lambda pattern: "2027-01-15 08:00:00"
    ProcessId.of = classmethod(_process_of)  # type: ignore[method-assign, assignment]
    ProcessId.is_alive = property(_is_alive)  # type: ignore[method-assign, assignment]
    ProcessId.signal = _signal  # type: ignore[method-assign, assignment]
    os.kill, os.killpg = _kill, _kill  # type: ignore[assignment]
    coordinator._COORDINATORS = _ProcessDict("coordinators")  # type: ignore[assignment]
    conductor_lock._LOCKS = _ProcessDict("locks")  # type: ignore[assignment]
    coordinator.end_on_signals = lambda: None
    publisher.host = _Host  # type: ignore[assignment]
    publisher.import_transport = lambda: None
    publisher.make_app = lambda session, timeout_s, confirms=False: world.broker.app()
    publisher.declare = lambda app, session, queues: world.broker.check(app.url)
    publisher.Sender = lambda session, app: world.broker.sender(app)
    worker_process.Sender = lambda session, app: world.broker.sender(app)
    worker_process.count_waiting = lambda app, queues: world.broker.count(app.url)
    attempt.subprocess = SimpleNamespace(Popen=lambda *args, **options: world.samples.popen(*args, **options))
    python_processes.start = lambda *args: world.start_python(*args)
    worker_sources.BatchJobs = lambda system, settings=None: world.batch.jobs()
    for module in (worker_sources, worker_process, sys.modules[f"{PRODUCT}.plugins"]):
        module.batch_system = lambda type: world.batch.system if type != "local" else None  # type: ignore[attr-defined]
    worker_facts.importlib = SimpleNamespace(metadata=SimpleNamespace(version=lambda name: "1"))  # type: ignore[attr-defined]
    own_name.print = lambda *args, **options: None  # type: ignore[attr-defined]
    pool_limits.PoolLimits.__init__ = lambda self: None  # type: ignore[method-assign]
    from simulation.supervisors import replace_in
    from simulation.users import replace_in_resume

    replace_in(supervisor)
    replace_in_resume(current_world)
    system.interpose()


_ = (files, claims, members, stop_requests, cancelled_steps, shared_allocation)
