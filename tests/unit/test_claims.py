"""Claims: a message is claimed once, its owner is known, and the coordinator can take it back."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from ensembles import a_study

from maestro_celery_plugin.conductor import recall
from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.recall import Recall
from maestro_celery_plugin.conductor.step_record import MAX_RANGES
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.claims import Claims, MessageName, owner_text
from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, SUFFIX, Kind
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.store import Store
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import Outcome, RunMode
from maestro_celery_plugin.study.assignment import Assignment

NAME = MessageName(record=1, epoch=2, start=3, stop=9)


@pytest.fixture
def claims(tmp_path):
    claims = Claims(tmp_path / "claims", 7)
    claims.prepare(1)
    return claims


def test_a_message_is_claimed_once_and_for_ever(claims):
    assert claims.owner(NAME) is None
    assert claims.claim(NAME, owner_text("w-1"))
    assert not claims.claim(NAME, owner_text("w-2"))
    assert not claims.claim(NAME, owner_text("w-1"))  # the same message again, at the same worker
    assert claims.owner(NAME) == "w-1"


@pytest.mark.parametrize("change", [{"record": 2}, {"epoch": 3}, {"start": 4}, {"stop": 8}, {"series": 1}, {"start": 5000, "stop": 5001}])
def test_messages_with_different_names_have_different_claims(claims, change):
    claims.prepare(2)
    assert claims.claim(NAME, owner_text("w-1"))
    assert claims.claim(NAME._replace(**change), owner_text("w-2"))


def test_a_process_of_a_pool_owns_its_claims(claims):
    claims.claim(NAME, owner_text("w-1.4711"))
    assert claims.owner(NAME) == "w-1.4711"


class RepeatingStore(Store):
    """A file server whose answer to the first request is lost, so that the client repeats the request."""

    def link(self, target, path):
        super().link(target, path)
        super().link(target, path)


def test_a_claim_whose_answer_was_lost_belongs_to_its_writer(tmp_path):
    claims = Claims(tmp_path / "claims", 7, RepeatingStore())
    claims.prepare(1)
    owner = owner_text("w-1")
    assert claims.claim(NAME, owner)
    assert claims.claim(NAME, owner)  # the same claim, tried again after an error
    assert not Claims(tmp_path / "claims", 7).claim(NAME, owner_text("w-2"))


def test_a_worker_of_an_earlier_launch_makes_no_claim_in_a_new_study(tmp_path):
    """Given a study that was launched again in the same directory, then a claim of the old worker fails."""
    Claims(tmp_path / "claims", 8).prepare(1)
    with pytest.raises(FileNotFoundError):
        Claims(tmp_path / "claims", 7).claim(NAME, owner_text("w-1"))
    assert Claims(tmp_path / "claims", 8).claim(NAME, owner_text("w-1"))


def test_a_file_system_without_symbolic_links_is_refused(tmp_path, monkeypatch):
    claims = Claims(tmp_path / "claims", 7)
    claims.check()
    assert os.listdir(tmp_path / "claims" / f"{7:016x}") == []

    def fail(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", fail)
    with pytest.raises(StudyError, match=r"cannot make symbolic links \(Operation not permitted\).*--out or OUTPUT_PATH"):
        claims.check()


# --- taking back -------------------------------------------------------------------------------------


class Conductor:
    """The step records and the publisher of a study with ten samples."""

    def __init__(self, root, **changes) -> None:
        self.plan, manifest = a_study(root, **changes)
        self.dead: set[str] = set()
        groups = {"w": WorkerGroupSettings(task_queues=("merlin",))}
        self.records = StepRecords(self.plan, groups)
        self.publisher = Publisher(self.plan, None, self.records, {"merlin"}, self.dead.__contains__, self.dead.add)
        self.publisher._sender = self
        self.sent: list = []
        self.record = self.records.register(manifest)
        self.record.begin(cancelled=False)
        self.claims = Claims(self.plan.claims, self.plan.number)

    def send(self, task, task_queue="merlin", level=5):
        self.sent.append(task)

    def resend(self):
        """Send all samples without a lease; return the ranges of the messages."""
        self.sent.clear()
        self.publisher.send(self.record, self.record.unassigned(self.records.leased(self.record)))
        return [(task.start, task.stop, task.epoch, task.mode) for task in self.sent]

    def as_worker(self, name, *rows):
        """Write entries of a worker: (kind, epoch, start, stop)."""
        writer = LedgerWriter(self.plan.ledger / f"{name}{SUFFIX}")
        for kind, epoch, start, stop, *code in rows:
            writer.append(kind, 1, epoch, start, stop, code=code[0] if code else 0)
        writer.close()


@pytest.fixture
def conductor(tmp_path):
    return Conductor(tmp_path / "study")


FIRST = RunMode.FIRST


def test_a_message_is_taken_back_before_its_samples_are_sent_again(conductor):
    assert conductor.resend() == [(0, 10, 1, FIRST)]
    assert conductor.resend() == [(0, 10, 2, FIRST)]

    assert not conductor.claims.claim(MessageName(1, 1, 0, 10), owner_text("w-1"))
    assert conductor.claims.claim(MessageName(1, 2, 0, 10), owner_text("w-1"))


def test_samples_whose_message_a_worker_has_claimed_a_moment_ago_are_not_sent_again(conductor):
    """The entry of the worker is not visible yet; its claim is."""
    conductor.resend()
    conductor.claims.claim(MessageName(1, 1, 0, 10), owner_text("w-1"))

    assert conductor.resend() == []
    conductor.dead.add("w-1")
    assert conductor.resend() == [(0, 10, 2, FIRST)]


def test_a_live_worker_that_has_claimed_a_message_and_does_not_run_it_is_ended(conductor, advance_clock):
    conductor.resend()
    conductor.claims.claim(MessageName(1, 1, 0, 10), owner_text("w-1"))

    assert conductor.resend() == []
    advance_clock(recall.CLAIM_LIMIT_S + 1)
    assert conductor.resend() == []
    assert conductor.dead == {"w-1"}  # the conductor of this test counts a worker as dead that it has ended
    assert conductor.resend() == [(0, 10, 2, FIRST)]


def test_the_part_that_a_worker_has_sent_is_taken_back_and_its_own_part_is_not_sent(conductor):
    conductor.resend()
    conductor.claims.claim(MessageName(1, 1, 0, 10), owner_text("w-1"))
    conductor.as_worker("w-1", (Kind.TAKEN, 1, 0, 10), (Kind.PASSED, 1, 6, 10), (Kind.PASSED, 1, 2, 6))
    conductor.records.follow()

    assert conductor.resend() == [(2, 10, 2, FIRST)]
    assert not any(conductor.claims.claim(MessageName(1, 1, *part), owner_text("w-2")) for part in ((2, 6), (6, 10)))


def test_a_dead_worker_whose_entries_become_visible_late_keeps_its_samples_until_they_are_lost(conductor):
    """Given a worker that counts as dead, then its entries are read before its messages are given to others."""
    conductor.resend()
    conductor.claims.claim(MessageName(1, 1, 0, 10), owner_text("w-1"))
    conductor.as_worker("w-1", (Kind.TAKEN, 1, 0, 10), (Kind.STARTED, 1, 0, 0), (Kind.ENDED, 1, 0, 1000))
    conductor.dead.add("w-1")

    assert conductor.resend() == []
    conductor.records.mark_lost(["w-1"])
    assert conductor.resend() == [(1, 10, 2, FIRST)]


def test_after_a_hard_failure_no_sample_is_sent_also_by_a_new_conductor(conductor):
    conductor.resend()
    conductor.as_worker("w-1", (Kind.TAKEN, 1, 0, 10), (Kind.ENDED, 1, 0, 1000, 102), (Kind.RELEASED, 1, 0, 10))
    conductor.records.follow()

    assert conductor.record.unassigned(conductor.records.leased(conductor.record))
    assert conductor.resend() == []


@pytest.mark.parametrize("late", [[], [(Kind.STARTED, 1, 0, 0)], [(Kind.STARTED, 1, 0, 0), (Kind.ENDED, 1, 0, 1000, 1)]])
def test_the_late_entries_of_a_dead_worker_do_not_change_the_attempt_of_another_worker(conductor, late):
    """Given a worker that has claimed a message and died, then its entries become visible when others have the samples."""
    conductor.resend()
    conductor.claims.claim(MessageName(1, 1, 0, 10), owner_text("w-1"))
    conductor.dead.add("w-1")
    assert conductor.resend() == [(0, 10, 2, FIRST)]
    conductor.as_worker("w-2", (Kind.TAKEN, 2, 0, 10), (Kind.STARTED, 2, 0, 0))
    conductor.records.follow()

    conductor.as_worker("w-1", (Kind.TAKEN, 1, 0, 10), *late)
    conductor.records.follow()
    conductor.records.mark_lost(["w-1"], is_elsewhere=True)

    samples = conductor.record.samples
    assert samples.outcome[0] == Outcome.OPEN
    assert samples.running.tolist() == [True] + 9 * [False]
    assert samples.losses[0] == 0


def test_a_new_conductor_takes_back_the_messages_of_the_earlier_one(conductor):
    conductor.resend()
    conductor.as_worker("w-1", (Kind.TAKEN, 1, 0, 5))  # another message than that of the conductor

    records = StepRecords(conductor.plan, {"w": WorkerGroupSettings(task_queues=("merlin",))})
    records.load(alive=tuple)
    (record,) = records
    free = Recall(records, set().__contains__, set().add).take_back(record, SampleSet.of_range(0, 10))

    assert free.ranges() == [(0, 10)]
    assert conductor.claims.owner(MessageName(1, 1, 0, 10)) == COORDINATOR


def test_samples_that_have_finished_after_a_damaged_entry_are_not_sent_again(conductor):
    """Given a dead worker with a damaged entry in its file, then a new conductor counts what follows the entry."""
    conductor.resend()
    ends = [(Kind.ENDED, 1, sample, 1000) for sample in range(10)]
    conductor.as_worker("w-1", (Kind.TAKEN, 1, 0, 10), *ends, (Kind.RELEASED, 1, 0, 10))
    file = conductor.plan.ledger / f"w-1{SUFFIX}"
    data = bytearray(file.read_bytes())
    data[5 * ENTRY.itemsize + 3] ^= 1  # the head, TAKEN, the ends of samples 0 to 2, then that of sample 3
    file.write_bytes(data)

    records = StepRecords(conductor.plan, {"w": WorkerGroupSettings(task_queues=("merlin",))})
    records.load(alive=tuple)
    (record,) = records

    assert np.flatnonzero(record.samples.outcome == Outcome.OPEN).tolist() == [3]


def test_the_directory_of_the_claims_exists_before_a_message_is_sent(conductor):
    shutil.rmtree(conductor.plan.claims, ignore_errors=True)
    conductor.resend()
    assert conductor.claims.claim(MessageName(1, 1, 0, 10), owner_text("w-1"))


# --- modes -------------------------------------------------------------------------------------------


def test_the_messages_tell_how_the_samples_run(conductor):
    conductor.resend()
    rows = [(Kind.TAKEN, 1, 0, 10)]
    for sample, code in ((0, 0), (1, 104), (2, 104), (3, 100), (5, 0)):
        rows += [(Kind.STARTED, 1, sample, 0), (Kind.ENDED, 1, sample, 1000, code)]
    conductor.as_worker("w-1", *rows, (Kind.STARTED, 1, 6, 0), (Kind.STOPPED, 1, 6, 10), (Kind.RELEASED, 1, 0, 10))
    conductor.records.follow()
    conductor.record.delayed.clear()

    assert conductor.resend() == [
        (1, 3, 2, RunMode.AGAIN), (3, 4, 2, RunMode.RESTART), (4, 5, 2, FIRST), (6, 7, 2, RunMode.RESTART), (7, 10, 2, FIRST),
    ]  # fmt: skip


def test_scattered_samples_are_sent_in_few_messages_with_an_assignment(tmp_path):
    """Given every second sample of many that must run again, then few messages cover all, and a file tells which."""
    count = 4 * MAX_RANGES
    conductor = Conductor(tmp_path / "study", samples=count)
    conductor.resend()
    rows = [(Kind.ENDED, 1, sample, 1000) for sample in range(0, count, 2)]
    conductor.as_worker("w-1", (Kind.TAKEN, 1, 0, count), *rows, (Kind.RELEASED, 1, 0, count))
    conductor.records.follow()

    assert conductor.resend() == [(1, count, 2, RunMode.ASSIGNED)]
    modes = Assignment(conductor.plan.records / conductor.record.relative, 2).read(0, count)
    assert modes == dict.fromkeys(range(1, count, 2), FIRST)
