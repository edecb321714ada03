"""The monitor: it waits for the end of studies, or until one of them cannot go on by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.host.start import has_host
from maestro_celery_plugin.report.exit_codes import StudyCode, WaitCode, code_of, wait_code_of
from maestro_celery_plugin.report.model import StudyState, StudyStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import command_words, count_words, shortened
from maestro_celery_plugin.states import AllocationState, MemberState, WorkerState
from maestro_celery_plugin.study.conductor_lock import START_LIMIT_S
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import FINAL_STATES

__all__ = ["MonitoredStudy", "growing_pause_s", "monitor"]

# The columns of a line, and of the shortest name in it.
_WIDTH, _LEAST_NAME = 80, 12
_NOT_ALIVE = (WorkerState.DEAD, WorkerState.AWAITED)
# The host of the session starts another conductor within this time if one was killed (`host/conductors.py`).
_RESTART_LIMIT_S = 30.0
# The pause between two looks: a twentieth of the time so far, within these limits; and looks take at most a fifth of
# the time, because each one reads files of a file system that others use as well.
_LEAST_PAUSE_S, _MOST_PAUSE_S, _PART, _PAUSES_PER_LOOK = 0.2, 5.0, 20, 4


def growing_pause_s(waited_s: float, look_s: float) -> float:
    """Return the seconds until the next look at a study: a short study ends the wait within a second.

    Args:
        waited_s: Seconds since the first look.
        look_s: Seconds that the last look took.
    """
    return max(min(max(_LEAST_PAUSE_S, waited_s / _PART), _MOST_PAUSE_S), _PAUSES_PER_LOOK * look_s)


class MonitoredStudy:
    """One of the studies that a monitor waits for.

    Args:
        directory: Directory of the study.
        stall_limit_s: Seconds without a worker and without an open allocation after which the study counts as stalled.

    Attributes:
        status: The last status.
        code: The exit code for this study; None while the monitor must wait for it.

    Raises:
        StudyError: the directory is not that of an ensemble study.
    """

    status: StudyStatus

    def __init__(self, directory: Path, stall_limit_s: float) -> None:
        self._plan = StudyPlan.read(directory)
        self._native = {step for step, facts in self._plan.settings.steps.items() if not facts.queues}
        self._reader, self._stall_limit_s = StatusReader(directory), stall_limit_s
        self._begin = clock.monotonic()
        self._unserved_since: float | None = None
        self._killed_since: float | None = None
        self.code: StudyCode | None = None

    def look(self) -> None:
        """Read the status, and decide whether to wait any longer.

        Raises:
            StudyError: a file of the study cannot be read.
        """
        self.status = self._reader.read()
        now = clock.monotonic()
        if not self._waits_for_workers():
            self._unserved_since = None
        elif self._unserved_since is None:
            self._unserved_since = now
        if self._awaits_conductor(now):
            return
        if self.status.has_ended:
            self.code = code_of(self.status)
        elif self.status.state is StudyState.PENDING and now - self._begin > START_LIMIT_S:
            self.code = StudyCode.UNCONDUCTED
        elif self._unserved_since is not None and now - self._unserved_since > self._stall_limit_s:
            self.code = StudyCode.STALLED

    def _awaits_conductor(self, now: float) -> bool:
        """Whether the conductor was killed, and the host of the session is about to start another one."""
        if self.status.state is not StudyState.INTERRUPTED:
            self._killed_since = None
            return False
        member, session = Members(self._plan.session).read(self._plan.id), Session(self._plan.session)
        if member is None or member.state is not MemberState.RUNNING or not has_host(session):
            return False
        self._killed_since = now if self._killed_since is None else self._killed_since
        return now - self._killed_since < _RESTART_LIMIT_S

    def _waits_for_workers(self) -> bool:
        """Whether submitted step records have samples, but neither a worker nor an open allocation exists for them."""
        status = self.status
        if status.state is not StudyState.RUNNING or any(w.state not in _NOT_ALIVE for w in status.workers):
            return False
        if any(AllocationState[a.state].is_open and a.job is not None for a in status.allocations):
            return False
        submitted = [s for s in status.steps if s.state not in FINAL_STATES and s.state != "INITIALIZED"]
        return bool(submitted) and not any(step.step in self._native for step in submitted)

    @property
    def wait_code(self) -> WaitCode:
        """The exit code of `wait` for this study."""
        return wait_code_of(self.code, self.status.state)

    @property
    def milestone(self) -> Hashable:
        """What changes seldom: the state, how many step records have ended, and whether samples have failed."""
        steps_ended = sum(step.state in FINAL_STATES for step in self.status.steps)
        return self.status.state, steps_ended, self.status.failed_samples > 0, self.code

    @property
    def line(self) -> str:
        """The progress in one line of at most 80 columns, if the numbers are small: what has finished of all."""
        total, ended, running = (
            sum(getattr(step.samples, key) for step in self.status.steps) for key in ("total", "finished", "running")
        )
        failed, steps = self.status.failed_samples, len(self.status.steps)
        workers = sum(worker.state not in _NOT_ALIVE for worker in self.status.workers)
        steps_ended = sum(step.state in FINAL_STATES for step in self.status.steps)
        counts = [f"{ended}/{count_words(total, 'sample')}"] if total else []
        counts += [f"{failed} failed"] if failed else []
        counts += [f"{running} running"] if running else []
        state = "STALLED" if self.code is StudyCode.STALLED else self.status.state.name
        progress = [f"{steps_ended}/{count_words(steps, 'step')}", *counts]
        progress += [count_words(workers, "worker")] if not self.status.has_ended else []
        words = f"  {state}: {', '.join(progress)}"
        return f"{shortened(self.status.path.name, max(_LEAST_NAME, _WIDTH - len(words)))}{words}"

    @property
    def advice(self) -> str:
        """Why the monitor does not wait for the end, and what the user can do; empty if it has waited for it."""
        resume = f"`{command_words('maestro-celery resume', self.status.path)}`"
        if self.code is StudyCode.UNCONDUCTED:
            return f"No conductor runs the study; {resume} continues it."
        if self.status.state is StudyState.DRYRUN:
            return "It was a dry run: nothing runs."
        if self.code is StudyCode.STALLED:
            stopped = self.status.workers_stopped
            why = f"{stopped.sentence} {resume} starts them again." if stopped else "`maestro-celery explain` says why."
            return f"It has stalled: no worker is alive, and no allocation is open. {why}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the study in the output of `monitor --json`; scripts rely on these keys."""
        code = StudyCode.RUNNING if self.code is None else self.code
        return self.status.to_json() | {"code": int(code), "outcome": code.name.lower()}


