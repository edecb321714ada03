"""The end of a study's workers at a user's request, and their new start in a study whose conductor runs."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from maestro_celery_plugin.conductor.worker_sources import shared_allocations
from maestro_celery_plugin.config.groups import require_groups, serving_groups
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.report.terminal import command_words
from maestro_celery_plugin.report.unserved_steps import unserved_steps
from maestro_celery_plugin.report.worker_list import ListedWorker, live_workers
from maestro_celery_plugin.study.conductor_lock import await_start, has_conductor
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import (
    StoppedGroups,
    WorkerStop,
    read_stopped,
    request_start,
    request_worker_stop,
)
from maestro_celery_plugin.study.worker_identity import MARKER

__all__ = ["StopRequest", "start_workers_again", "stop_workers"]


class StopRequest:
    """The request to stop workers of a study.

    Args:
        directory: Directory of the study.
        groups: Names of worker groups; all groups when empty.
        now: Whether running samples end as well.

    Attributes:
        plan: The study.
        workers: The live workers of these groups.
        has_conductor: Whether a conductor runs the study.

    Raises:
        StudyError: the study has no such group, or its session does not exist.
    """

    def __init__(self, directory: Path, groups: tuple[str, ...], *, now: bool) -> None:
        self.plan, self.groups, self.now = StudyPlan.read(directory), groups, now
        require_groups(self.plan.settings, groups)
        if not self.plan.session.exists():
            raise StudyError(f"The study '{self.plan.root}' was a dry run; it has no workers.")
        await_start(self.plan)
        self.has_conductor = has_conductor(self.plan)
        self.workers: list[ListedWorker] = [
            worker for worker in live_workers(self.plan) if not groups or worker.group in groups
        ]

    @property
    def question(self) -> str:
        """What will happen, for a user who must agree."""
        running = sum(worker.running for worker in self.workers)
        samples = "1 running sample" if running == 1 else f"{running} running samples"
        workers = "1 worker" if len(self.workers) == 1 else f"{len(self.workers)} workers"
        word = "group" if len(self.groups) == 1 else "groups"
        of_groups = f" of {word} {', '.join(self.groups)}" if self.groups else ""
        verb, again = "ends" if len(self.workers) == 1 else "end", "runs" if running == 1 else "run"
        end = f"{verb} now"
        if running:
            end = f"{verb} now, with {samples}, which {again} again later" if self.now else f"{verb} after {samples}"
        return f"{workers}{of_groups} of '{self.plan.root}' {end}. {self.consequence}"

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to stop: no conductor, which could start workers, and no live worker."""
        return not self.has_conductor and not self.workers

    @property
    def consequence(self) -> str:
        """Which samples wait, as sentences for the user."""
        settings = self.plan.settings
        if not self.groups:
            return "The samples that wait will not run until a resume."
        earlier = read_stopped(self.plan.session)
        requests = (*(earlier.requests if earlier else ()), WorkerStop(groups=self.groups))
        waiting = unserved_steps(settings, StoppedGroups(requests=requests), ())
        steps = ", ".join(step for step in settings.steps if step in waiting)
        sentences = [
            f"The samples of {steps} that wait will not run until a resume."
            if steps
            else "Other worker groups go on with the samples that wait."
        ]
        for allocation, sharing in shared_allocations(settings).items():
            others = [name for name in sharing if name not in self.groups]
            if others and len(others) < len(sharing):
                sentences.append(
                    f"The allocation '{allocation}' stays open for {', '.join(others)}; the stopped workers start "
                    "again in the next one."
                )
        return " ".join(sentences)

    def to_json(self) -> dict[str, Any]:
        """Return the output of `stop-workers --json`; scripts rely on these keys."""
        return {
            "study": str(self.plan.root),
            "groups": list(self.groups) or None,
            "now": self.now,
            "workers": [worker.name for worker in self.workers],
            "has_conductor": self.has_conductor,
        }


def stop_workers(request: StopRequest) -> list[str]:
    """Request the end of workers; return sentences for the user.

    A conductor asks its workers, and starts no others. Without a conductor, the live workers are asked here.

    Raises:
        OSError: a file of the session cannot be written.
    """
    plan, session = request.plan, Session(request.plan.session)
    resume = f"`{command_words('maestro-celery resume', plan.root)}`"
    if not request.has_conductor:
        for worker in request.workers:
            (session.request_worker_stop if request.now else session.request_worker_leave)(worker.name)
        if request.is_empty:
            return ["This study has no conductor and no live workers; nothing is stopped."]
        return [f"Asked to end: {_names(request.workers)}. This study has no conductor; {resume} continues it."]
    who = "sample" if MARKER in os.environ else "user"
    reason = f"A {who} has called `maestro-celery stop-workers`."
    groups: Collection[str] | None = request.groups or None
    if groups is None and Members(session.path).living(without=plan.id):  # other studies have workers as well
        groups = serving_groups(plan.settings)
    request_worker_stop(session.path, groups, reason, now=request.now)
    when = "now" if request.now else "after their running samples"
    ends = f"Workers that end {when}: {_names(request.workers)}." if request.workers else "No worker is alive."
    return [ends, f"{request.consequence} {resume} starts the workers again."]


def _names(workers: list[ListedWorker]) -> str:
    return ", ".join(f"{worker.name} ({worker.node})" for worker in workers)


def start_workers_again(plan: StudyPlan, *, has_options: bool) -> bool:
    """Let the conductor of a study start workers again; return False if it has none, or if no workers are stopped.

    Args:
        plan: The study.
        has_options: Whether the user has given options of `resume` that only a new conductor can follow.

    Raises:
        StudyError: the options have no effect.
        OSError: the request to stop the workers cannot be removed.
    """
    if read_stopped(plan.session) is None or not has_conductor(plan):
        return False
    if has_options:
        raise StudyError(
            f"A conductor of the study '{plan.root}' runs, and its workers are stopped. `maestro-celery resume` "
            "without options lets it start workers again; the options are for a study without a conductor."
        )
    request_start(plan.session)
    return True
