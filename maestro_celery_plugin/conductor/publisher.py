"""Delivery: samples of step records become messages on the session's broker, again when they were lost."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_celery_plugin.broker.choice import keeper_of, start_private
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.conductor.step_record import MAX_RANGES, Tracker, ranges_of
from maestro_celery_plugin.conductor.step_records import Records
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.processes import wait_until
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session

if TYPE_CHECKING:
    from maestro_celery_plugin.broker.sender import Dispatcher

__all__ = ["Delivery"]

LOGGER = logging.getLogger(__name__)

KEEPER_LIMIT_S = 8.0
SOCKET_TIMEOUT_S = 5.0


class Delivery:
    """The coordinator's end of the broker.

    Args:
        plan: The study.
        session: Its session.
        records: Its step records.
        task_queues: All task queues of the study.

    A broker that is away is tried again at each `care`.
    """

    def __init__(self, plan: StudyPlan, session: Session, records: Records, task_queues: set[str]) -> None:
        self._root, self._session, self._records, self._task_queues = str(plan.root), session, records, task_queues
        self._dispatcher: Dispatcher | None = None
        self._generation: str | None = None

    def _connect(self) -> None:
        from maestro_celery_plugin.broker.app import declare, make_app, queue_for
        from maestro_celery_plugin.broker.sender import Dispatcher

        broker = self._session.read_broker()
        if broker is None or "keeper" in broker:
            start_private(self._session)
            broker = self._session.read_broker() or {}
        app = make_app(self._session, SOCKET_TIMEOUT_S)
        try:
            declare(app, [queue_for(self._session, name) for name in self._task_queues])
        except Exception as cause:  # whatever the transport raises
            raise BrokerError(f"The broker is away: {cause}") from cause
        self._dispatcher = Dispatcher(self._session, app)
        self._generation = broker.get("generation")

    def care(self) -> None:
        """Connect to the broker; start a private one that has died, and send again what it has lost.

        Raises:
            BrokerError: it is away, or does not start.
        """
        if self._dispatcher is not None:
            broker = self._session.read_broker()
            is_private = self._generation is not None
            has_changed = not broker or broker.get("generation") != self._generation
            if not is_private or not (has_changed or keeper_of(self._session) is None):
                return
            LOGGER.warning("The private broker has died; what was queued is sent again.")
            self._dispatcher = None
        self._connect()
        self.send_all()

    def send(self, tracker: Tracker, mask: np.ndarray[Any, Any]) -> None:
        """Send samples under a new epoch, which makes void what was sent of them before.

        The ledger has the epoch before the broker has the message: a message too few is healed, one too
        many could run a sample twice.

        Raises:
            BrokerError: the broker is away.
        """
        tracker.quiet_since = None
        if self._dispatcher is None:
            raise BrokerError("There is no connection to the broker.")
        epoch = tracker.progress.epoch + 1
        self._records.note_lost(tracker, mask & tracker.progress.unended)
        ranges = ranges_of(mask, tracker.progress.outcome != Outcome.OPEN)[:MAX_RANGES]
        for start, stop in ranges:
            self._records.note_sent(tracker, epoch, start, stop)
        self._records.flush()  # a worker on another node that has the message shall find the epoch, too
        for start, stop in ranges:
            task = RangeTask(self._root, tracker.relative, tracker.manifest.number, start, stop, epoch)
            try:
                self._dispatcher.send(task, tracker.manifest.task_queue)
            except Exception as cause:  # whatever the transport raises
                raise BrokerError(f"A message could not be sent: {cause}") from cause
        if ranges:
            self._records.follow()

    def send_all(self) -> None:
        """Send everything again that no worker holds; what is still queued becomes void."""
        for tracker in self._records.with_work():
            if not tracker.stops_early:
                self.send(tracker, tracker.unheld(self._records.held(tracker)))

    def close(self) -> None:
        """Leave the broker; end it if it is private, else leave nothing of the session on it."""
        if self._dispatcher is not None:
            self._dispatcher.close(self._task_queues, delete=self._generation is None)
        keeper = keeper_of(self._session)
        if keeper:
            keeper.signal(signal.SIGTERM)
            wait_until(lambda: not keeper.is_alive, KEEPER_LIMIT_S)
