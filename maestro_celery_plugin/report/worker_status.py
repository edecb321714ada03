"""The status of the workers of a study, from their heartbeats."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator

from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.report.model import WorkerStatus
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import is_pool_process, worker_of

__all__ = ["alive_workers", "workers"]

_BEFORE_WORK = (WorkerState.STARTING, WorkerState.IDLE)


def alive_workers(session: Session, beats: Collection[Heartbeat], *, conducted: bool) -> dict[str, bool]:
    """Tell for each worker whether it is alive.

    Args:
        session: The session.
        beats: The heartbeats.
        conducted: Whether the study has a conductor, which removes the heartbeats of dead workers on other machines.
    """
    fresh: set[str] = set()
    if not conducted and not all(beat.is_here for beat in beats):
        with contextlib.suppress(OSError):  # nobody can tell
            fresh = {beat.name for beat in session.heartbeats.fresh(beats)}
    return {
        beat.name: ProcessId(*beat.process).is_alive if beat.is_here else conducted or beat.name in fresh
        for beat in beats
    }


def workers(beats: list[Heartbeat], alive: dict[str, bool], running: Iterable[str] = ()) -> Iterator[WorkerStatus]:
    """Yield the workers; a process of a pool, with the name ``<worker>.<pid>``, counts as its worker.

    If one of these processes is held, its worker takes no samples.

    Args:
        beats: The heartbeats.
        alive: Whether each of them is alive.
        running: Those with running samples in the ledger, which may be newer than a heartbeat.
    """
    running = set(map(worker_of, running))
    busy, held = (
        {worker_of(beat.name) for beat in beats if beat.state is state and alive[beat.name]}
        for state in (WorkerState.BUSY, WorkerState.HELD)
    )
    for beat in beats:
        if not is_pool_process(beat.name):
            is_busy = beat.name in busy or (beat.state in _BEFORE_WORK and beat.name in running)
            state = WorkerState.BUSY if is_busy else beat.state
            state = WorkerState.HELD if beat.name in held else state
            state = state if alive[beat.name] else WorkerState.DEAD
            yield WorkerStatus(
                name=beat.name,
                group=beat.group,
                node=beat.node,
                state=state,
                refused_messages=beat.refused_messages,
            )
