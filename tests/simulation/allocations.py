"""The batch system: allocations start late, reach their time limit, are preempted, or are forgotten."""

from __future__ import annotations

import dataclasses
import re
import signal
from pathlib import Path
from typing import Any

from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.errors import BatchSystemUnavailableError
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker import supervisor
from simulation import kernel as sim
from simulation.kernel import ENDLESS, EPOCH, Node, Process
from simulation.supervisors import run_supervisor

__all__ = ["Batch"]


@dataclasses.dataclass
class _Job:
    number: str
    label: str
    group: str
    directory: Path
    walltime_s: float
    state: AllocationState = AllocationState.PENDING
    ends_at: float = ENDLESS
    ended_at: float = 0.0
    supervisors: list[Process] = dataclasses.field(default_factory=list)
    nodes: list[Node] = dataclasses.field(default_factory=list)


class _System:
    """Stands for a batch system as workers see it."""

    type = "slurm"
    gpus_are_per_process = False
    shares_nodes = True

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def current_allocation(self, environ: Any) -> None:
        return None

    def sample_environment(self, environ: Any) -> dict[str, str]:
        return dict(environ)

    def node_cores(self, environ: Any) -> int:
        return 4

    def worker_line(self, group: Any, command: str) -> str:
        return command

    def end_time(self, environ: Any) -> float | None:
        process = sim.current()
        job = self._batch.job_of(process)
        if job is None or process is None:
            return None
        return EPOCH + job.ends_at + process.node.skew_s


class Batch:
    """The batch system and its jobs.

    Args:
        world: The world.
    """

    def __init__(self, world: Any) -> None:
        self._world, self._random = world, world.kernel.stream("batch system")
        self.system = _System(self)
        self._jobs: dict[str, _Job] = {}
        self.silent_until = 0.0
        self.counts = {"submitted": 0, "timed out": 0, "preempted": 0, "completed": 0, "cancelled": 0, "node failed": 0}

    def jobs(self) -> Batch:
        """Return what stands for `BatchJobs`."""
        return self

    def job_of(self, process: Process | None) -> _Job | None:
        """Return the job in which a process runs."""
        while process is not None and process.parent is not None:
            process = process.parent
        return next((job for job in self._jobs.values() if process in job.supervisors), None)

    def open_jobs(self) -> list[_Job]:
        """Return the jobs that wait or run."""
        return [job for job in self._jobs.values() if job.state.is_open]

    def _check(self) -> None:
        sim.kernel.operate()
        if sim.kernel.now < self.silent_until:
            sim.kernel.sleep(1.0)
            raise BatchSystemUnavailableError("the batch system does not answer")

    # --- the interface `Jobs` ---

    def script(self, request: Any, directory: Path) -> Path:
        return directory / "job.sh"

    def submit(self, request: Any, directory: Path) -> str:
        self._check()
        words = request.lines[0]
        label = re.search(r"--allocation=(\S+)", words)[1]  # type: ignore[index]
        number = str(len(self._jobs) + 1)
        job = self._jobs[number] = _Job(number, label, request.name, directory, float(request.walltime_s or 3600))
        self.counts["submitted"] += 1
        sim.kernel.trace(f"job {number} submitted for {label}")
        sim.kernel.call(self._random.random() * self._world.profile.queue_s, lambda: self._begin(job))
        if self._random.random() < 0.02 and sim.kernel.now < self._world.profile.faults_end_s:
            raise BatchSystemUnavailableError("the answer to a submission was lost")
        return number

    def report(self, job: str) -> JobReport:
        self._check()
        found = self._jobs[job]
        if not found.state.is_open and sim.kernel.now - found.ended_at > 300:
            return JobReport(AllocationState.GONE)
        return JobReport(found.state)

    def cancel(self, job: str, directory: Path | None) -> None:
        self._check()
        self._end(self._jobs[job], AllocationState.CANCELLED)

    def find_job(self, directory: Path) -> str | None:
        self._check()
        return next(
            (job.number for job in self._jobs.values() if job.directory == directory and job.state.is_open), None
        )

    # --- the life of a job ---

    def _begin(self, job: _Job) -> None:
        if job.state is not AllocationState.PENDING:
            return
        used = {node.name for other in self.open_jobs() for node in other.nodes}
        free = [n for n in self._world.nodes if n.is_up and n.name not in used]
        if not free:
            sim.kernel.call(5.0, lambda: self._begin(job))
            return
        job.state, job.ends_at = AllocationState.RUNNING, sim.kernel.now + job.walltime_s
        job.nodes = free[: self._world.profile.nodes]
        sim.kernel.trace(f"job {job.number} begins on {[node.name for node in job.nodes]}")
        for node in job.nodes:
            self._start_on(job, node)
        sim.kernel.call(job.walltime_s, lambda: self._end(job, AllocationState.TIMED_OUT))

    def _start_on(self, job: _Job, node: Node) -> None:
        process: Process

        def main() -> int:
            job.supervisors.append(process)
            return run_supervisor(supervisor, Session(self._world.plan.session), job.group, "", job.label)

        process = sim.kernel.process(node, f"supervisor of {job.label}", main)
        process.on_exit.append(lambda ended: self._world.on_exit(ended))
        process.on_exit.append(lambda ended: self._left(job))

    def _left(self, job: _Job) -> None:
        if job.state is AllocationState.RUNNING and not any(p.is_alive for p in job.supervisors):
            sim.kernel.call(0.0, lambda: self._end_now(job, AllocationState.COMPLETED))

    def _finish(self, job: _Job, state: AllocationState) -> None:
        job.state, job.ended_at = state, sim.kernel.now
        key = state.name.lower().replace("_", " ")
        self.counts[key] = self.counts.get(key, 0) + 1
        sim.kernel.trace(f"job {job.number} {state.name}")

    def _end(self, job: _Job, state: AllocationState) -> None:
        """End a job: SIGTERM to its processes, SIGKILL after ten seconds."""
        if not job.state.is_open:
            return
        if job.state is AllocationState.PENDING:
            self._finish(job, state)
            return
        for process in self._processes(job):
            sim.kernel.signal(process, signal.SIGTERM)
        sim.kernel.call(10.0, lambda: self._end_now(job, state))

    def _processes(self, job: _Job) -> list[Process]:
        """Return the processes of a job: everything on its nodes that its workers have started."""
        return [p for node in job.nodes for p in list(node.processes.values())]

    def _end_now(self, job: _Job, state: AllocationState) -> None:
        if not job.state.is_open:
            return
        self._finish(job, state)
        for process in self._processes(job):
            sim.kernel.exit(process, -9)

    def preempt(self, rng: Any) -> None:
        """End a running job for one of higher priority."""
        running = [job for job in self.open_jobs() if job.state is AllocationState.RUNNING]
        if running:
            self._end(rng.choice(running), AllocationState.PREEMPTED)

    def lose(self, node: Node) -> None:
        """End the jobs on a node that has failed."""
        for job in self.open_jobs():
            if node in job.nodes:
                self._finish(job, AllocationState.NODE_FAILED)
                for process in self._processes(job):
                    sim.kernel.exit(process, -9)
