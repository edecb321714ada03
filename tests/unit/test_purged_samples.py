"""A purge in the conductor: which samples are taken back, and when the step record ends."""

from __future__ import annotations

import pytest
from ensembles import a_study

from maestro_celery_plugin.conductor.recall import Recall
from maestro_celery_plugin.conductor.step_cancellation import StepCancellation
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.ledger.claims import MessageName, owner_text
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import Outcome, RecordState
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps


class Study:
    """A study with a step record, whose samples are sent in two messages."""

    def __init__(self, root) -> None:
        self.plan, manifest = a_study(root)
        self.records = StepRecords(self.plan, {})
        self.records.live_writers = {"w-1"}
        self.record = self.records.register(manifest)
        self.record.begin(cancelled=False)
        for start, stop in ((0, 5), (5, manifest.samples)):
            self.records.record_sent(self.record, 1, start, stop)
        self.records.flush()
        self.records.follow_own()
        self.records.claims.prepare(1)
        recall = Recall(self.records, is_dead=lambda writer: False, end_worker=lambda writer: None)

        def withdraw(record):
            recall.take_back(record, (record.samples.outcome == Outcome.OPEN) & ~self.records.leased(record))

        self.cancellation = StepCancellation(self.plan, self.records, withdraw)
        self.worker = LedgerWriter(self.plan.ledger / f"w-1{SUFFIX}")

    def purge(self) -> None:
        CancelledSteps(self.plan.purged_steps).add([self.record.manifest.name])
        self.cancellation.apply()

    def write(self, kind, *span) -> None:
        self.worker.append(kind, 1, 1, *span)
        self.worker.flush()
        self.records.follow()

    @property
    def state(self) -> RecordState:
        return self.records.state(self.record)


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "study")


def test_a_step_record_without_running_samples_ends(study):
    study.purge()

    assert study.state is RecordState.CANCELLED
    claims = study.records.claims
    assert not any(claims.claim(MessageName(1, 1, *span, 0), owner_text("w-1")) for span in ((0, 5), (5, 10)))


def test_a_message_that_a_worker_has_claimed_is_awaited(study):
    """Given a worker whose entry about a message is not visible yet, then the step record ends after its samples.

    Otherwise, the conductor could end, and with it the samples that run to their end.
    """
    assert study.records.claims.claim(MessageName(1, 1, 0, 5, 0), owner_text("w-1"))

    study.purge()

    assert study.state is RecordState.PENDING
    study.write(Kind.TAKEN, 0, 5)
    study.write(Kind.STARTED, 0)
    assert study.state is RecordState.RUNNING
    study.write(Kind.ENDED, 0)
    study.write(Kind.RELEASED, 0, 5)
    assert study.state is RecordState.CANCELLED
    assert study.record.samples.counts().finished == 1
