"""The list of a study's live workers, with what they do now."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.text import Text

from maestro_celery_plugin.config.groups import serving_groups
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import plain, print_table, state_text
from maestro_celery_plugin.report.worker_status import alive_workers, workers
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import is_pool_process, worker_of

__all__ = ["ListedWorker", "live_workers", "print_workers"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedWorker:
    """A live worker.

    Attributes:
        name: Name of the worker.
        group: Its worker group.
        node: Its machine.
        state: Its state.
        slots: How many samples it runs in parallel.
        running: How many samples it runs now, from the ledger.
        task_queues: The task queues that it serves.
        since: Its start (Unix seconds of its machine); None when unknown.
        allocation: Its allocation, such as ``sim/2``; empty outside of an allocation.
    """

    name: str
    group: str
    node: str
    state: WorkerState
    slots: int
    running: int
    task_queues: tuple[str, ...]
    since: float | None
    allocation: str

    def to_json(self) -> dict[str, Any]:
        """Return the worker in the output of `workers --list --json`; scripts rely on these keys."""
        return dataclasses.asdict(self)


def live_workers(plan: StudyPlan) -> list[ListedWorker]:
    """Return the live workers of a study by name.

    Raises:
        StudyError: a file of the study cannot be read.
        OSError: the heartbeats cannot be read.
    """
    session = Session(plan.session)
    reader = StatusReader(plan.root)
    reader.read()
    conducted = has_conductor(plan)
    groups = serving_groups(plan.settings)
    beats = session.heartbeats.all()
    if len(Members(session.path).all()) > 1:  # workers of other studies of the session are not listed
        beats = [beat for beat in beats if beat.group in groups]
    alive = alive_workers(session, beats, conducted=conducted)
    slots, running = _slots(beats, alive), _by_worker(reader.running_samples())
    states = {worker.name: worker.state for worker in workers(beats, alive, running)}
    queues = {name: group.task_queues for name, group in groups.items()}
    return [
        ListedWorker(
            name=beat.name,
            group=beat.group,
            node=beat.node,
            state=states[beat.name],
            slots=slots[beat.name],
            running=running[beat.name],
            task_queues=queues.get(beat.group, ()),
            since=beat.started_at,
            allocation=beat.allocation,
        )
        for beat in beats
        if alive[beat.name] and not is_pool_process(beat.name)
    ]


def _slots(beats: list[Heartbeat], alive: Mapping[str, bool]) -> Counter[str]:
    """Return the slots of each worker: its own, or those of the processes of its pool."""
    slots: Counter[str] = Counter()
    for beat in beats:
        if alive[beat.name]:
            slots[worker_of(beat.name)] += beat.slots
    return slots


def _by_worker(running: Mapping[str, int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for writer, count in running.items():
        counts[worker_of(writer)] += count
    return counts


def print_workers(listed: list[ListedWorker]) -> None:
    """Print the workers as a table for a terminal."""
    headings = {
        "WORKER": "fold", "GROUP": "fold", "NODE": "fold", "STATE": "left", "RUNNING": "right", "TASK QUEUES": "fold",
        "SINCE": "left", "ALLOCATION": "fold",
    }  # fmt: skip
    rows = [
        (
            plain(worker.name),
            plain(worker.group),
            plain(worker.node),
            state_text(worker.state),
            Text(f"{worker.running} of {worker.slots}"),
            plain(", ".join(worker.task_queues)),
            Text("" if worker.since is None else datetime.fromtimestamp(worker.since).strftime("%m-%d %H:%M")),
            plain(worker.allocation),
        )
        for worker in listed
    ]
    print_table(headings, rows)
