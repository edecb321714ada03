"""A purge in the conductor: which samples are taken back, and when the step record ends."""

from __future__ import annotations

import pytest
from ensembles import a_study
from filelock import FileLock
from msgspec.structs import replace

from maestro_celery_plugin.conductor.recall import Recall
from maestro_celery_plugin.conductor.step_cancellation import StepCancellation
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.ledger.claims import MessageName, owner_text
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.maestro.purge import Purge
from maestro_celery_plugin.states import Outcome, RecordState
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.session import Session


class Study:
    """A study with a step record, whose samples are sent in two messages."""

    def __init__(self, root) -> None:
        self.plan, manifest = a_study(root)
        self.records = StepRecords(self.plan, {})
        self.records.live_writers = {"w-1": None}
        self.record = self.records.register(manifest)
        self.record.begin(cancelled=False)
        for start, stop in ((0, 5), (5, manifest.samples)):
            self.records.record_sent(self.record, 1, start, stop)
        self.records.flush()
        self.records.follow_own()
        self.records.claims.prepare(1)
        recall = Recall(self.records, is_dead=lambda writer: False, end_worker=lambda writer: None)

        def withdraw(record):
            recall.take_back(record, record.samples.find(Outcome.OPEN) - self.records.leased(record))

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


def test_a_purged_step_record_that_a_new_conductor_submits_ends_without_its_messages(study):
    """Given messages of an earlier conductor, then the step record ends when no worker can take them any more."""
    CancelledSteps(study.plan.purged_steps).add([study.record.manifest.name])

    study.cancellation.apply_to_submitted(study.record)

    assert "`maestro-celery purge` has taken its waiting samples back" in study.record.reason
    assert study.state is RecordState.PENDING
    study.cancellation.apply()
    assert study.state is RecordState.CANCELLED
    assert not study.records.claims.claim(MessageName(1, 1, 0, 5, 0), owner_text("w-1"))


def test_a_cancelled_step_record_that_a_new_conductor_submits_leaves_no_valid_message(study):
    """Given a step record that a user has cancelled while no conductor ran, then messages of the earlier one are invalid."""
    CancelledSteps(study.plan.cancelled_steps).add([study.record.manifest.name])
    study.cancellation.apply()

    study.record.begin(cancelled=False)
    study.cancellation.apply_to_submitted(study.record)

    assert "`maestro-celery cancel --step` has cancelled it" in study.record.reason
    assert study.state is RecordState.CANCELLED
    assert study.record.samples.cancelled_epoch >= 1


@pytest.mark.parametrize("name", ["cancelled_steps", "purged_steps"])
def test_a_complete_step_record_ends_as_finished_although_a_user_has_named_it(study, name):
    CancelledSteps(getattr(study.plan, name)).add([study.record.manifest.name])
    for sample in range(study.record.manifest.samples):
        study.write(Kind.STARTED, sample)
        study.write(Kind.ENDED, sample)

    study.cancellation.apply_to_submitted(study.record)

    assert study.state is RecordState.FINISHED


def test_the_running_samples_of_a_purged_step_record_can_still_be_cancelled(study):
    study.write(Kind.TAKEN, 0, 5)
    study.write(Kind.STARTED, 0)
    study.purge()
    assert study.record.cancelled_at is None, "its running samples would end"

    CancelledSteps(study.plan.cancelled_steps).add([study.record.manifest.name])
    study.cancellation.apply()

    assert study.record.cancelled_at is not None
    assert study.record.samples.cancelled_epoch, "its running samples do not end"


def test_only_samples_of_open_step_records_are_purged(study):
    """Given two step records with waiting samples, one of which is cancelled already, then one is purged."""
    Session.create(study.plan.session).conductors.write(1)
    rows = ["Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params"]
    for number, state in ((1, "RUNNING"), (2, "CANCELLED")):
        workspace = study.plan.root / "sim" / f"X.{number}"
        manifest = replace(study.record.manifest, number=number, name=f"sim_X.{number}", workspace=str(workspace))
        manifest.write(study.plan.records / "sim" / f"X.{number}" / "manifest.json")
        rows.append(f"sim_X.{number},1,sim/X.{number},{state},--:--:--,--:--:--,--,--,--,0,X:{number}")
    (study.plan.root / "status.csv").write_text("\n".join(rows))

    with FileLock(study.plan.conductor_lock):
        purge = Purge(study.plan.root, ())
        named = Purge(study.plan.root, ("sim_X.2",))

    assert purge.waiting == {"sim_X.1": 10}
    assert purge.question.startswith("10 waiting samples of sim_X.1 will not run")
    assert named.waiting == {}
