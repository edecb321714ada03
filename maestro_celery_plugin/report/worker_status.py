"""The status of the workers of a study, from their heartbeats."""

from __future__ import annotations

from collections.abc import Iterator

from maestro_celery_plugin import clock
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.report.model import WorkerStatus
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S, Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import is_pool_process, worker_of

__all__ = ["is_alive", "workers"]


def is_alive(session: Session, beat: Heartbeat, conducted: bool) -> bool:
    """Tell whether a worker is alive; a live conductor removes the heartbeats of dead workers on other machines."""
    if beat.is_here:
        return ProcessId(*beat.process).is_alive
    try:
        written_at = session.heartbeats.path_of(beat.name).stat().st_mtime
    except OSError:  # it was removed meanwhile, or nobody can tell
        return conducted
    return conducted or clock.now() - written_at < SILENCE_LIMIT_S


def workers(beats: list[Heartbeat], alive: dict[str, bool]) -> Iterator[WorkerStatus]:
    """Yield the workers; a process of a pool, with the name ``<worker>.<pid>``, counts as its worker.

    If one of these processes is held, its worker takes no samples.
    """
    busy, held = (
        {worker_of(beat.name) for beat in beats if beat.state is state and alive[beat.name]}
        for state in (WorkerState.BUSY, WorkerState.HELD)
    )
    for beat in beats:
        if not is_pool_process(beat.name):
            state = WorkerState.BUSY if beat.name in busy else beat.state
            state = WorkerState.HELD if beat.name in held else state
            state = state if alive[beat.name] else WorkerState.DEAD
            yield WorkerStatus(
                name=beat.name,
                group=beat.group,
                node=beat.node,
                state=state,
                refused_messages=beat.refused_messages,
            )
