"""The source of a group's workers on this machine: one worker process, started when there is work."""

from __future__ import annotations

import logging
import signal
import subprocess
from pathlib import Path

from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.ledger.reader import SUFFIX
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.__main__ import stem_of, worker_command

__all__ = ["LocalWorkers"]

LOGGER = logging.getLogger(__name__)

# So many workers in a row that end before they have taken a task fail the group's steps.
QUICK_FAILURES = 3


class LocalWorkers:
    """Starts the worker of one group.

    Args:
        group: The group.
        session: The session it works for.
        ledger: The study's ledger, which tells whether a worker has taken a task.
    """

    def __init__(self, group: str, session: Session, ledger: Path) -> None:
        self._group, self._session, self._ledger = group, session, ledger
        self._failures = self._started = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._worker = ""

    def ensure(self) -> None:
        """Start a worker, unless one is starting.

        Raises:
            WorkerError: several in a row have ended before they took a task.
        """
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._note_end()
        if self._failures >= QUICK_FAILURES:
            log = self._session.worker_log(self._worker)
            raise WorkerError(
                f"worker group '{self._group}': {self._failures} workers in a row ended before they took a task; "
                f"'{log}' ends with:\n{log.read_text(errors='replace')[-1500:].strip()}"
            )
        self._start()

    def _note_end(self) -> None:
        took_a_task = (self._ledger / f"{self._worker}{SUFFIX}").exists()
        self._failures = 0 if took_a_task else self._failures + 1
        self._process = None

    def _start(self) -> None:
        self._worker = self._session.claim_worker_name(stem_of(self._group))
        log = self._session.worker_log(self._worker)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                worker_command(self._session, self._group, name=self._worker),
                cwd=self._session.path,  # not the study's: Python looks for modules there first
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        LOGGER.info("Started worker '%s' (pid %d), log '%s'.", self._worker, self._process.pid, log)

    @property
    def supervisor(self) -> ProcessId | None:
        """The process that was started last, if it still runs."""
        if self._process is None or self._process.poll() is not None:
            return None
        return ProcessId.of(self._process.pid)

    def reap(self) -> bool:
        """Collect the exit status of the worker; return whether it has ended."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """Kill the worker and its samples."""
        if self.supervisor is not None:
            self.supervisor.signal(signal.SIGKILL, group=True)
