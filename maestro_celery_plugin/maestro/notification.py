"""The notifications in the conductor: it finds the events of a study, and starts a process for each of them.

The process runs the command (`report/notifier.py`); the conductor does not wait for it. A conductor that is killed
cannot notify: the next one, which the host of the session or a user starts, does what has not been done.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.coordinator import Coordinator
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.plugins import batch_systems
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.python_processes import command_line
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.report.reader import study_state
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.notifications import (
    LOG,
    NOTIFIER_MODULE,
    Event,
    Notified,
    Occurrence,
    notify_command,
    public_environment,
)
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.status_csv import StepRow, read_rows

__all__ = ["Notifications", "notifications_of"]

LOGGER = logging.getLogger(__name__)

# A batch system ends all processes of a job with its script. So inside of an allocation, the process of a conductor
# that has ended and left the study stays this long, at most, until the last command has ended.
ALLOCATION_WAIT_S = 10.0

_OF_STUDIES: dict[Path, Notifications] = {}


def notifications_of(plan: StudyPlan) -> Notifications:
    """Return the notifications of a study in this process; call this function before the coordinator starts.

    Exit handlers run in the reverse order, so that the end is notified when the coordinator has closed, and the state
    is final.
    """
    if plan.root not in _OF_STUDIES:
        _OF_STUDIES[plan.root] = Notifications(plan)
        atexit.register(_OF_STUDIES[plan.root].end)
    return _OF_STUDIES[plan.root]


class Notifications:
    """Starts the command of a study for each event, once.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._watched: Coordinator | None = None
        self._lock = threading.Lock()  # Maestro's thread, and the substitute thread of the coordinator
        self._processes: list[subprocess.Popen[bytes]] = []
        self._has_native = any(not facts.queues for facts in plan.settings.steps.values())
        self._command = ""
        try:
            self._notified = Notified(plan)
            self._command = notify_command(plan)
        except (EnsembleError, OSError) as error:
            LOGGER.warning("There will be no notifications: %s", error)

    def watch(self, coordinator: Coordinator) -> None:
        """Look at a coordinator whenever it looks at its workers."""
        if self._command and coordinator is not self._watched:
            self._watched = coordinator
            coordinator.watchers.append(lambda: self.look(coordinator))

    def look(self, coordinator: Coordinator) -> None:
        """Notify of the first failed sample, and of further allocations."""
        if Event.FAILURE.value not in self._notified:
            self.note_failed(coordinator.failed_records())
        for label in coordinator.further_allocations():
            self._notify_once(f"{Event.REALLOCATION.value} {label}", Event.REALLOCATION, label)

    def note_failed(self, names: Iterable[str]) -> None:
        """Notify of the first of these step records, which have failed or have a failed sample.

        Args:
            names: The names of the step records.
        """
        if self._command and Event.FAILURE.value not in self._notified:
            for name in names:
                self._notify_once(Event.FAILURE.value, Event.FAILURE, name)
                return

    def note_native(self) -> None:
        """Notify of the first failed step record that Maestro has run without the adapter (executiongraph.py:640).

        Raises:
            OSError: the states cannot be read.
        """
        if self._has_native and self._command and Event.FAILURE.value not in self._notified:
            self._note_rows(read_rows(self._plan.root))

    def _note_rows(self, rows: Iterable[StepRow]) -> None:
        self.note_failed(row.name for row in rows if row.state == "FAILED")

    def _notify_once(self, key: str, event: Event, subject: str, state: StudyState = StudyState.RUNNING) -> None:
        with self._lock:
            if key in self._notified:
                return
            try:
                self._notified.add(key)
                self._start(event, state, subject)
            except (EnsembleError, OSError) as error:
                LOGGER.warning("The notify command has not run for the event '%s': %s", key, error)

    def end(self) -> None:
        """Notify of the end, unless this process was a second conductor, which has given up."""
        if not self._command:
            return
        try:
            if has_conductor(self._plan):
                return
            rows = read_rows(self._plan.root)
            state = study_state(self._plan, rows, conducted=False)
            self._note_rows(rows)
            self._notify_once(f"{Event.END.value} {state.name}", Event.END, "", state)
            if self._processes and _is_in_allocation():
                clock.wait_until(lambda: self._processes[-1].poll() is not None, ALLOCATION_WAIT_S, interval_s=0.05)
        except (EnsembleError, OSError) as error:
            LOGGER.warning("The notify command has not run for the end of the study: %s", error)

    def _start(self, event: Event, state: StudyState, subject: str = "") -> None:
        """Start the process for an event; it waits for the one before.

        Raises:
            OSError: it cannot be started.
            StudyError: the environment of the study cannot be read.
        """
        before = [process for process in self._processes if process.poll() is None]
        after = ProcessId.of(before[-1].pid) if before else None
        occurrence = Occurrence(command=self._command, event=event, state=state.name, subject=subject, after=after)
        with (self._plan.info / LOG).open("ab") as log:
            process = subprocess.Popen(
                command_line(NOTIFIER_MODULE, [str(self._plan.root)]),
                env=public_environment(self._plan, os.environ),
                cwd="/",  # Python searches the current directory for modules first
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes = [*before, process]
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # less than a pipe takes without a reader
                process.stdin.write(occurrence.to_json().encode())


def _is_in_allocation() -> bool:
    """Tell whether this process runs in an allocation, whose end would end the command."""
    return any(system.current_allocation(os.environ) for system in batch_systems().values())
