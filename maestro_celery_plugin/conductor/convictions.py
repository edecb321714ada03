"""Convictions: the workers that must leave the study, because their machine is broken."""

from __future__ import annotations

import contextlib
import logging

from maestro_celery_plugin.conductor.quick_failures import QuickFailures
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.states import how_it_ended
from maestro_celery_plugin.study.broken_machines import BrokenMachine, read_broken_machines, write_broken_machines
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["Convictions"]

LOGGER = logging.getLogger(__name__)


class Convictions:
    """The convicted workers of a study, stored for `status`, `explain` and the next conductor.

    Neither a full disk nor the end of a conductor lets such a worker continue: `enforce` tries again.

    Args:
        plan: The study.
        session: The session.
        failures: The quick failures.
        pool: The worker pool.
    """

    def __init__(self, plan: StudyPlan, session: Session, failures: QuickFailures, pool: WorkerPool) -> None:
        self._path, self._session, self._failures, self._pool = plan.broken_machines, session, failures, pool
        self._machines = read_broken_machines(self._path)
        self._is_stored = True
        self._reported: set[str] = set()
        for machine in self._machines:
            failures.convict(machine.worker)

    def add(self, beat: Heartbeat) -> None:
        """Convict a worker because of its last failures; all processes of its pool leave with it."""
        worker, failures = worker_of(beat.name), self._failures.of(beat.name)
        machine = BrokenMachine(
            node=beat.node, worker=worker, reason=how_it_ended(failures[-1].code), samples=len(failures)
        )
        LOGGER.warning("%s", machine.sentence)
        self._failures.convict(worker)
        self._pool.exclude(beat)
        self._machines.append(machine)
        self._is_stored = False
        self._request_end(worker)

    def enforce(self) -> None:
        """Request the end of the convicted workers that still live, and store the convictions."""
        for worker in {worker_of(name) for name in self._pool.alive if self._failures.is_convicted(name)}:
            self._request_end(worker)
        if not self._is_stored:
            with contextlib.suppress(OSError):
                write_broken_machines(self._path, self._machines)
                self._is_stored = True

    def _request_end(self, worker: str) -> None:
        try:
            if not self._session.worker_stop_requested(worker):
                self._session.request_worker_stop(worker)
        except OSError as error:
            if worker not in self._reported:
                LOGGER.error("Worker '%s' cannot be asked to end: %s", worker, error)
            self._reported.add(worker)
