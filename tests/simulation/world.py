"""The world of one simulation: nodes, broker, batch system, study, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maestro_celery_plugin.states import RecordState
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
from simulation.misfortune import Fault, Misfortune, plan_faults
from simulation.profiles import Profile, draw
from simulation.samples import Attempt, Samples
from simulation.studies import GROUP, Study
from simulation.supervisors import run_supervisor
from simulation.transport import Broker
from simulation.users import Users
from simulation.workers import start_worker

__all__ = ["Result", "World", "simulate"]

# After the last fault, and after the end of the study, processes have this long to end.
_END_S = 200.0


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
    """What a simulation has shown.

    Attributes:
        faults: The faults with a time.
    """

    seed: int
    profile: str
    violations: list[str]
    trace_hash: str
    steps: int
    simulated_s: float
    counts: dict[str, int]
    faults: list[Fault]
    log: list[str] | None = None


class World:
    """One simulation.

    Args:
        seed: Its seed.
        profile: Its profile.
        faults: The faults with a time; None for those of the seed.
        keep_log: Whether to keep the trace.
    """

    def __init__(
        self, seed: int, profile: Profile, *, faults: list[Fault] | None = None, keep_log: bool = False
    ) -> None:
        seams.install()
        self.profile = profile
        self.kernel = kernel = Kernel(seed)
        kernel.log = [] if keep_log else None
        self.log = _Log()
        self.start_s = 1.0
        self.faults = plan_faults(profile, kernel.stream) if faults is None else faults
        self.misfortune, self.users = Misfortune(self), Users(self)
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
        self.studies = [Study(number, profile) for number in range(profile.studies)]
        self._study_of = {name: study for study in self.studies for name in study.names}
        self.numbers: dict[str, int] = {}
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

        rng = self.kernel.stream(f"caches of {node.name if node else 'the harness'}")
        return Client(self.server, caching, lambda: self.kernel.now, rng, fault)

    # --- the studies ---

    def create(self) -> None:
        """Create the studies as `maestro run` does."""
        self.server.root.entries["sim"] = self.server.new(0o040000)
        for study in self.studies:
            study.create()
            if not study.number:
                Session.create(study.plan.session)
                self.write_broker()
            study.add_records(self.samples)

    @property
    def plan(self) -> StudyPlan:
        """The plan of the first study, which has begun the session."""
        return self.studies[0].plan

    def study_of(self, name: str) -> Study:
        """Return the study of a step record."""
        return self._study_of[name]

    def study_at(self, root: Path) -> Study:
        """Return the study in a directory."""
        return next(study for study in self.studies if study.root == root)

    def start_conductor(self, study: Study) -> None:
        """Start a process that conducts a study."""
        study.conductors.append(Conductor(self, study))

    def write_broker(self, generation: int = 1) -> None:
        """Store where the broker is, as the host of the session does."""
        location = BrokerLocation(url=f"redis://broker:{generation}")
        if self.profile.is_private:
            location = dataclasses.replace(location, supervisor=(1, 1), generation=str(generation))
        Session(self.plan.session).write_broker(location)

    def user(self, name: str, action: Any) -> Process:
        """Let a user type a command on the conductor's machine; return its process."""
        process = self.kernel.process(self.home, f"user: {name}", action)
        process.on_exit.append(self.on_exit)
        return process

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
            lambda: run_supervisor(supervisor, Session(self.plan.session), GROUP, name, allocation),
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

    def conductor(self, study: Study) -> Conductor | None:
        """Return the conductor of a study with a coordinator that was started last."""
        return next((one for one in reversed(study.conductors) if one.coordinator is not None), None)

    def is_to_be_cancelled(self, study: Study) -> bool:
        """Tell whether no conductor has read a request to cancel a study so far."""
        path = study.plan.cancel_request
        return path.name in self.files.outside.list(str(path.parent))

    def record(self, name: str) -> Any:
        """Return a step record of the present conductor; None without one."""
        conductor = self.conductor(self.study_of(name))
        if conductor is None:
            return None
        found = next((r for r in conductor.coordinator._records if r.manifest.name == name), None)
        if found is not None:
            self.numbers[name] = found.number
        return found

    def leased(self, record: Any) -> int:
        """Return how many samples of a step record have a lease."""
        conductor = self.conductor(self.study_of(record.manifest.name))
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

    def run(self, steps: int, *, stops: bool = False) -> Result:
        """Run to the end of the studies, and check them.

        Args:
            steps: The largest number of steps.
            stops: Whether to stop at the first violation.
        """
        kernel, profile = self.kernel, self.profile
        self.create()
        self.start_conductor(self.studies[0])
        for study in self.studies[1:]:
            kernel.call(kernel.random.uniform(0.0, 20.0), lambda study=study: self.start_conductor(study))
        self.misfortune.begin(self.faults)
        self._look()
        work_s = sum(self.samples.durations[key] * len(script) for key, script in self.samples.scripts.items())
        limit_s = profile.limit_s + 3 * work_s / profile.slots
        is_over = (lambda: self.is_over or bool(self.checks.violations)) if stops else (lambda: self.is_over)
        kernel.run(profile.faults_end_s + limit_s * (1 + profile.repeats_failed), steps, is_over)
        end_s = kernel.now
        if self.is_over:
            kernel.run(end_s + _END_S, steps + 200_000, self._is_empty)
        if not (stops and self.checks.violations):
            self.checks.look()
            self.checks.end()
        kernel.shut_down()
        counts = self._counts()
        return Result(
            0, profile.name, self.checks.violations, kernel.trace_hash, kernel.steps, end_s, counts, self.faults,
            kernel.log,
        )  # fmt: skip

    def _look(self) -> None:
        """Check, start a conductor or workers again, and find out whether the study is over."""
        self.checks.look()
        self.users.tend()
        self.is_over = all(study.has_ended and not self.users.must_repeat(study) for study in self.studies)
        self.kernel.call(1.0, self._look)

    def _is_empty(self) -> bool:
        return not any(node.processes for node in self.kernel.nodes.values()) and not self.batch.open_jobs()

    def _counts(self) -> dict[str, int]:
        attempts = [a for found in self.samples.attempts.values() for a in found]
        counts = {
            "samples": len(self.samples.attempts),
            "attempts started": len(attempts),
            "attempts that ended by themselves": sum(
                1 for a in attempts if a.code is not None and not a.was_ended and not a.killed_worker
            ),
            "attempts that were ended from outside": sum(1 for a in attempts if a.was_ended),
            "attempts that killed their worker": sum(1 for a in attempts if a.killed_worker),
            "samples never tried": sum(1 for found in self.samples.attempts.values() if not found),
            "samples run more than once": sum(1 for found in self.samples.attempts.values() if len(found) > 1),
            "world: studies": len(self.studies),
            "world: conductors": sum(len(study.conductors) for study in self.studies),
            "world: workers": len(self.workers),
            "world: file operations": self.server.operations,
        }
        counts.update({f"samples {what}": number for what, number in self.checks.ends.items()})
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
    seed: int,
    profile: str = "calm",
    steps: int = 2_000_000,
    *,
    faults: list[Fault] | None = None,
    keep_log: bool = False,
    stops: bool = False,
    **changes: Any,
) -> Result:
    """Run the simulation of a seed.

    Args:
        seed: The seed.
        profile: Name of the profile.
        steps: The largest number of steps.
        faults: The faults with a time; None for those of the seed.
        keep_log: Whether the result has the trace.
        stops: Whether to stop at the first violation.
        changes: Values of the profile that differ from those of the seed.
    """
    world = World(seed, dataclasses.replace(draw(profile, seed), **changes), faults=faults, keep_log=keep_log)
    with running(world):
        result = world.run(steps, stops=stops)
    result.seed = seed
    return result
