"""The world of one simulation: nodes, broker, batch system, study, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    StepFacts,
    WorkerGroupSettings,
)
from maestro_celery_plugin.states import RecordState
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import BrokerLocation, Session
from maestro_celery_plugin.worker import supervisor
from simulation import kernel as sim
from simulation import seams, system
from simulation.allocations import Batch
from simulation.checks import Checks
from simulation.conductors import Conductor
from simulation.filesystem import Client, FileServer
from simulation.kernel import EPOCH, Kernel, Node, Process
from simulation.misfortune import Misfortune
from simulation.profiles import Profile, draw
from simulation.samples import Attempt, Samples
from simulation.supervisors import run_supervisor
from simulation.transport import Broker
from simulation.workers import start_worker

__all__ = ["Result", "World", "simulate"]

ROOT = Path("/sim/study")
_GROUP = "w"
# After the last fault, and after the end of the study, processes have this long to end.
_END_S = 200.0


@dataclasses.dataclass
class Maestro:
    """What Maestro stores about a study at each poll, and what the next conductor begins with."""

    names: list[str]
    steps: dict[str, str]
    ended: dict[str, str] = dataclasses.field(default_factory=dict)
    is_cancelled: bool = False
    was_cancelled: bool = False
    was_refused: bool = False

    def ready(self) -> list[str]:
        """Return the step records to submit; the last one depends on the first."""
        waits = len(self.names) > 2 and self.ended.get(self.names[0]) != "FINISHED"
        names = self.names[:-1] if waits else self.names
        return [name for name in names if name not in self.ended]

    @property
    def is_over(self) -> bool:
        """Whether no step record runs or can run."""
        if self.is_cancelled or (len(self.names) > 2 and self.ended.get(self.names[0]) in ("FAILED", "CANCELLED")):
            return all(name in self.ended for name in self.names if name in self.submitted)
        return all(name in self.ended for name in self.names)

    submitted: set[str] = dataclasses.field(default_factory=set)


class _Log(logging.Handler):
    """The log of the product; an unexpected error in it is a fault of the product."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.errors: list[str] = []
        self.lines: list[str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        process = sim.current()
        sim.kernel.trace(f"log of {process}: {record.levelname} {text}")
        if record.exc_info:
            error = "".join(logging.Formatter().formatException(record.exc_info))
            self.errors.append(f"{process}: {text} {error}")


@dataclasses.dataclass
class Result:
    """What a simulation has shown."""

    seed: int
    profile: str
    violations: list[str]
    trace_hash: str
    steps: int
    simulated_s: float
    counts: dict[str, int]
    log: list[str] | None = None


class World:
    """One simulation.

    Args:
        seed: Its seed.
        profile: Its profile.
    """

    def __init__(self, seed: int, profile: Profile, *, keep_log: bool = False) -> None:
        seams.install()
        self.profile = profile
        self.kernel = kernel = Kernel(seed)
        kernel.log = [] if keep_log else None
        self.log = _Log()
        self.start_s = 1.0
        self.misfortune = Misfortune(self)
        self.server = FileServer(lambda: EPOCH + kernel.now)
        self.files = system.Files(self.server, self._client(None))
        self.home = self._node("home", profile.workers == "local")
        self.homes = [self.home, self._node("login", False)] if profile.moves else [self.home]
        self.nodes = (
            [self.home]
            if profile.workers == "local"
            else [self._node(f"n{number}", False) for number in range(profile.nodes)]
        )
        self.workers: list[Process] = []
        # When each worker has begun to take messages.
        self.ready: dict[str, float] = {}
        self.has_lost_workers = False
        self.broker = Broker(kernel, profile)
        self.samples = Samples(kernel, profile)
        self.batch = Batch(self)
        self.checks = Checks(self)
        self.samples.on_begin = self.checks.begin
        self.conductors: list[Conductor] = []
        self.numbers: dict[str, int] = {}
        self.knows_all = True
        self.is_over = False

    def _node(self, name: str, is_server: bool) -> Node:
        node = self.kernel.node(name)
        node.client = self._client(node, caches=not is_server)
        return node

    def _client(self, node: Node | None, *, caches: bool = True) -> Client:
        caching = self.profile.caching if node is not None and caches else None

        def fault(kind: str, path: str) -> None:
            if node is not None:
                self.misfortune.operate(node, kind, path)

        return Client(self.server, caching, lambda: self.kernel.now, self.kernel.random, fault)

    # --- the study ---

    def create(self) -> None:
        """Create the study as `maestro run` does."""
        profile = self.profile
        group: dict[str, Any] = {"task_queues": ("merlin",), "idle_limit": profile.idle_limit_s}
        batch = BatchSettings()
        if profile.workers == "remote":
            group["machines"] = ("n",)
        elif profile.workers == "allocation":
            batch = BatchSettings(
                type="slurm",
                nodes=profile.nodes,
                walltime=f"{profile.walltime_s // 3600:02}:{profile.walltime_s // 60 % 60:02}:00",
            )
        settings = EnsembleSettings(
            batch=batch,
            steps={f"step{n}": StepFacts(queues=("merlin",), sampled=True) for n in range(profile.records)},
            resources=ResourceSettings(workers={_GROUP: WorkerGroupSettings(**group)}, sync_ledger=profile.sync_ledger),
        )
        self.server.root.entries["sim"] = self.server.new(0o040000)
        ROOT.mkdir()
        self.plan = StudyPlan(root=ROOT, timestamp="20270115-080000", settings=settings, id="1")
        (ROOT / "batch.info").write_text(yaml.safe_dump(self.plan.to_batch()))
        self.plan.info.mkdir()
        Session.create(self.plan.session)
        self.write_broker()
        self.manifests: dict[str, Manifest] = {}
        names = [f"step{number}" for number in range(profile.records)]
        for name in names:
            self._add_record(name)
        self.maestro = Maestro(names, {name: name for name in names})

    def write_broker(self, generation: int = 1) -> None:
        """Store where the broker is, as the host of the session does."""
        location = BrokerLocation(url=f"redis://broker:{generation}")
        if self.profile.is_private:
            location = dataclasses.replace(location, supervisor=(1, 1), generation=str(generation))
        Session(self.plan.session).write_broker(location)

    def user(self, name: str, action: Any) -> None:
        """Let a user type a command on the conductor's machine."""
        process = self.kernel.process(self.home, f"user who {name}", action)
        process.on_exit.append(self.on_exit)

    def _add_record(self, name: str) -> None:
        profile = self.profile
        workspace = ROOT / name
        workspace.mkdir()
        manifest = Manifest(
            number=1, name=name, step=name, workspace=str(workspace), script=name, cmd="cmd", restart="restart",
            shell="/bin/bash", sampled=True, samples=profile.samples, labels=[], table=None, index_cache=str(ROOT),
            level_max_dirs=25, task_queue="merlin", max_retries=profile.max_retries,
            retry_delay_s=profile.retry_delay_s, study_id=self.plan.id,
        )  # fmt: skip
        self.manifests[name] = replace(manifest)
        self.samples.add(name, manifest)
        if profile.samples == 1:
            for suffix in (".sh", ".restart.sh"):
                (workspace / f"{name}{suffix}").write_text("#!/bin/bash\n")

    # --- what the code under test asks for ---

    def start_python(self, module: str, arguments: list[str], directory: Path, output: Any) -> Any:
        """Start a worker of a local group."""
        here = sim.current()
        assert here is not None
        name = next((word.partition("=")[2] for word in arguments if word.startswith("--name=")), "")
        process = self.start_supervisor(here.node, name, "")
        return _Python(process)

    def start_supervisor(self, node: Node, name: str, allocation: str) -> Process:
        """Start the supervisor of a worker."""
        process = self.kernel.process(
            node,
            f"supervisor {name or node.name}",
            lambda: run_supervisor(supervisor, Session(self.plan.session), _GROUP, name, allocation),
        )
        process.on_exit.append(self.on_exit)
        return process

    def start_worker(self, arguments: Any, parent: Process) -> Process:
        return start_worker(self, arguments, parent)

    def on_exit(self, process: Process) -> None:
        """Close the files of a process that has ended."""
        self.files.close_all(process)
        if process.code and process.code < 0:
            self.has_lost_workers = True

    # --- what the checks ask for ---

    @property
    def conductor(self) -> Conductor | None:
        """The conductor with a coordinator that was started last."""
        return next((one for one in reversed(self.conductors) if one.coordinator is not None), None)

    def record(self, name: str) -> Any:
        """Return a step record of the present conductor."""
        conductor = self.conductor
        if conductor is None:
            return None
        found = next((r for r in conductor.coordinator._records if r.manifest.name == name), None)
        if found is not None:
            self.numbers[name] = found.number
        return found

    def leased(self, record: Any) -> int:
        conductor = self.conductor
        return 0 if conductor is None else conductor.coordinator._records.leased(record).count

    def may_be_lost(self, attempt: Attempt) -> bool:
        """Tell whether the entry about the end of an attempt may not have reached the conductor."""
        return not attempt.worker.is_alive or self.misfortune.was_disturbed(attempt.worker, attempt.begin)

    def is_disturbed(self, process: Process) -> bool:
        """Tell whether a process was paused or cut off within the last minutes."""
        return self.misfortune.was_disturbed(process, self.kernel.now - 60.0)

    def on_record_end(self, conductor: Conductor, name: str, state: RecordState) -> None:
        self.checks.record_ends(name, state.name)

    # --- running ---

    def run(self, steps: int) -> Result:
        """Run to the end of the study, and check it."""
        kernel, profile = self.kernel, self.profile
        self.create()
        self.conductors.append(Conductor(self))
        self.misfortune.begin()
        self._look()
        work_s = sum(self.samples.durations[key] * len(script) for key, script in self.samples.scripts.items())
        limit_s = profile.faults_end_s + profile.limit_s + 3 * work_s / profile.slots
        kernel.run(limit_s, steps, lambda: self.is_over)
        end_s = kernel.now
        if self.is_over:
            kernel.run(end_s + _END_S, steps + 200_000, self._is_empty)
        self.checks.look()
        self.checks.end()
        kernel.shut_down()
        counts = self._counts()
        return Result(
            kernel.random and 0, profile.name, self.checks.violations, kernel.trace_hash, kernel.steps, end_s, counts,
            kernel.log,
        )  # fmt: skip

    def _look(self) -> None:
        """Check, start a conductor or workers again, and find out whether the study is over."""
        self.checks.look()
        self.misfortune.tend()
        has_ended = self.maestro.is_over and any(one.has_ended for one in self.conductors)
        self.is_over = has_ended and not any(one.process.is_alive for one in self.conductors)
        self.kernel.call(1.0, self._look)

    def _is_empty(self) -> bool:
        return not any(node.processes for node in self.kernel.nodes.values()) and not self.batch.open_jobs()

    def _counts(self) -> dict[str, int]:
        attempts = [a for found in self.samples.attempts.values() for a in found]
        counts = {
            "samples": len(self.samples.attempts),
            "started": len(attempts),
            "ended by themselves": sum(
                1 for a in attempts if a.code is not None and not a.was_ended and not a.killed_worker
            ),
            "ended from outside": sum(1 for a in attempts if a.was_ended),
            "killed their worker": sum(1 for a in attempts if a.killed_worker),
            "never tried": sum(1 for found in self.samples.attempts.values() if not found),
            "conductors": len(self.conductors),
            "workers": len(self.workers),
            "file operations": self.server.operations,
        }
        counts.update({f"again: {reason}": number for reason, number in self.checks.reruns.items()})
        counts.update({f"messages {name}": number for name, number in self.broker.counts.items()})
        counts.update({f"allocations {name}": number for name, number in self.batch.counts.items()})
        counts.update({f"fault: {name}": number for name, number in self.misfortune.counts.items()})
        return counts


class _Python:
    """Stands for a process that `python_processes.start` has started."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        code = self._process.code
        return None if code is None else code

    def kill(self) -> None:
        sim.kernel.kill(self._process)


@contextlib.contextmanager
def running(world: World) -> Iterator[None]:
    """Let a world be the one that the product sees."""
    sim.use(world.kernel)
    system.use(world.files)
    seams.use(world)
    logger = logging.getLogger(seams.PRODUCT)
    logger.addHandler(world.log)
    logger.propagate, level = False, logger.level
    logger.setLevel(logging.INFO)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        logger.removeHandler(world.log)
        logger.setLevel(level)
        system.use(None)
        seams.use(None)


def simulate(
    seed: int, profile: str = "calm", steps: int = 2_000_000, *, keep_log: bool = False, **changes: Any
) -> Result:
    """Run the simulation of a seed.

    Args:
        seed: The seed.
        profile: Name of the profile.
        steps: The largest number of steps.
        keep_log: Whether the result has the trace.
        changes: Values of the profile that differ from those of the seed.
    """
    world = World(seed, dataclasses.replace(draw(profile, seed), **changes), keep_log=keep_log)
    with running(world):
        result = world.run(steps)
    result.seed = seed
    return result
