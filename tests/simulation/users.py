"""What users and the host of a session do: they start conductors and workers again, and users resume studies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.maestro import reruns, resume
from maestro_celery_plugin.maestro.limits import Limits
from maestro_celery_plugin.maestro.reruns import RerunRequest
from maestro_celery_plugin.study.stopped_workers import request_start
from simulation import kernel as sim
from simulation.studies import Study

__all__ = ["Users", "ignoring", "replace_in_resume"]

# A conductor that has died is started again after this time, by the host of the session or by a user.
_RESUME_S = (3.0, 40.0)
# A user starts the worker of a node again after this time.
_START_S = (1.0, 20.0)
# A user lets workers start again after this time.
_START_AGAIN_S = (5.0, 60.0)


def ignoring(action: Callable[[], Any]) -> None:
    """Do what a user does who ignores an error."""
    with contextlib.suppress(OSError, EnsembleError):
        action()


def replace_in_resume(current_world: Any) -> None:
    """Replace the names of the modules about a resume that need Maestro's pickle, a broker or real processes."""

    class SimReruns(reruns.Reruns):
        def record(self) -> None:
            checks, study = current_world().checks, current_world().study_at(self._plan.root)
            causes = {name: record.causes.copy() for name, record in self._records.items()}
            checks.asks(study, causes, self.misled)
            super().record()
            checks.asked(study, causes)

    resume.Reruns = SimReruns  # type: ignore[misc, assignment]
    resume._prepare_broker = lambda session, broker: None
    resume._end_leftovers = lambda plan: None
    resume.cluster_address = lambda: "home"
    resume.check_address = lambda host: None
    resume.print = lambda *args, **options: None  # type: ignore[attr-defined]
    reruns.load_study = lambda root: root
    reruns.graph_of = lambda root: current_world().study_at(root).graph()


class Users:
    """The users of a world, and the host of its session.

    Args:
        world: The world.
    """

    def __init__(self, world: Any) -> None:
        self._world, self._random = world, world.kernel.stream("users")
        self._start_at: dict[str, float] = {}

    def tend(self) -> None:
        """Start conductors that have died, and the workers of a user that have left while there is work."""
        for study in self._world.studies:
            self._tend_study(study)
        if self._world.profile.workers == "remote":
            self._tend_workers()
        self._start_stopped()

    def _tend_study(self, study: Study) -> None:
        """Start a conductor: the host of the session does it, or a user; repeat failed samples after the end, once."""
        now, is_resuming = self._world.kernel.now, study.resume is not None and study.resume.is_alive
        if study.has_conductor or is_resuming or (study.has_ended and not self.must_repeat(study)):
            study.resumes_at = None
        elif study.resumes_at is None:
            study.resumes_at = now + self._random.uniform(*_RESUME_S)
        elif now >= study.resumes_at:
            study.resumes_at = None
            may_go_on = not (study.needs_user or study.has_ended or self._world.is_to_be_cancelled(study))
            by_host = may_go_on and self._random.random() < 0.5
            if by_host:
                self._world.start_conductor(study)
            else:
                failed = self.must_repeat(study) and (study.has_ended or self._random.random() < 0.3)
                self._resume(study, failed=failed)

    def _resume(self, study: Study, *, failed: bool) -> None:
        """Let a user resume a study; after an error, the user tries again later.

        Args:
            study: The study.
            failed: Whether its failed samples run again.
        """

        def act() -> int:
            try:
                resume._prepare(study.plan, None, None, RerunRequest(failed=failed), Limits())
            except (OSError, EnsembleError) as error:  # a `Timeout` of a lock is an `OSError`
                sim.kernel.trace(f"cannot be resumed now: {error}")
                return 1
            study.needs_user, study.resumes_at = False, None
            study.is_repeated = study.is_repeated or failed
            study.forget()
            self._world.start_conductor(study)
            return 0

        study.resume = self._world.user("resumes --failed" if failed else "resumes", act)

    def must_repeat(self, study: Study) -> bool:
        """Tell whether a user has not let the failed samples of a study run again so far, and will do so."""
        return bool(self._world.profile.repeats_failed and not study.is_repeated and study.conductors)

    def _start_stopped(self) -> None:
        """Let a user start the workers again that a user or a sample has stopped."""
        world = self._world
        session = world.plan.session
        if "resume" in self._start_at or "workers_stopped" not in world.files.outside.list(str(session)):
            return

        def start() -> None:
            del self._start_at["resume"]
            world.user("starts workers", lambda: ignoring(lambda: request_start(session)))

        self._start_at["resume"] = world.kernel.now
        world.kernel.call(self._random.uniform(*_START_AGAIN_S), start)

    def _tend_workers(self) -> None:
        world = self._world
        if world.is_over or not any(study.has_conductor for study in world.studies):
            return
        for node in world.nodes:
            has_worker = any(p.name.startswith("supervisor") for p in node.processes.values())
            if has_worker or not node.is_up:
                self._start_at.pop(node.name, None)
            elif node.name not in self._start_at:
                self._start_at[node.name] = world.kernel.now + self._random.uniform(*_START_S)
            elif world.kernel.now >= self._start_at[node.name]:
                del self._start_at[node.name]
                world.start_supervisor(node, "", "")