def monitor(
    studies: Sequence[MonitoredStudy],
    *,
    sleep_s: float | None = None,
    timeout_s: float = math.inf,
    show: Callable[[str], None],
    milestones: bool = False,
) -> StudyCode:
    """Wait until the monitor need not wait for any of the studies; return the highest exit code.

    Args:
        studies: The studies.
        sleep_s: Seconds between two looks; None for pauses that grow.
        timeout_s: Seconds after which the monitor does not wait any longer.
        show: Receives a line when the progress of a study has changed.
        milestones: Whether only the milestones of a study count as a change.

    Raises:
        StudyError: a file of a study cannot be read.
    """
    begin, known = clock.monotonic(), dict[int, Hashable]()
    while True:
        look_begin = clock.monotonic()
        for number, study in enumerate(studies):
            if study.code is None:
                study.look()
                change = study.milestone if milestones else study.line
                if change != known.get(number):
                    known[number] = change
                    show(study.line)
                if study.advice:
                    show(study.advice)
        waits, now = [study for study in studies if study.code is None], clock.monotonic()
        remaining_s = begin + timeout_s - now
        if not waits or remaining_s <= 0:
            return max(StudyCode.RUNNING if study.code is None else study.code for study in studies)
        pause_s = growing_pause_s(now - begin, now - look_begin) if sleep_s is None else sleep_s
        clock.sleep(min(pause_s, remaining_s))
