"""Local workers: the source that starts the worker of a group on this machine when there is work."""

from __future__ import annotations

import logging
from pathlib import Path

from maestro_celery_plugin import clock, python_processes
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.files import tail
from maestro_celery_plugin.ledger.entries import SUFFIX
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.python_processes import PythonProcess
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import (
    EXIT_NO_BROKER,
    EXIT_REPLACE,
    WORKER_MODULE,
    claim_name,
    log_of,
    stem_of,
    worker_arguments,
)

__all__ = ["LocalWorkers"]

LOGGER = logging.getLogger(__name__)

# The steps of the group fail after this many workers in a row have ended before they took a task.
MAX_FAILURES = 3
# The delay before the next worker after such an end; it doubles at each further one, up to the limit.
FIRST_DELAY_S, DELAY_LIMIT_S = 1.0, 30.0
# A supervisor exits with 256 minus the signal that has killed its worker.
_KILLED = 256 - 65
# The fault of a connection to the broker is not the fault of the worker, and passes.
_NO_FAILURES = (EXIT_REPLACE, EXIT_NO_BROKER)


class LocalWorkers:
    """Starts the worker of one group.

    Args:
        group: The group.
        session: The session.
        ledger: The ledger of the study, which shows whether a worker has taken a task.
    """

    def __init__(self, group: str, session: Session, ledger: Path) -> None:
        self._group, self._session, self._ledger = group, session, ledger
        self._failures = 0
        self._delay_s, self._not_before = FIRST_DELAY_S, 0.0
        self._process: PythonProcess | None = None
        self._worker = ""
        self._excused: str | None = None

    def ensure(self) -> None:
        """Start a worker, unless the last worker still runs, or has just ended without a task.

        Raises:
            WorkerError: several workers in a row have ended before they took a task.
        """
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._note_end(code)
        if self._failures >= MAX_FAILURES:
            log = log_of(self._session, self._worker)
            raise WorkerError(
                f"worker group '{self._group}': {self._failures} workers in a row have ended before they took a task; "
                f"'{log}' ends with:\n{tail(log)}"
            )
        if clock.monotonic() >= self._not_before:
            self._start()

    def excuse(self) -> None:
        """Record that the last worker was asked to leave, so that its end is no failure."""
        self._excused = self._worker

    def _note_end(self, code: int) -> None:
        # The processes of a pool have their own files.
        files = (f"{self._worker}{SUFFIX}", f"{self._worker}.*{SUFFIX}")
        took_a_task = any(any(self._ledger.glob(pattern)) for pattern in files)
        self._process = None
        if code > _KILLED:
            LOGGER.warning("Worker '%s' was killed (signal %d); its samples run again.", self._worker, 256 - code)
        if self._worker == self._excused:
            return
        if took_a_task:
            self._failures, self._delay_s = 0, FIRST_DELAY_S
            return
        self._not_before = clock.monotonic() + self._delay_s
        self._delay_s = min(2 * self._delay_s, DELAY_LIMIT_S)
        if code not in _NO_FAILURES:
            self._failures += 1
        elif code == EXIT_NO_BROKER:
            LOGGER.warning("Worker '%s' has not reached the broker; another one tries again.", self._worker)

    def _start(self) -> None:
        self._worker = claim_name(self._session, stem_of(self._group))
        log = log_of(self._session, self._worker)
        with log.open("ab") as output:
            arguments = worker_arguments(self._session, self._group, name=self._worker)
            # Not the directory of the study: Python searches the current directory for modules first.
            self._process = python_processes.start(WORKER_MODULE, arguments, self._session.path, output)
        LOGGER.info("Started worker '%s', log '%s'.", self._worker, log)

    @property
    def supervisor(self) -> ProcessId | None:
        """The supervisor of the last worker; None if it has ended."""
        pid = self._process.pid if self._process is not None and self._process.poll() is None else 0
        return ProcessId.of(pid) if pid else None

    def has_ended(self) -> bool:
        """Reap the worker if it has ended; return whether no worker runs."""
        return self._process is None or self._process.poll() is not None
