"""The workers that this process has started: they run on this machine, so that their end needs no heartbeat."""

from __future__ import annotations

from collections.abc import Mapping

from maestro_celery_plugin.conductor.local_workers import LocalWorkers
from maestro_celery_plugin.conductor.worker_sources import WorkerSource
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import stem_of, worker_of

__all__ = ["StartedWorkers"]


class StartedWorkers:
    """The workers that this process has started.

    Args:
        session: The session.
        sources: The source of each group.
    """

    def __init__(self, session: Session, sources: Mapping[str, WorkerSource]) -> None:
        self._session, self._sources = session, sources

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is that of a started worker, or of a process of its pool."""
        return isinstance(name, str) and worker_of(name) in self._session.claimed_names

    def has_ended(self, name: str) -> bool:
        """Tell whether a worker, or a process of its pool, was started by this process and has ended."""
        if name not in self:
            return False
        worker, _, pool_process = name.partition(".")
        if pool_process:
            return not ProcessId.of(int(pool_process)).start
        stem = worker.rpartition("-")[0]
        sources = [s for group, s in self._sources.items() if isinstance(s, LocalWorkers) and stem_of(group) == stem]
        last = [other for other in self._session.claimed_names if other.rpartition("-")[0] == stem][-1]
        if len(sources) == 1 and worker != last:
            return True  # a group has one worker at a time
        return all([source.has_ended() for source in sources])
