"""The task queues of a study: what waits in them, from the ledger, and which workers serve them.

The broker's number of messages is shown beside, for users who look for a fault; nothing is derived from it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.text import Text

from maestro_celery_plugin.config.groups import serving_groups
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.claims import MessageName
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages
from maestro_celery_plugin.report.model import StepStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import plain, print_table
from maestro_celery_plugin.report.worker_list import ListedWorker, live_workers
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import FINAL_STATES

__all__ = ["TaskQueue", "print_queues", "task_queues"]

# Names that a row shows.
_SHOWN = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskQueue:
    """A task queue of a study.

    Attributes:
        name: Its name in the specification.
        broker_name: Its name at the broker.
        steps: The steps whose samples it holds.
        groups: The worker groups that serve it.
        workers: The live workers that serve it.
        messages: Messages that no slot has taken, from the ledger.
        waiting: Samples of submitted step records that wait.
        running: Samples that run.
        broker_messages: Messages that the broker counts; None without an answer. Messages that have become invalid
            count as well, until a worker drops them.
    """

    name: str
    broker_name: str
    steps: tuple[str, ...]
    groups: tuple[str, ...]
    workers: tuple[str, ...]
    messages: int
    waiting: int
    running: int
    broker_messages: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the queue in the output of `queues --json`; scripts rely on these keys."""
        return dataclasses.asdict(self)


def task_queues(plan: StudyPlan) -> list[TaskQueue]:
    """Return the task queues of a study in the order of its worker groups.

    Raises:
        StudyError: a file of the study cannot be read.
        OSError: the heartbeats cannot be read.
    """
    if not plan.session.exists():
        raise StudyError(f"The study '{plan.root}' was a dry run; it has no task queues.")
    reader = StatusReader(plan.root)
    status, workers = reader.read(), live_workers(plan)
    groups = serving_groups(plan.settings)
    names = list(dict.fromkeys(queue for group in groups.values() for queue in group.task_queues))
    session = Session(plan.session)
    at_broker = _broker_counts(session, names)
    messages = _messages(plan, reader, status.steps)
    records = _by_queue(reader, status.steps)
    return [_queue(plan, session, name, records[name], workers, messages[name], at_broker) for name in names]


def _by_queue(reader: StatusReader, records: list[StepStatus]) -> defaultdict[str, list[StepStatus]]:
    """Return the submitted step records that have not ended, by their task queue: a step may have several queues."""
    found = defaultdict(list)
    for status in records:
        record = reader.record(status.name)
        if record is not None and status.state not in FINAL_STATES:
            found[record.manifest.task_queue].append(status)
    return found


def _queue(
    plan: StudyPlan,
    session: Session,
    name: str,
    records: list[StepStatus],
    workers: list[ListedWorker],
    messages: int,
    at_broker: dict[str, int],
) -> TaskQueue:
    return TaskQueue(
        name=name,
        broker_name=session.queue(name),
        steps=tuple(step for step, facts in plan.settings.steps.items() if name in facts.queues),
        groups=tuple(
            group for group, settings in serving_groups(plan.settings).items() if name in settings.task_queues
        ),
        workers=tuple(worker.name for worker in workers if name in worker.task_queues),
        messages=messages,
        waiting=sum(record.samples.pending for record in records),
        running=sum(record.samples.running for record in records),
        broker_messages=at_broker.get(name),
    )


def _messages(plan: StudyPlan, reader: StatusReader, records: list[StepStatus]) -> Counter[str]:
    """Return the number of valid messages that no slot has taken, by task queue."""
    messages, counts = WaitingMessages(), Counter[str]()
    for _, entries in LedgerReader(plan.ledger, plan.number).poll():
        messages.apply(entries)
    for status in records:
        record = reader.record(status.name)
        if record is not None and status.state not in FINAL_STATES:
            counts[record.manifest.task_queue] += _valid(record.states, messages.of_record(record.manifest.number))
    return counts


def _valid(states: SampleStates, waiting: list[MessageName]) -> int:
    """Return the number of waiting messages with a sample that has no outcome and was not sent again later."""
    latest = np.zeros(len(states), np.uint32)
    for name in sorted(waiting, key=lambda name: name.epoch):
        latest[name.start : name.stop] = name.epoch
    is_open = (states.outcome == Outcome.OPEN) & (latest > states.cancelled_epoch)
    return sum(bool((is_open & (latest == n.epoch))[n.start : n.stop].any()) for n in waiting)


def _broker_counts(session: Session, names: list[str]) -> dict[str, int]:
    """Return the broker's number of messages by task queue; empty without an answer."""
    from maestro_celery_plugin.broker.app import make_app, queue_sizes  # Celery takes long to import

    try:
        sizes = queue_sizes(make_app(session, 5.0), [session.queue(name) for name in names])
    except Exception:  # each transport has its own errors, and the number is a hint only
        return {}
    return dict(zip(names, sizes, strict=True))


def print_queues(queues: list[TaskQueue]) -> None:
    """Print the task queues as a table for a terminal."""
    headings = {
        "TASK QUEUE": "fold", "STEPS": "fold", "WAITING": "right", "RUNNING": "right", "MESSAGES": "right",
        "AT BROKER": "right", "WORKERS": "fold",
    }  # fmt: skip
    rows = [
        (
            plain(queue.name),
            plain(_listed(queue.steps)),
            Text(str(queue.waiting)),
            Text(str(queue.running)),
            Text(str(queue.messages)),
            Text("?" if queue.broker_messages is None else str(queue.broker_messages)),
            plain(_listed(queue.workers) or "none"),
        )
        for queue in queues
    ]
    print_table(headings, rows)


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many others there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
