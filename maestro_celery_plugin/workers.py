"""Worker groups of a study, seen from the conductor's side: which workers live, and starting them."""

from __future__ import annotations

import dataclasses
import logging
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.ledger import SUFFIX
from maestro_celery_plugin.processes import ProcessId, end_marked, host_name, wait_until
from maestro_celery_plugin.session import Heartbeat, Session
from maestro_celery_plugin.settings import WorkerGroupSettings
from maestro_celery_plugin.study import StudyPlan
from maestro_celery_plugin.worker import MARKER, PROCESS_MARKER, WorkerArguments, mark

__all__ = ["WorkerGroup", "WorkerPool"]

LOGGER = logging.getLogger(__name__)

# Workers on other hosts are taken for dead when their heartbeat has not changed for this long.
SILENCE_LIMIT_S = 30.0
# So many workers in a row that end before they have taken a task fail the group's steps.
QUICK_FAILURES = 3
_STOP_LIMIT_S = 15.0
SWEEP_LIMIT_S = 6.0


@dataclasses.dataclass
class WorkerGroup:
    """A worker group.

    Attributes:
        name: Its name in the specification.
        settings: Its block in the specification.
        queues: The task queues it serves.
        failures: Workers in a row that have ended before they took a task.
    """

    name: str
    settings: WorkerGroupSettings
    queues: tuple[str, ...]
    failures: int = 0
    process: subprocess.Popen[bytes] | None = None
    worker: str = ""
    started: int = 0


class WorkerPool:
    """All workers of a study.

    Args:
        plan: The study.
        session: Its session.
        groups: Its worker groups.
    """

    def __init__(self, plan: StudyPlan, session: Session, groups: Iterable[WorkerGroup]) -> None:
        self._plan, self._session = plan, session
        self.groups = {group.name: group for group in groups}
        self._beats: dict[str, tuple[int, float]] = {}
        self.alive: dict[str, Heartbeat] = {}

    def look(self) -> list[Heartbeat]:
        """Find out which workers live; return those that have died since the last time."""
        heartbeats = self._session.heartbeats()
        self.alive = {beat.name: beat for beat in heartbeats if self._lives(beat)}
        return [beat for beat in heartbeats if beat.name not in self.alive]

    def _lives(self, beat: Heartbeat) -> bool:
        if beat.host == host_name():
            return ProcessId(*beat.process).is_alive
        known, since = self._beats.get(beat.name, (-1, 0.0))
        if beat.beat != known:
            self._beats[beat.name] = beat.beat, time.monotonic()
            return True
        return time.monotonic() - since < SILENCE_LIMIT_S

    def kill(self, name: str) -> None:
        """Kill a worker of this machine."""
        beat = self.alive.get(name)
        if beat is not None and beat.host == host_name():
            ProcessId(*beat.process).signal(signal.SIGKILL)

    def bury(self, beat: Heartbeat) -> None:
        """End what a dead worker has left running on this machine, and forget it."""
        if beat.host == host_name():
            supervisor = ProcessId(*beat.supervisor)
            worker, _, pool_process = beat.name.partition(".")
            if pool_process and supervisor.is_alive:
                end_marked(PROCESS_MARKER, mark(self._session, beat.name))
            else:  # the supervisor does this, unless it was killed
                wait_until(lambda: not supervisor.is_alive, SWEEP_LIMIT_S)
                end_marked(MARKER, mark(self._session, worker), spare=frozenset({supervisor.pid}))
        self._session.remove_heartbeat(beat.name)

    def free_slots(self, group: str, held: dict[str, int]) -> int:
        """Return how many slots of a group's live workers hold nothing.

        Args:
            group: The group.
            held: Number of slots that hold something, by worker.
        """
        return sum(
            max(0, beat.slots - held.get(beat.name, 0))
            for beat in self.alive.values()
            if beat.group == group and beat.state in ("idle", "busy")
        )

    def ensure(self, group: WorkerGroup) -> None:
        """See to it that a group has a worker.

        Raises:
            WorkerError: several in a row have ended before they took a task.
        """
        if any(beat.group == group.name for beat in self.alive.values()):
            return
        if group.process is not None:
            if group.process.poll() is None:
                return  # it is starting
            self._note_end(group)
        if group.failures >= QUICK_FAILURES:
            raise WorkerError(
                f"worker group '{group.name}': {group.failures} workers in a row ended before they took a task; "
                f"'{self._log(group.worker)}' ends with:\n{self._log_tail(group.worker)}"
            )
        self._start(group)

    def _note_end(self, group: WorkerGroup) -> None:
        took_a_task = (self._plan.ledger / f"{group.worker}{SUFFIX}").exists()
        group.failures = 0 if took_a_task else group.failures + 1
        group.process = None

    def _start(self, group: WorkerGroup) -> None:
        group.worker = self._new_name(group)
        arguments = WorkerArguments(
            session=self._session.path,
            name=group.worker,
            group=group.name,
            idle_limit_s=group.settings.idle_limit,
            queues=group.queues,
            args=group.settings.args,
        )
        log = self._log(group.worker)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            group.process = subprocess.Popen(
                arguments.command(),
                cwd=self._session.path,  # not the study's: Python looks for modules there first
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        LOGGER.info("Started worker '%s' (pid %d), log '%s'.", group.worker, group.process.pid, log)

    def _new_name(self, group: WorkerGroup) -> str:
        """Return a name that no worker of this study has had."""
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", group.name)
        while True:
            group.started += 1
            name = f"{stem}-{group.started}"
            if not self._log(name).exists():
                return name

    def _log(self, worker: str) -> Path:
        return self._plan.worker_logs / f"{worker}.log"

    def _log_tail(self, worker: str) -> str:
        return self._log(worker).read_text(errors="replace")[-1500:].strip()

    def stop(self) -> None:
        """End all workers and wait until they are gone."""
        self._session.request_stop()
        self.look()
        local = [beat for beat in self.alive.values() if beat.host == host_name()]
        supervisors = {ProcessId(*beat.supervisor) for beat in local}
        for group in self.groups.values():
            if group.process is not None and group.process.poll() is None:
                supervisors.add(ProcessId.of(group.process.pid))
        for supervisor in supervisors:
            supervisor.signal(signal.SIGTERM)
        if not wait_until(lambda: not any(s.is_alive for s in supervisors) and self._reaped(), _STOP_LIMIT_S):
            for supervisor in supervisors:
                supervisor.signal(signal.SIGKILL, group=True)
        for beat in self._session.heartbeats():
            if beat.host == host_name():
                self.bury(beat)

    def _reaped(self) -> bool:
        """Collect the exit statuses of workers that this process has started."""
        return all(g.process is None or g.process.poll() is not None for g in self.groups.values())
