"""Stopped workers: the conductor asks the workers of stopped groups to leave, and starts no others for these groups."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import StoppedGroups, WorkerStop, read_stopped, stopped_version
from maestro_celery_plugin.study.worker_identity import is_pool_process, worker_of

__all__ = ["StoppedWorkers"]

LOGGER = logging.getLogger(__name__)

# After this time, a heartbeat shows whether a worker has seen that it may continue.
CONTINUE_DELAY_S = 6.0


class StoppedWorkers:
    """Follows the requests to stop workers (`study/stopped_workers.py`).

    Args:
        session: The session.

    Attributes:
        request: The requests in force; None if no workers are stopped.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._version: tuple[int, int] | None = None
        self._asked: set[str] = set()
        self._is_announced = False
        self._resumed_at = float("inf")
        self.request: StoppedGroups | None = None

    def refresh(self) -> None:
        """Read the request if it has changed.

        Raises:
            OSError: the request cannot be read now.
        """
        version = stopped_version(self._session.path)
        if version == self._version:
            return
        request = read_stopped(self._session.path)
        self._session.revoke_leave()  # `ask` asks again whom the requests concern that are in force now
        self._asked.clear()
        self._version, self.request, self._is_announced = version, request, False
        if request is None:
            self._resumed_at = clock.monotonic()
            LOGGER.info("The workers of the study may start again.")
        else:
            LOGGER.info("Workers are asked to end.")  # `announce` says why if the study waits

    def includes(self, group: str) -> bool:
        """Tell whether the conductor must not start workers of a group."""
        return self.request is not None and self.request.include(group)

    def ask(self, beats: Iterable[Heartbeat]) -> None:
        """Ask the live workers that the request concerns to leave.

        Raises:
            OSError: a worker cannot be asked now.
        """
        if self.request is None:
            return
        for beat in beats:
            requests = () if is_pool_process(beat.name) or beat.name in self._asked else self._concerning(beat)
            if not requests:
                continue
            if any(request.now for request in requests):
                self._session.request_worker_stop(beat.name)
            else:
                self._session.request_worker_leave(beat.name)
            self._asked.add(beat.name)

    def spares(self, beat: Heartbeat) -> bool:
        """Tell whether a live worker goes on, such as one that a user has started after the request."""
        return beat.state is not WorkerState.STOPPING and worker_of(beat.name) not in self._asked

    def continues(self, beat: Heartbeat) -> bool:
        """Tell whether a worker takes samples again after the request to leave was revoked."""
        is_known = self.request is None and clock.monotonic() - self._resumed_at >= CONTINUE_DELAY_S
        return is_known and beat.state not in (WorkerState.STARTING, WorkerState.STOPPING)

    def announce(self, study: Path) -> None:
        """Log once for each request that the study waits, and what starts workers again.

        Args:
            study: Directory of the study.
        """
        if self.request is not None and not self._is_announced:
            self._is_announced = True
            LOGGER.warning("%s", self.request.advice(study))

    def _concerning(self, beat: Heartbeat) -> list[WorkerStop]:
        """Return the requests that concern a worker: none for one that a user has started after them."""
        is_from_conductor = beat.is_in_numbered_allocation or beat.name in self._session.claimed_names
        return [
            request
            for request in (self.request.requests if self.request is not None else ())
            if request.include(beat.group) and (is_from_conductor or beat.name in request.workers)
        ]
