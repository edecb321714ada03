"""Dead workers: the conductor takes their samples back (`WorkerPool.refresh` tells which workers live)."""

from __future__ import annotations

import logging
from collections.abc import Set

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["DeadWorkers"]

LOGGER = logging.getLogger(__name__)

# Interval between two reads of the ledger files of ended workers.
ENDED_WORKERS_INTERVAL_S = 5.0


class DeadWorkers:
    """Finds the workers that have died since the last call, and those that have ended at any time.

    Args:
        pool: The worker pool.
        records: The step records, after `StepRecords.load`.
        has_other_hosts: Whether workers may run on machines other than this one.
    """

    def __init__(self, pool: WorkerPool, records: StepRecords, *, has_other_hosts: bool) -> None:
        self._pool, self._records, self._has_other_hosts = pool, records, has_other_hosts
        self._seen = {*pool.alive, *records.started_writers} - pool.unread
        self._first_missed_at: dict[str, float] = {}
        self._followed_all_at = 0.0
        # Dead workers on other machines. One whose allocation has ended may live, and take further samples.
        self._silent: set[str] = set()

    @property
    def ended(self) -> Set[str]:
        """The workers that have left or died.

        After many allocations, most ledger files belong to such workers. A worker that was only silent may still write.
        """
        return self._seen - self._pool.alive.keys()

    def detect(self) -> bool:
        """Find the workers that have died, and record their running attempts as lost.

        Returns:
            Whether attempts or leases were lost.
        """
        holders = self._records.leases.holders()
        dead = self._pool.refresh()
        for beat in dead:
            LOGGER.warning("Worker '%s' on %s has died.", beat.name, beat.node)
            self._pool.reap(beat)
        self._silent |= {beat.name for beat in dead if not beat.is_here}
        self._silent -= self._pool.alive.keys()
        self._seen.update(self._pool.alive, (beat.name for beat in dead))
        lost = holders.union(beat.name for beat in dead).difference(self._pool.alive, self._pool.unread)
        lost -= self._unseen(lost)
        lost -= self._returned((lost & self._seen).difference(beat.name for beat in dead))
        self._seen |= lost
        if lost or clock.monotonic() - self._followed_all_at > ENDED_WORKERS_INTERVAL_S:
            self._followed_all_at = clock.monotonic()
            self._records.follow(fresh=True)
        if lost:
            # A supervisor reports the death of its worker; if the supervisor is silent as well, the machine has failed.
            on_failed_machines = {writer for writer in lost if self._silent.intersection((writer, worker_of(writer)))}
            is_elsewhere = self._has_other_hosts or not all(writer in self._pool.started for writer in lost)
            self._records.mark_lost(lost - on_failed_machines, is_elsewhere=is_elsewhere)
            self._records.mark_lost(on_failed_machines, external_cause=True, is_elsewhere=True)
        return bool(lost)

    def is_dead(self, writer: str) -> bool:
        """Tell whether a worker counts as dead; a worker that was never seen may have just started."""
        if writer not in self._pool.alive:
            self._pool.refresh()
        if writer in self._pool.alive or writer in self._pool.unread:
            return False
        return writer in self._seen or not self._unseen({writer})

    def _returned(self, writers: set[str]) -> set[str]:
        """Return the writers that live, or may live: they were only silent, and NFS hides their new heartbeats."""
        if not writers or not self._pool.look_again():
            return writers
        return writers & (self._pool.alive.keys() | self._pool.unread)

    def _unseen(self, writers: set[str]) -> set[str]:
        """Return the writers whose ledger is visible, but whose heartbeat may not be visible yet.

        The files are in different directories, which NFS caches separately. A worker that this process has not started
        may be on another machine, also in a study with local groups only (`maestro-celery workers`).
        """
        now = clock.monotonic()
        unseen = {name for name in writers - self._seen if not self._pool.started.has_ended(name)}
        recent = {name for name in unseen if now - self._first_missed_at.setdefault(name, now) < SILENCE_LIMIT_S}
        if recent == unseen or not self._pool.look_again():
            return unseen
        return recent | unseen.intersection(self._pool.alive.keys() | self._pool.unread)
