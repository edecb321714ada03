"""The supervisor of a worker: the real one, except for fork, wait and alarm."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.worker_identity import MARKER, mark
from simulation import kernel as sim
from simulation.kernel import ENDLESS, Process

__all__ = ["replace_in", "run_supervisor"]


class _NoPoolWatch:
    """Stands for the watch of a worker's pool: the workers of a simulation have threads."""

    def __init__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        pass

    def end(self, *, keep_heartbeats: bool) -> None:
        pass


def _alarm(seconds: float) -> None:
    """Send SIGALRM to this supervisor after some seconds; 0 revokes it."""
    me = sim.current()
    assert me is not None
    number = me.locals["alarm"] = me.locals.get("alarm", 0) + 1
    if seconds:

        def ring() -> None:
            if me.is_alive and me.locals["alarm"] == number:
                sim.kernel.signal(me, signal.SIGALRM)

        sim.kernel.call(seconds, ring)


def replace_in(module: Any) -> None:
    """Replace the names of the supervisor's module that need a real process."""
    names = {name: getattr(signal, name) for name in dir(signal) if name.startswith("SIG")}
    module.signal = SimpleNamespace(**names, alarm=_alarm, pthread_sigmask=lambda *a: None, Signals=signal.Signals)
    module.PoolWatch = _NoPoolWatch
    module.print = lambda *a, **b: None
    base = module._Supervisor

    class SimSupervisor(base):  # type: ignore[misc, valid-type]
        def _start(self, arguments: Any) -> int:
            from simulation.seams import current_world

            me = sim.current()
            assert me is not None
            me.locals["marker"] = mark(self.session, self.name)
            child = current_world().start_worker(arguments, me)
            self.child = child.pid
            self._process = child
            if self.end_requested:
                self._end_child()
            return int(child.pid)

        def _wait(self, child: int) -> int:
            process: Process = self._process
            me = sim.kernel.thread
            assert me is not None
            process.on_exit.append(lambda _: sim.kernel.notify(me) if me.process.is_alive else None)
            while process.is_alive:
                sim.kernel.block(ENDLESS)
            self.child = 0
            code = process.code or 0
            return -code if code < 0 else code << 8

    module._Supervisor = SimSupervisor


def run_supervisor(module: Any, session: Any, group_name: str, name: str, allocation: str) -> int:
    """Do what `supervisor.main` does, from the configuration of the group on."""
    me = sim.current()
    assert me is not None
    clock.wait_until(lambda: session.has_group(group_name), module.GROUP_LIMIT_S, interval_s=0.2)
    try:
        group = session.read_group(group_name)
        supervisor = module._Supervisor(session)

        def on_signal(number: int) -> None:
            if number == signal.SIGALRM:
                supervisor._on_alarm(number, None)
            elif number == module.LEAVE_SIGNAL:
                supervisor._on_leave(number, None)
            else:
                supervisor._on_end(number, None)

        me.on_signal = on_signal
        code = module._run_workers(supervisor, group, name, allocation)
    except (module.StudyError, OSError) as error:
        sim.kernel.trace(f"supervisor ends: {error}")
        return 1
    return 0 if code == -signal.SIGTERM else code & 0xFF


_ = MARKER
