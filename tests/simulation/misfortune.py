"""What goes wrong: faults of files, processes, nodes, the broker and the batch system, at the rates of the profile.

The faults with a time are planned at the beginning, each with random numbers of its own. So a list of them is a case for a
test, and a part of a list is a smaller one (`shrink.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
from collections.abc import Callable, Iterable
from typing import Any

from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.stopped_workers import request_worker_stop
from simulation.kernel import Node, Process
from simulation.profiles import Profile
from simulation.studies import Study
from simulation.users import ignoring

__all__ = ["KINDS", "Fault", "Misfortune", "plan_faults"]


_TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)

# The kinds of faults with a time, with the attribute of the profile that says how often they happen.
KINDS = {
    "kill worker": "worker_kills_per_hour",
    "kill supervisor": "supervisor_kills_per_hour",
    "pause": "pauses_per_hour",
    "cut": "cuts_per_hour",
    "lose node": "node_losses_per_hour",
    "lose home": "home_losses_per_hour",
    "move clock": "clock_jumps_per_hour",
    "kill conductor": "conductor_kills_per_hour",
    "second conductor": "second_conductors_per_hour",
    "cancel": "cancels_per_hour",
    "stop workers": "stops_per_hour",
    "cancel step": "step_cancels_per_hour",
    "purge": "purges_per_hour",
    "cut power": "power_cuts_per_hour",
    "fill": "full_disks_per_hour",
    "wipe": "wipes_per_hour",
    "refuse": "refusals_per_hour",
    "preempt": "preemptions_per_hour",
    "silence": "silences_per_hour",
}


@dataclasses.dataclass(frozen=True, order=True)
class Fault:
    """A fault with a time.

    Attributes:
        at: Its time in seconds.
        kind: One of `KINDS`.
        number: Decides what it hits, and for how long.
    """

    at: float
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.at:.3f} s: {self.kind} ({self.number})"


def plan_faults(profile: Profile, stream: Callable[[str], random.Random]) -> list[Fault]:
    """Return the faults of a world in the order of their times."""
    faults = []
    for kind, attribute in KINDS.items():
        rate, rng = getattr(profile, attribute) / 3600.0, stream(f"times of {kind}")
        at = rng.expovariate(rate) if rate else profile.faults_end_s
        while at < profile.faults_end_s:
            faults.append(Fault(round(at, 3), kind, rng.randrange(1 << 16)))
            at += rng.expovariate(rate)
    return sorted(faults)


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
        self._random = random.Random(0)  # of the present fault
        self._cut_until: dict[str, float] = {}
        self._disturbed: dict[int, float] = {}

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def is_over(self) -> bool:
        """Whether no fault begins any more."""
        return bool(self._world.kernel.now >= self._world.profile.faults_end_s)

    # --- files ---

    def operate(self, node: Node, kind: str, path: str) -> None:
        """Let an operation on a file wait, or fail."""
        kernel, profile, rng = self._world.kernel, self._world.profile, node.random
        thread = kernel.thread
        if thread is None:
            return
        thread.used_s += profile.operation_s
        cut_s = self._cut_until.get(node.name, 0.0) - kernel.now
        is_buffered = kind == "write" and profile.caching is not None  # the node needs no server for it
        if cut_s > 0 and not is_buffered:
            kernel.sleep(cut_s)
        elif profile.wait_rate and rng.random() < profile.wait_rate:
            kernel.sleep(rng.random() * profile.wait_s)
        if self.is_over:
            return
        if kind == "linked":
            if profile.lost_answer_rate and rng.random() < profile.lost_answer_rate:
                self._count("answer of the file server lost")
                number = rng.choice((errno.EEXIST, errno.EIO))
                raise OSError(number, os.strerror(number), path)
        elif profile.error_rate and rng.random() < profile.error_rate:
            self._count("error of a file")
            number = rng.choice(_TRANSIENT)
            raise OSError(number, os.strerror(number), path)

    # --- processes ---

    def begin(self, faults: Iterable[Fault]) -> None:
        """Let faults happen at their times."""
        for fault in faults:
            self._world.kernel.call(fault.at, lambda fault=fault: self._happen(fault))
        if self._world.profile.caching is not None:
            self._keep_writing_back(self._world.kernel.stream("write back"))

    def _happen(self, fault: Fault) -> None:
        if self._world.is_over:
            return
        self._random = random.Random(fault.number)
        getattr(self, f"_{fault.kind.replace(' ', '_')}")()

    def _some(self, processes: list[Process]) -> Process | None:
        return self._random.choice(processes) if processes else None

    def _live_workers(self) -> list[Process]:
        return [process for process in self._world.workers if process.is_alive]

    def _guarded_workers(self) -> list[Process]:
        """The live workers whose supervisor lives.

        If somebody kills the supervisor, and kills or stops the worker as well, nobody ends its samples (`limits.md`).
        """
        return [worker for worker in self._live_workers() if worker.parent is None or worker.parent.is_alive]

    def _conductors(self) -> list[Process]:
        return [one.process for study in self._world.studies for one in study.conductors if one.process.is_alive]

    def _some_study(self) -> Study:
        return self._random.choice(self._world.studies)

    def disturb(self, process: Process) -> None:
        """Remember that what a process has written may not reach the conductor in time."""
        self._disturbed[process.pid] = self._world.kernel.now + 60.0

    def was_disturbed(self, process: Process, since: float) -> bool:
        """Tell whether a process was paused or cut off at some time after an attempt has begun."""
        return self._disturbed.get(process.pid, -1.0) >= since

    def _kill_worker(self) -> None:
        worker = self._some(self._guarded_workers())
        if worker is not None:
            self._count("worker killed")
            self._world.kernel.kill(worker)

    def _kill_supervisor(self) -> None:
        now = self._world.kernel.now
        worker = self._some([worker for worker in self._live_workers() if worker.paused_until <= now])
        if worker is not None and worker.parent is not None:
            self._count("supervisor killed")
            self._world.kernel.kill(worker.parent)

    def _pause(self) -> None:
        """Stop a worker, its node, or a conductor for up to a minute."""
        kernel = self._world.kernel
        process = self._some(self._guarded_workers() + self._conductors())
        if process is None:
            return
        until = kernel.now + self._random.uniform(1.0, 60.0)
        stopped = [process]
        if self._random.random() < 0.5 and process.node not in self._world.homes:
            stopped = list(process.node.processes.values())
        self._count("process paused" if len(stopped) == 1 else "node paused")
        for one in stopped:
            one.paused_until = max(one.paused_until, until)
            self.disturb(one)
        kernel.trace(f"{process} and {len(stopped) - 1} others pause until {until:.3f}")

    def _cut(self) -> None:
        """Cut a node off from the file server."""
        kernel = self._world.kernel
        node = self._random.choice([*self._world.nodes, *self._world.nodes, self._world.home])
        seconds = self._random.choice((2.0, 15.0, 25.0, 45.0, 70.0, 70.0))
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
        node = self._random.choice(nodes)
        self._count("node lost")
        kernel.trace(f"{node.name} is lost")
        node.is_up = False
        lost = self._end_all(node)
        kernel.trace(f"{node.name} has lost {lost} writes")
        self._world.batch.lose(node)
        kernel.call(self._random.uniform(5.0, 60.0), lambda: self._boot(node))

    def _lose_home(self) -> None:
        """End the machine of the conductors, which loses what it has not written back."""
        node = self._random.choice(self._world.homes)
        self._count("conductor's machine lost")
        self._world.kernel.trace(f"{node.name} is lost")
        self._end_all(node)
        node.boots += 1
        self._need_users()

    def _end_all(self, node: Node) -> int:
        """End all processes of a node, with what it has not written back; return the number of lost writes."""
        lost = int(node.client.crash())
        for process in list(node.processes.values()):
            self._world.files.close_all(process, writes_back=False)
            self._world.kernel.exit(process, -9)
        return lost

    def _need_users(self) -> None:
        for study in self._world.studies:
            study.needs_user = True

    def _boot(self, node: Node) -> None:
        node.is_up, node.boots = True, node.boots + 1

    def _move_clock(self) -> None:
        node = self._random.choice([*self._world.nodes, self._world.home])
        node.skew_s += self._random.choice((-3600.0, -5.0, 5.0, 3600.0))
        self._count("clock moved")

    def _kill_conductor(self) -> None:
        conductor = self._some(self._conductors())
        if conductor is not None:
            self._count("conductor killed")
            self._world.kernel.kill(conductor)

    def _second_conductor(self) -> None:
        study = self._some_study()
        if self._world.is_to_be_cancelled(study):  # a resume would forget the request, and the host cancels the study
            return
        self._count("second conductor")
        self._world.start_conductor(study)

    def _cancel(self) -> None:
        study = self._some_study()
        self._count("cancelled")
        study.was_cancelled = True
        study.plan.cancel_request.touch()

    def _stop_workers(self) -> None:
        """Let a user stop the workers; a user lets them start again later (`tend`)."""
        session, now = self._world.plan.session, self._random.random() < 0.3
        self._count("workers stopped by a user")
        self._world.user("stops", lambda: ignoring(lambda: request_worker_stop(session, None, "a user", now=now)))

    def _cancel_step(self) -> None:
        self._end_step("step cancelled", lambda plan: plan.cancelled_steps)

    def _purge(self) -> None:
        self._end_step("step purged", lambda plan: plan.purged_steps)

    def _end_step(self, what: str, file_of: Callable[[Any], Any]) -> None:
        study = self._some_study()
        name = self._random.choice(study.names)
        self._count(what)
        study.was_cancelled = True
        self._world.user(what, lambda: ignoring(lambda: CancelledSteps(file_of(study.plan)).add([name])))

    def _cut_power(self) -> None:
        """End the only machine, which loses what it has not synced."""
        world = self._world
        if world.kernel.now < 30.0:  # before the files of the launch are on the disk
            return
        self._count("power cut")
        for process in list(world.home.processes.values()):
            world.kernel.exit(process, -9)
        world.home.boots += 1
        lost = world.server.lose_power(self._random)
        world.checks.forget()
        self._need_users()
        for study in world.studies:
            study.forget()
        world.kernel.trace(f"the power is cut, {lost} bytes are lost")

    def _fill(self) -> None:
        server = self._world.server
        server.is_full = True
        self._count("disk full")

        def free() -> None:
            server.is_full = False

        self._world.kernel.call(self._random.uniform(1.0, 30.0), free)

    def _keep_writing_back(self, rng: random.Random) -> None:
        """Let clients send some of what they have buffered, as kernels do at any time."""
        world = self._world

        def write_back() -> None:
            if self.is_over:
                return
            world.kernel.call(rng.expovariate(1.0), write_back)
            node, count = rng.choice([*world.nodes, world.home]), rng.randint(0, 3)
            if self._cut_until.get(node.name, 0.0) > world.kernel.now:
                return
            for inode in node.client.dirty_files():
                with contextlib.suppress(OSError):  # the next flush reports it
                    node.client.write_back(inode, count)

        world.kernel.call(rng.expovariate(1.0), write_back)

    # --- broker and batch system ---

    def _wipe(self) -> None:
        world = self._world
        if not world.profile.is_private:
            self._count("broker wiped")
            world.broker.wipe()
        elif world.broker.is_up:
            self._count("private broker killed")
            world.broker.die()
            world.kernel.call(self._random.uniform(1.0, 10.0), self._start_broker)

    def _start_broker(self) -> None:
        try:
            self._world.write_broker(self._world.broker.generation + 1)
        except OSError:  # a full disk
            self._world.kernel.call(2.0, self._start_broker)
            return
        self._world.broker.start_again()

    def _refuse(self) -> None:
        self._count("broker refuses")
        self._world.broker.refuses_until = self._world.kernel.now + self._random.uniform(1.0, 40.0)

    def _preempt(self) -> None:
        if self._world.batch.open_jobs():
            self._count("preemption")
            self._world.batch.preempt(self._random)

    def _silence(self) -> None:
        self._count("batch system silent")
        self._world.batch.silent_until = self._world.kernel.now + self._random.uniform(5.0, 90.0)
