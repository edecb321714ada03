"""What goes wrong: faults of files, processes, nodes, the broker and the batch system, at the rates of the profile."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.stopped_workers import request_start, request_worker_stop
from simulation.kernel import Node, Process

__all__ = ["Misfortune"]


def _ignoring(action: Callable[[], Any]) -> None:
    """Do what a user does who ignores an error."""
    with contextlib.suppress(OSError, EnsembleError):
        action()


# A conductor that has died is started again after this time, by the host of the session or by a user.
_RESUME_S = (3.0, 40.0)
# A user starts the worker of a node again after this time.
_START_S = (1.0, 20.0)
_TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class Misfortune:
    """The faults of a world.

    Args:
        world: The world.

    Attributes:
        counts: How often each fault has happened.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        self.counts: dict[str, int] = {}
        self._cut_until: dict[str, float] = {}
        self._disturbed: dict[int, float] = {}
        self._resume_at: float | None = None
        self._start_at: dict[str, float] = {}

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def is_over(self) -> bool:
        """Whether no fault begins any more."""
        return bool(self._world.kernel.now >= self._world.profile.faults_end_s)

    # --- files ---

    def operate(self, node: Node, kind: str, path: str) -> None:
        """Let an operation on a file wait, or fail."""
        kernel, profile = self._world.kernel, self._world.profile
        thread = kernel.thread
        if thread is None:
            return
        thread.used_s += profile.operation_s
        cut_s = self._cut_until.get(node.name, 0.0) - kernel.now
        if cut_s > 0:
            kernel.sleep(cut_s)
        elif profile.wait_rate and kernel.random.random() < profile.wait_rate:
            kernel.sleep(kernel.random.random() * profile.wait_s)
        if self.is_over:
            return
        if kind == "linked":
            if profile.lost_answer_rate and kernel.random.random() < profile.lost_answer_rate:
                self._count("answer of the file server lost")
                number = kernel.random.choice((errno.EEXIST, errno.EIO))
                raise OSError(number, os.strerror(number), path)
        elif profile.error_rate and kernel.random.random() < profile.error_rate:
            self._count("error of a file")
            number = kernel.random.choice(_TRANSIENT)
            raise OSError(number, os.strerror(number), path)

    # --- processes ---

    def begin(self) -> None:
        """Plan the faults."""
        profile = self._world.profile
        self._repeat(profile.worker_kills_per_hour, self._kill_worker)
        self._repeat(profile.supervisor_kills_per_hour, self._kill_supervisor)
        self._repeat(profile.pauses_per_hour, self._pause)
        self._repeat(profile.cuts_per_hour, self._cut)
        self._repeat(profile.node_losses_per_hour, self._lose_node)
        self._repeat(profile.home_losses_per_hour, self._lose_home)
        self._repeat(profile.clock_jumps_per_hour, self._move_clock)
        self._repeat(profile.conductor_kills_per_hour, self._kill_conductor)
        self._repeat(profile.second_conductors_per_hour, self._start_second)
        self._repeat(profile.cancels_per_hour, self._cancel)
        self._repeat(profile.stops_per_hour, self._stop_workers)
        self._repeat(profile.step_cancels_per_hour, self._cancel_step)
        self._repeat(profile.purges_per_hour, self._purge)
        self._repeat(profile.power_cuts_per_hour, self._cut_power)
        self._repeat(profile.full_disks_per_hour, self._fill)
        self._repeat(profile.wipes_per_hour, self._wipe)
        self._repeat(profile.refusals_per_hour, self._refuse)
        self._repeat(profile.preemptions_per_hour, self._preempt)
        self._repeat(profile.silences_per_hour, self._silence)
        if profile.caching is not None:
            self._repeat(3600.0, self._write_back)

    def _repeat(self, per_hour: float, action: Callable[[], None]) -> None:
        if not per_hour:
            return
        kernel = self._world.kernel

        def act() -> None:
            if not self.is_over:
                action()
                kernel.call(kernel.random.expovariate(per_hour / 3600.0), act)

        kernel.call(kernel.random.expovariate(per_hour / 3600.0), act)

    def _some(self, processes: list[Process]) -> Process | None:
        return self._world.kernel.random.choice(processes) if processes else None

    def _live_workers(self) -> list[Process]:
        return [process for process in self._world.workers if process.is_alive]

    def disturb(self, process: Process) -> None:
        """Remember that what a process has written may not reach the conductor in time."""
        self._disturbed[process.pid] = self._world.kernel.now + 60.0

    def was_disturbed(self, process: Process, since: float) -> bool:
        """Tell whether a process was paused or cut off at some time after an attempt has begun."""
        return self._disturbed.get(process.pid, -1.0) >= since

    def _kill_worker(self) -> None:
        worker = self._some(self._live_workers())
        if worker is not None:
            self._count("worker killed")
            self._world.kernel.kill(worker)

    def _kill_supervisor(self) -> None:
        worker = self._some(self._live_workers())
        if worker is not None and worker.parent is not None:
            self._count("supervisor killed")
            self._world.kernel.kill(worker.parent)

    def _pause(self) -> None:
        """Stop a worker, its node, or the conductor for up to a minute."""
        kernel = self._world.kernel
        processes = self._live_workers() + [c.process for c in self._world.conductors if c.process.is_alive]
        process = self._some(processes)
        if process is None:
            return
        until = kernel.now + kernel.random.uniform(1.0, 60.0)
        stopped = [process]
        if kernel.random.random() < 0.5 and process.node not in self._world.homes:
            stopped = list(process.node.processes.values())
        self._count("process paused" if len(stopped) == 1 else "node paused")
        for one in stopped:
            one.paused_until = until
            self.disturb(one)
        kernel.trace(f"{process} and {len(stopped) - 1} others pause until {until:.3f}")

    def _cut(self) -> None:
        """Cut a node off from the file server."""
        kernel = self._world.kernel
        node = kernel.random.choice([*self._world.nodes, *self._world.nodes, self._world.home])
        seconds = kernel.random.choice((2.0, 15.0, 25.0, 45.0, 70.0, 70.0))
        self._cut_until[node.name] = kernel.now + seconds
        for process in node.processes.values():
            self.disturb(process)
        self._count("node cut off")
        kernel.trace(f"{node.name} is cut off for {seconds} s")

    def _lose_node(self) -> None:
        kernel = self._world.kernel
        nodes = [node for node in self._world.nodes if node not in self._world.homes and node.is_up]
        if not nodes:
            return
        node = kernel.random.choice(nodes)
        self._count("node lost")
        kernel.trace(f"{node.name} is lost")
        node.is_up = False
        lost = node.client.crash()
        for process in list(node.processes.values()):
            self._world.files.close_all(process, writes_back=False)
            kernel.exit(process, -9)
        kernel.trace(f"{node.name} has lost {lost} writes")
        self._world.batch.lose(node)
        kernel.call(kernel.random.uniform(5.0, 60.0), lambda: self._boot(node))

    def _lose_home(self) -> None:
        """End the machine of the conductor, which loses what it has not written back."""
        world = self._world
        node = world.kernel.random.choice(world.homes)
        self._count("conductor's machine lost")
        node.client.crash()
        for process in list(node.processes.values()):
            world.files.close_all(process, writes_back=False)
            world.kernel.exit(process, -9)
        node.boots += 1

    def _boot(self, node: Node) -> None:
        node.is_up, node.boots = True, node.boots + 1

    def _move_clock(self) -> None:
        kernel = self._world.kernel
        node = kernel.random.choice([*self._world.nodes, self._world.home])
        node.skew_s += kernel.random.choice((-3600.0, -5.0, 5.0, 3600.0))
        self._count("clock moved")

    def _kill_conductor(self) -> None:
        conductor = self._some([c.process for c in self._world.conductors if c.process.is_alive])
        if conductor is not None:
            self._count("conductor killed")
            self._world.kernel.kill(conductor)

    def _start_second(self) -> None:
        self._count("second conductor")
        self._start_conductor()

    def _start_conductor(self) -> None:
        from simulation.conductors import Conductor

        self._world.maestro.is_cancelled = False
        self._world.conductors.append(Conductor(self._world))

    def _cancel(self) -> None:
        self._count("cancelled")
        self._world.maestro.was_cancelled = True
        self._world.plan.cancel_request.touch()

    def _stop_workers(self) -> None:
        """Let a user stop the workers; a user lets them start again later (`tend`)."""
        world, now = self._world, self._world.kernel.random.random() < 0.3
        self._count("workers stopped by a user")
        world.user("stops", lambda: _ignoring(lambda: request_worker_stop(world.plan.session, None, "a user", now=now)))

    def _cancel_step(self) -> None:
        world = self._world
        name = world.kernel.random.choice(world.maestro.names)
        self._count("step cancelled")
        world.maestro.was_cancelled = True
        world.user("cancels", lambda: _ignoring(lambda: CancelledSteps(world.plan.cancelled_steps).add([name])))

    def _purge(self) -> None:
        world = self._world
        name = world.kernel.random.choice(world.maestro.names)
        self._count("step purged")
        world.maestro.was_cancelled = True
        world.user("purges", lambda: _ignoring(lambda: CancelledSteps(world.plan.purged_steps).add([name])))

    def _cut_power(self) -> None:
        """End the only machine, which loses what it has not synced."""
        world = self._world
        if world.kernel.now < 30.0:  # before the files of the launch are on the disk
            return
        self._count("power cut")
        for process in list(world.home.processes.values()):
            world.kernel.exit(process, -9)
        world.home.boots += 1
        lost = world.server.lose_power(world.kernel.random)
        world.checks.forget()
        world.maestro.submitted.clear()
        world.maestro.ended.clear()  # Maestro does not sync what it stores either
        world.kernel.trace(f"the power is cut, {lost} bytes are lost")

    def _fill(self) -> None:
        kernel = self._world.kernel
        self._world.server.is_full = True
        self._count("disk full")

        def free() -> None:
            self._world.server.is_full = False

        kernel.call(kernel.random.uniform(1.0, 30.0), free)

    def _write_back(self) -> None:
        """Let a client send some of what it has buffered, as kernels do at any time."""
        node = self._world.kernel.random.choice([*self._world.nodes, self._world.home])
        if self._cut_until.get(node.name, 0.0) > self._world.kernel.now:
            return
        for inode in node.client.dirty_files():
            try:
                node.client.write_back(inode, self._world.kernel.random.randint(0, 3))
            except OSError:
                continue

    # --- broker and batch system ---

    def _wipe(self) -> None:
        world = self._world
        if not world.profile.is_private:
            self._count("broker wiped")
            world.broker.wipe()
        elif world.broker.is_up:
            self._count("private broker killed")
            world.broker.die()
            world.kernel.call(world.kernel.random.uniform(1.0, 10.0), self._start_broker)

    def _start_broker(self) -> None:
        try:
            self._world.write_broker(self._world.broker.generation + 1)
        except OSError:  # a full disk
            self._world.kernel.call(2.0, self._start_broker)
            return
        self._world.broker.start_again()

    def _refuse(self) -> None:
        self._count("broker refuses")
        self._world.broker.refuses_until = self._world.kernel.now + self._world.kernel.random.uniform(1.0, 40.0)

    def _preempt(self) -> None:
        if self._world.batch.open_jobs():
            self._count("preemption")
            self._world.batch.preempt()

    def _silence(self) -> None:
        self._count("batch system silent")
        self._world.batch.silent_until = self._world.kernel.now + self._world.kernel.random.uniform(5.0, 90.0)

    # --- the host of the session, and users ---

    def tend(self) -> None:
        """Start a conductor that has died, and the workers of a user that have left while there is work."""
        world = self._world
        kernel = world.kernel
        if not any(c.process.is_alive for c in world.conductors) and not world.is_over:
            if self._resume_at is None:
                if world.maestro.is_over and any(one.has_ended for one in world.conductors):
                    return
                self._resume_at = kernel.now + kernel.random.uniform(*_RESUME_S)
            elif kernel.now >= self._resume_at:
                self._resume_at = None
                self._resume()
        if world.profile.workers == "remote":
            self._tend_workers()
        self._start_stopped()

    def _start_stopped(self) -> None:
        """Let a user start the workers again that a user or a sample has stopped."""
        world = self._world
        session = world.plan.session
        if "resume" in self._start_at or "workers_stopped" not in world.files.outside.list(str(session)):
            return

        def start() -> None:
            del self._start_at["resume"]
            world.user("resumes", lambda: _ignoring(lambda: request_start(session)))

        self._start_at["resume"] = world.kernel.now
        world.kernel.call(world.kernel.random.uniform(5.0, 60.0), start)

    def _resume(self) -> None:
        """Start another conductor, as `maestro-celery resume` does."""
        maestro = self._world.maestro
        maestro.ended = {name: state for name, state in maestro.ended.items() if state != "CANCELLED"}
        self._world.plan.cancel_request.unlink(missing_ok=True)
        self._start_conductor()

    def _tend_workers(self) -> None:
        world = self._world
        if world.is_over or not any(c.process.is_alive for c in world.conductors):
            return
        for node in world.nodes:
            has_worker = any(p.name.startswith("supervisor") for p in node.processes.values())
            if has_worker or not node.is_up:
                self._start_at.pop(node.name, None)
            elif node.name not in self._start_at:
                self._start_at[node.name] = world.kernel.now + world.kernel.random.uniform(*_START_S)
            elif world.kernel.now >= self._start_at[node.name]:
                del self._start_at[node.name]
                world.start_supervisor(node, "", "")
