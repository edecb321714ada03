"""The status of a large study is kept at hand while the study runs, so that the first `status` of a user is fast.

The conductor cannot write the file of `report/status_cache.py` itself: it does not know durations, rates and usage, and
would have to collect them for each sample. It starts a process (`report/status_writer.py`) that reads what is new.
"""

from __future__ import annotations

import subprocess

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.coordinator import Coordinator
from maestro_celery_plugin.python_processes import command_line

__all__ = ["keep_status"]

_MODULE = "maestro_celery_plugin.report.status_writer"
# Seconds between two looks at the number of samples that have ended.
_INTERVAL_S = 30.0
# The process starts after so many samples have ended, and so large a part of all that have ended: it reads and writes
# what it knows of each sample, so that it would otherwise take longer and longer.
_LEAST_ENDED, _PART = 1_000_000, 20


def keep_status(coordinator: Coordinator) -> None:
    """Keep the status of the study of a coordinator at hand until its end; further calls do nothing."""
    if not any(isinstance(watcher, _StatusKeeper) for watcher in coordinator.watchers):
        coordinator.watchers.append(_StatusKeeper(coordinator))


class _StatusKeeper:
    """Starts the process again and again, whenever much is new."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator, self._due_at, self._stored = coordinator, 0.0, 0
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Start the process if it is time.

        Raises:
            OSError: it cannot be started.
        """
        if clock.monotonic() < self._due_at:
            return
        self._due_at = clock.monotonic() + _INTERVAL_S
        ended = self._coordinator.ended_samples
        if ended - self._stored < max(_LEAST_ENDED, ended // _PART):
            return
        if self._process is not None and self._process.poll() is None:
            return
        self._stored = ended
        self._process = subprocess.Popen(
            command_line(_MODULE, [str(self._coordinator.plan.root)]),
            cwd="/",  # Python searches the current directory for modules first
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # without the file, `status` reads the ledger, and says what is wrong with it
            start_new_session=True,
        )
