"""The publisher: it sends samples of step records as messages, and sends lost messages again."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import numpy as np

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.app import declare, import_transport, make_app
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.sender import Sender
from maestro_celery_plugin.conductor.recall import Recall
from maestro_celery_plugin.conductor.step_record import MAX_RANGES, StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.host import start as host
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.states import Outcome, RunMode
from maestro_celery_plugin.study.assignment import Assignment
from maestro_celery_plugin.study.members import Member
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["Publisher"]

LOGGER = logging.getLogger(__name__)

HOST_LIMIT_S = 8.0
SOCKET_TIMEOUT_S = 5.0
_ENDS = tuple(outcome for outcome in Outcome if outcome is not Outcome.OPEN)


class Publisher:
    """The coordinator's connection to the broker.

    If the broker does not answer, each call to `maintain` tries again to connect.

    Args:
        plan: The study.
        session: The session.
        records: The step records.
        task_queues: All task queues of the study.
        is_dead: Tells whether a worker counts as dead.
        end_worker: Ends a worker.
    """

    def __init__(
        self,
        plan: StudyPlan,
        session: Session,
        records: StepRecords,
        task_queues: set[str],
        is_dead: Callable[[str], bool],
        end_worker: Callable[[str], None],
    ) -> None:
        self._plan, self._session, self._records, self._task_queues = plan, session, records, task_queues
        self._recall = Recall(records, is_dead, end_worker)
        self._sender: Sender | None = None
        self._generation: str | None = None

    def _connect(self) -> None:
        broker = self._session.read_broker()
        if broker is None or broker.supervisor is not None:
            host.begin(self._session, with_broker=True)
            import_transport()  # while the broker starts
            host.start_broker(self._session)
            broker = self._session.read_broker()
        else:
            host.begin(self._session)
        app = make_app(self._session, SOCKET_TIMEOUT_S, confirms=True)
        try:
            declare(app, self._session, self._task_queues)
        except Exception as cause:  # each transport has its own errors
            raise BrokerError(f"The broker does not answer: {cause}") from cause
        self._sender = Sender(self._session, app)
        self._generation = broker.generation if broker else None

    def maintain(self) -> None:
        """Connect to the broker; restart a private broker that has died, and send its lost messages again.

        Raises:
            BrokerError: the broker does not answer or does not start.
        """
        if self._sender is not None:
            broker = self._session.read_broker()
            is_private = self._generation is not None
            has_changed = broker is None or broker.generation != self._generation
            if not is_private or not (has_changed or host.host_of(self._session) is None):
                return
            LOGGER.warning("The private broker has died; its messages are sent again.")
            self._sender = None
        self._connect()
        self.resend_all()

    def send(self, record: StepRecord, samples: SampleSet) -> None:
        """Send samples under a new epoch, which makes earlier messages about them invalid.

        This method writes the epoch to the ledger before it sends the message. A missing message is sent again later,
        but an additional message could run a sample twice. Samples that a live worker has are not sent, nor those of a
        step record that stops early.

        Raises:
            BrokerError: the broker does not answer.
            OSError: a file of the study cannot be written now.
        """
        record.idle_since = None
        if record.stops_early or record.repeats:
            return
        sender = self._sender
        if sender is None:
            raise BrokerError("There is no connection to the broker.")
        samples = self._recall.take_back(record, samples)
        self._records.record_lost(record, record.samples.find_running(samples))
        epoch = record.samples.epoch + 1
        ranges = self._ranges(record, samples, epoch)
        try:
            self._send_ranges(sender, record, epoch, ranges)
        finally:
            if ranges:  # also after an error: a part of the messages was sent, and no epoch may be used again
                self._records.follow_own()

    def _send_ranges(
        self, sender: Sender, record: StepRecord, epoch: int, ranges: list[tuple[int, int, RunMode]]
    ) -> None:
        """Record that ranges are sent, and send them."""
        for start, stop, _ in ranges:
            self._records.record_sent(record, epoch, start, stop)
        self._records.flush()  # a worker on another node that receives the message must see the epoch
        for start, stop, mode in self._untaken(record, ranges):
            task = RangeTask(
                str(self._plan.root), self._plan.id, record.relative, record.number, start, stop, epoch, mode
            )
            try:
                sender.send(task, record.manifest.task_queue, record.manifest.priority)
            except Exception as cause:  # each transport has its own errors
                raise BrokerError(f"A message cannot be sent: {cause}") from cause

    def _untaken(self, record: StepRecord, ranges: list[tuple[int, int, RunMode]]) -> list[tuple[int, int, RunMode]]:
        """Leave out the ranges of which a worker has just taken samples, if the messages are the first after a resume.

        A power cut may have cost the entry of a message of the earlier conductor, which nobody takes back therefore. A
        worker takes such a message only until it sees the new epoch. A range that is left out counts as a lost message.
        """
        if not record.was_loaded:
            return ranges
        self._records.follow()
        record.was_loaded = False  # not after an error
        leased = self._records.leased(record)
        return [one for one in ranges if not SampleSet.of_range(one[0], one[1]) & leased]

    def withdraw(self, record: StepRecord) -> None:
        """Take back the messages of a step record that no worker has claimed; their samples wait.

        Raises:
            OSError: the claims cannot be made now.
        """
        self._recall.take_back(record, record.samples.find(Outcome.OPEN) - self._records.leased(record))

    def take_back_suspects(self) -> None:
        """Take back the messages of an earlier conductor about suspects (`Recall`).

        Raises:
            OSError: the claims cannot be made now.
        """
        if self._records.suspect_messages:
            self._recall.take_back_suspects()

    def _ranges(self, record: StepRecord, samples: SampleSet, epoch: int) -> list[tuple[int, int, RunMode]]:
        """Return the ranges [start, stop) that cover samples, with their modes.

        If there are too many, the ranges also cover finished samples, and an assignment tells which samples run.
        """
        ranges = record.samples.by_mode(samples)
        if len(ranges) <= MAX_RANGES:
            return ranges
        modes = np.full(record.manifest.samples, RunMode.ASSIGNED, np.uint8)
        for start, stop, mode in ranges:
            modes[start:stop] = mode
        Assignment(self._plan.records / record.relative, epoch).write(modes)
        bridged = samples.bridged(record.samples.find(*_ENDS))[:MAX_RANGES]
        return [(start, stop, RunMode.ASSIGNED) for start, stop in bridged]

    def resend_all(self) -> None:
        """Send all samples without a lease again; messages in the queues become invalid."""
        for record in self._records.with_work():
            self.send(record, record.unassigned(self._records.leased(record)))

    def resend_without_message(self) -> None:
        """Send the samples without a lease and without a message in a task queue, when workers take samples again."""
        for record in self._records.with_work():
            self._resend(record)

    def resend_lost(self) -> None:
        """Send the samples that dead workers have had; those that cannot be sent now, a later call sends.

        Raises:
            BrokerError: the broker does not answer.
        """
        lost = self._records.without_message
        for number in list(lost) if self._sender is not None else ():  # otherwise `maintain` sends all
            record = self._records.by_number(number)
            if record is not None and self._records.has_work(record):
                self._resend(record, SampleSet.joined(lost[number]))
            del lost[number]

    def _resend(self, record: StepRecord, within: SampleSet | None = None) -> None:
        """Send samples of a step record without a lease and without a message; `within` limits the samples."""
        samples = record.unassigned(self._records.leased(record), within)
        samples -= self._records.waiting(record, samples)
        if samples:
            self.send(record, samples)

    def close(self, others: list[Member]) -> None:
        """Close the connection; delete the queues that no other study uses; without other studies, end the host.

        Args:
            others: The other members of the session that live.
        """
        used = {queue for member in others for group in member.groups.values() for queue in group.get("queues", ())}
        if self._sender is not None:
            self._sender.close(self._task_queues - used, delete=self._generation is None)
        process = None if others else host.host_of(self._session)
        if process:
            process.signal(signal.SIGTERM)
            clock.wait_until(lambda: not process.is_alive, HOST_LIMIT_S)
