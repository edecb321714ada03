"""Step records: their state follows from the leases of all workers, also of those that NFS does not show yet."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from ensembles import a_study
from msgspec.structs import replace

from maestro_celery_plugin.conductor.recall import Recall
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger.claims import MessageName, owner_text
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX, Kind
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.store import Store
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import ExitCode, RecordState, WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.worker.study_context import StudyContext

GROUPS = {"w": WorkerGroupSettings(task_queues=("merlin",))}


class CachedNames(Store):
    """NFS: the node shows the names of before until it changes the directory."""

    def __init__(self) -> None:
        self.fresh = 0

    def names(self, directory, *, fresh=False):
        self.fresh += fresh
        return super().names(directory) if self.fresh else [f"{COORDINATOR}{SUFFIX}"]


class FailingReads(Store):
    """A file system on which one file cannot be read."""

    failing = ""

    def _read(self, descriptor, offset, least):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/{self.failing}"):
            raise OSError(errno.EIO, "again later")
        return super()._read(descriptor, offset, least)


@pytest.mark.parametrize("ends", ["cancelled", "failed"])
def test_a_step_record_has_not_ended_while_a_worker_runs_its_sample_that_nfs_does_not_show(tmp_path, ends):
    """Given a worker whose ledger is new, when the step record is stopped, then it ends after the sample has ended."""
    plan, manifest = a_study(tmp_path / "study")
    store = CachedNames()
    records = StepRecords(plan, GROUPS, store)
    record = records.register(manifest)
    record.begin(cancelled=False)
    records.record_sent(record, 1, 0, 10)
    records.flush()
    records.follow()
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.TAKEN, 1, 1, 0, 10)
    worker.append(Kind.STARTED, 1, 1, 3)
    if ends == "failed":
        records._writer.append(Kind.GAVE_UP, 1, 1, 0, code=102)
        records.follow_own()
    else:
        records.cancel(record, reason="a user")

    assert records.state(record) is RecordState.RUNNING

    worker.append(Kind.STOPPED, 1, 1, 3)
    worker.append(Kind.RELEASED, 1, 1, 0, 10)
    records.follow()
    assert records.state(record) is RecordState[ends.upper()]
    for _ in range(10):
        records.state(record)
    assert store.fresh == 1, "each look at the state costs operations of the file server"
    worker.close()


def test_entries_beyond_the_last_sample_are_ignored(tmp_path):
    """Given a manifest of before an addition, restored from a backup, then the conductor follows the ledger of later."""
    plan, manifest = a_study(tmp_path / "study")
    records = StepRecords(plan, GROUPS)
    record = records.register(manifest)
    record.begin(cancelled=False)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    for sample in (10, 2**63, 3):
        worker.append(Kind.STARTED, 1, 1, sample)
        worker.append(Kind.ENDED, 1, 1, sample, code=0 if sample == 3 else 105)
    worker.close()

    records.follow()

    assert np.flatnonzero(record.samples.outcome).tolist() == [3]
    assert not records.stop_request


def test_the_suspects_of_all_step_records_run_one_at_a_time(tmp_path):
    """Given two step records with a sample that was lost twice, then both do not run at once: one may be the cause of the
    death of the other's worker, and would let it fail."""
    plan, manifest = a_study(tmp_path / "study")
    records = StepRecords(plan, GROUPS)
    names = ("a", "b")
    first, second = (records.register(replace(manifest, name=name, workspace=str(plan.root / name))) for name in names)
    for record in (first, second):
        record.begin(cancelled=False)
        for epoch in (1, 2):
            records._writer.append(Kind.LOST, record.number, epoch, 3)
    records.follow_own()

    assert 3 in first.unassigned(records.leased(first))
    assert 3 not in second.unassigned(records.leased(second))
    assert second.unassigned(records.leased(second)).count == manifest.samples - 1

    records._writer.append(Kind.GAVE_UP, first.number, 3, 3, code=1)
    records.follow_own()
    first.due()
    assert 3 in second.unassigned(records.leased(second))


@pytest.mark.parametrize("is_of_other", [False, True])
def test_a_suspect_that_a_worker_of_an_earlier_conductor_runs_has_the_turn(tmp_path, is_of_other):
    """Given two suspects, one of which runs, when another conductor begins, then it does not let the other one run as well."""
    plan, manifest = a_study(tmp_path / "study")
    records = StepRecords(plan, GROUPS)
    names = ("a", "b") if is_of_other else ("a",)
    found = [records.register(replace(manifest, name=name, workspace=str(plan.root / name))) for name in names]
    for record, sample in ((found[0], 3), (found[-1], 7)):
        for epoch in (1, 2):
            records._writer.append(Kind.LOST, record.number, epoch, sample)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.TAKEN, found[-1].number, 3, 7, 8)
    worker.append(Kind.STARTED, found[-1].number, 3, 7)
    worker.close()
    records.follow(fresh=True)

    found[0].begin(cancelled=False)

    assert 3 not in found[0].unassigned(records.leased(found[0]))


@pytest.fixture
def two_suspects(tmp_path):
    """A study whose conductor has died after it had sent one of two suspects; the next conductor knows both."""
    plan, manifest = a_study(tmp_path / "study")
    earlier = StepRecords(plan, GROUPS)
    record = earlier.register(manifest)
    for sample in (3, 7):
        for epoch in (1, 2):
            earlier._writer.append(Kind.LOST, record.number, epoch, sample)
    earlier.record_sent(record, 3, 7, 8)
    earlier.flush()
    records = StepRecords(plan, GROUPS)
    records.load(tuple)
    record = records.by_number(record.number)
    record.begin(cancelled=False)
    return records, record


def test_a_new_conductor_takes_the_messages_about_suspects_back_before_one_gets_its_turn(two_suspects):
    """Given a message of an earlier conductor about a suspect, then no worker takes it while another suspect runs."""
    records, record = two_suspects
    recall = Recall(records, is_dead=lambda writer: False, end_worker=lambda writer: None)
    assert not record.unassigned(SampleSet.of_samples([])) & SampleSet.of_samples([3, 7])

    recall.take_back_suspects()

    assert not records.claims.claim(MessageName(record.number, 3, 7, 8, 0), "w-1 1")
    assert (record.unassigned(SampleSet.of_samples([])) & SampleSet.of_samples([3, 7])).samples().tolist() == [3]


def test_no_suspect_gets_its_turn_before_the_worker_that_has_claimed_another_one_shows_it(two_suspects):
    """Given a worker that has claimed a suspect, although NFS does not show its entries, then no other suspect runs."""
    records, record = two_suspects
    records.claims.prepare(record.number)
    assert records.claims.claim(MessageName(record.number, 3, 7, 8, 0), owner_text("w-1"))
    recall = Recall(records, is_dead=lambda writer: False, end_worker=lambda writer: None)

    recall.take_back_suspects()
    assert not record.unassigned(SampleSet.of_samples([])) & SampleSet.of_samples([3, 7])
    worker = LedgerWriter(records._plan.ledger / f"w-1{SUFFIX}", records._plan.number)
    worker.append(Kind.TAKEN, record.number, 3, 7, 8)
    worker.close()
    records.follow(fresh=True)
    recall.take_back_suspects()

    # It has the turn.
    assert 3 not in record.unassigned(records.leased(record))
    records.mark_lost(["w-1"], external_cause=True)
    assert record.suspect == 7


def test_a_message_about_a_suspect_that_has_an_outcome_keeps_no_other_one_from_its_turn(two_suspects):
    """Given a claim that could not be made at first, when the suspect of the message has finished, then others get turns."""
    records, record = two_suspects
    recall = Recall(records, is_dead=lambda writer: False, end_worker=lambda writer: None)
    worker = LedgerWriter(records._plan.ledger / f"w-1{SUFFIX}", records._plan.number)
    worker.append(Kind.STARTED, record.number, 9, 7)
    worker.append(Kind.ENDED, record.number, 9, 7)
    worker.close()
    records.follow(fresh=True)

    recall.take_back_suspects()

    assert not records.suspect_messages
    assert 3 in record.unassigned(SampleSet.of_samples([]))


def test_the_suspect_of_a_step_record_that_has_ended_does_not_keep_others_from_running(tmp_path):
    """Given a cancelled step record with a suspect, then the suspect of another one runs."""
    plan, manifest = a_study(tmp_path / "study")
    records = StepRecords(plan, GROUPS)
    first, second = (
        records.register(replace(manifest, name=name, workspace=str(plan.root / name))) for name in ("a", "b")
    )
    for record in (first, second):
        record.begin(cancelled=False)
        for epoch in (1, 2):
            records._writer.append(Kind.LOST, record.number, epoch, 3)
    records.follow_own()
    first.unassigned(records.leased(first))
    records.cancel(first, reason="a user")

    assert 3 in second.unassigned(records.leased(second))


class FullDisk(Store):
    """A file system that has no room for some time."""

    def __init__(self) -> None:
        self.is_full = False

    def write(self, descriptor, data, place):
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(descriptor, data, place)


def a_study_on(store, tmp_path):
    """Return a plan, its step records and the one whose samples were sent under epoch 1; the conductor writes to `store`."""
    plan, manifest = a_study(tmp_path / "study")
    records = StepRecords(plan, GROUPS, store)
    record = records.register(manifest)
    record.begin(cancelled=False)
    records.record_sent(record, 1, 0, 10)
    records.flush()
    return plan, records, record


def test_a_cancellation_that_could_not_be_recorded_is_recorded_later(tmp_path):
    """Given a full disk when a step record is cancelled, then it ends when no worker can start its samples any more."""
    store = FullDisk()
    _, records, record = a_study_on(store, tmp_path)
    records.follow()
    store.is_full = True
    with pytest.raises(LedgerError):
        records.cancel(record, reason="a user")
    with pytest.raises(LedgerError):
        records.state(record)
    store.is_full = False

    assert records.state(record) is RecordState.CANCELLED
    assert record.samples.cancelled_epoch == 2


def test_the_leases_of_a_dead_worker_stay_until_its_attempts_are_recorded_as_lost(tmp_path):
    """Given a full disk when a worker has died, then its attempts are recorded as lost when there is room again."""
    store = FullDisk()
    plan, records, record = a_study_on(store, tmp_path)
    for name, sample in (("w-1", 0), ("w-2", 5)):
        worker = LedgerWriter(plan.ledger / f"{name}{SUFFIX}", plan.number)
        worker.append(Kind.TAKEN, 1, 1, sample, sample + 5)
        worker.append(Kind.STARTED, 1, 1, sample)
        worker.close()
    records.follow(fresh=True)
    store.is_full = True
    with pytest.raises(LedgerError):
        records.mark_lost(["w-1", "w-2"])
    assert records.leases.holders() == {"w-1", "w-2"}
    store.is_full = False

    records.mark_lost(records.leases.holders())

    assert not records.leases.holders()
    assert record.samples.losses[[0, 5]].tolist() == [1, 1]
    assert not record.samples.find_running()


def test_a_request_to_stop_all_workers_is_noted_although_the_disk_is_full(tmp_path):
    """Given a step record that cannot be stopped now, in which a sample asks for the stop of all workers, then they stop."""
    store = FullDisk()
    plan, records, _ = a_study_on(store, tmp_path)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    for sample, code in enumerate((ExitCode.HARD_FAIL, ExitCode.STOP_WORKERS)):
        worker.append(Kind.STARTED, 1, 1, sample)
        worker.append(Kind.ENDED, 1, 1, sample, code=code)
    worker.close()
    store.is_full = True

    with pytest.raises(LedgerError):
        records.follow()

    assert records.stop_request.startswith("Sample 1 of")


class RejectingServer(Store):
    """A file server that rejects what this node has written, and that the node shows until it sends it."""

    is_full = False

    def read_stored(self, path, offset, least):
        size, data = super().read_stored(path, offset, least)
        return (offset, data[:0]) if self.is_full else (size, data)


@pytest.mark.parametrize("machine", ["", "another"])
def test_a_sample_has_not_ended_before_the_entry_of_a_worker_on_this_node_is_stored(tmp_path, machine):
    """Given a full disk at the end of a study, then no outcome counts that is lost when the worker ends."""
    store = RejectingServer()
    plan, records, record = a_study_on(store, tmp_path)
    beat = Heartbeat(
        name="w-1", group="w", host="", node="", supervisor=(1, 1), process=(1, 1), slots=1, beat=1,
        state=WorkerState.IDLE, machine=machine,
    )  # fmt: skip
    records.live_writers = {"w-1": beat}
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.TAKEN, 1, 1, 0, 10)
    for sample in range(10):
        worker.append(Kind.STARTED, 1, 1, sample)
        worker.append(Kind.ENDED, 1, 1, sample)

    store.is_full = True
    records.follow(fresh=True)

    assert record.samples.is_complete is (machine == "another")  # another node shows only what is stored
    store.is_full = False
    records.follow()
    assert record.samples.is_complete


def a_study_that_was_sent(tmp_path):
    """Return the plan of a study whose conductor has sent the samples of its step record under epoch 1, and has died."""
    plan, manifest = a_study(tmp_path / "study")
    earlier = StepRecords(plan, GROUPS)
    earlier.record_sent(earlier.register(manifest), 1, 0, 10)
    earlier.flush()
    return plan


def test_after_a_power_cut_no_epoch_is_used_again(tmp_path):
    """Given a disk that has lost the last entries of the coordinator, but not those of a worker, then samples are sent under
    a higher epoch: attempts under the earlier one are lost, and would end the new ones."""
    plan = a_study_that_was_sent(tmp_path)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.STARTED, 1, 7, 0)
    worker.close()

    later = StepRecords(plan, GROUPS)
    later.load(set)

    (record,) = later
    assert record.samples.epoch >= 7


def test_a_conductor_uses_no_epoch_of_an_earlier_one(tmp_path):
    """Given a power cut that has cost the entry about a message, which waits on a broker elsewhere, then the samples are sent
    under an epoch that makes this message invalid."""
    plan, manifest = a_study(tmp_path / "study")
    earlier = StepRecords(plan, GROUPS)
    earlier.load(set)
    record = earlier.register(manifest)
    earlier.record_sent(record, 1, 0, 10)
    earlier.flush()
    earlier.follow()
    lost = [record.samples.epoch + 1]  # of a message whose entry is not on the disk

    for _ in range(3):  # each conductor sends a message, and its entry is lost as well
        later = StepRecords(plan, GROUPS)
        later.load(set)
        (record,) = later
        lost.append(record.samples.epoch + 1)

    assert len(set(lost)) == 4
    assert min(lost[1:]) > lost[0]


def test_a_message_of_before_a_power_cut_runs_no_sample_that_has_finished(tmp_path):
    """Given a power cut that has cost the entry under which a sample has run since, then an earlier message about it, which
    waits on a broker elsewhere, is invalid."""
    plan = a_study_that_was_sent(tmp_path)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.STARTED, 1, 5, 3)
    worker.append(Kind.ENDED, 1, 5, 3)
    worker.close()

    later = StepRecords(plan, GROUPS)
    later.load(set)
    later.flush()

    study = StudyContext(plan.root, plan.id, "w-2")
    assert study.fences.is_invalid(1, 1, 3)
    assert not study.fences.must_end(1, 1, 4)


def test_what_a_worker_that_counts_as_dead_passes_on_runs_nowhere(tmp_path):
    """Given a worker that was stopped until it counted as dead, and that sends the rest of its range when it goes on, then no
    other worker runs these samples: they could succeed, would not count, and would run again."""
    plan = a_study_that_was_sent(tmp_path)
    records = StepRecords(plan, GROUPS)
    records.load(lambda: {"w-1"})
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.TAKEN, 1, 1, 2, 6)
    worker.append(Kind.STARTED, 1, 1, 2)
    worker.flush()
    records.follow()

    records.mark_lost(["w-1"], external_cause=True, is_elsewhere=True)
    records.flush()

    study = StudyContext(plan.root, plan.id, "w-2")
    assert all(study.fences.is_invalid(1, 1, sample) for sample in range(2, 6))
    assert not study.fences.is_invalid(1, 1, 6)
    assert not study.fences.is_invalid(1, 2, 3)


def test_a_conductor_without_lost_entries_leaves_its_messages_valid(tmp_path):
    """Given a conductor that begins after another one, then the messages in the task queues are valid until it sends others."""
    plan, manifest = a_study(tmp_path / "study")
    earlier = StepRecords(plan, GROUPS)
    earlier.record_sent(earlier.register(manifest), 1, 0, 10)
    earlier.flush()
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.STARTED, 1, 1, 3)
    worker.close()

    StepRecords(plan, GROUPS).load(set)

    assert not StudyContext(plan.root, plan.id, "w-2").fences.is_invalid(1, 1, 4)


def test_a_worker_that_begins_while_a_conductor_reads_the_ledger_is_alive(tmp_path):
    """Given a worker whose first heartbeat and first sample come after the look at the heartbeats, then its sample is not
    lost: it would run a second time while the first attempt runs."""
    plan, _ = a_study(tmp_path / "study")
    records = StepRecords(plan, GROUPS)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.TAKEN, 1, 1, 0, 10)
    worker.append(Kind.STARTED, 1, 1, 0)
    worker.close()

    records.load(lambda: records.leases.holders())  # the heartbeats, after the ledger

    (record,) = records
    assert records.leases.holders() == {"w-1"}
    assert record.samples.running[0]


def test_an_error_about_one_step_record_hides_no_entry_of_another_one(tmp_path, monkeypatch):
    """Given a disk that is full when a failed step record stops, then the next look has the entries of the other one."""
    plan, manifest = a_study(tmp_path / "study")
    records = StepRecords(plan, GROUPS)
    names = ("a", "b")
    first, second = (records.register(replace(manifest, name=name, workspace=str(plan.root / name))) for name in names)
    for record in (first, second):
        record.begin(cancelled=False)
        records.record_sent(record, 1, 0, 10)
    records.flush()
    records.follow()
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.STARTED, first.number, 1, 3)
    worker.append(Kind.ENDED, first.number, 1, 3, code=102)
    worker.append(Kind.STARTED, second.number, 1, 4)
    worker.append(Kind.ENDED, second.number, 1, 4)

    def fail():
        raise LedgerError("full")

    monkeypatch.setattr(records, "flush", fail)
    with pytest.raises(LedgerError):
        records.follow()
    monkeypatch.undo()
    records.follow()

    assert first.has_failed
    assert second.samples.counts().finished == 1
    worker.close()


def test_a_file_that_cannot_be_read_hides_no_other_one(tmp_path):
    """Given a file that cannot be read, then a look applies the entries of the others, and a later one its own."""
    plan, manifest = a_study(tmp_path / "study")
    store = FailingReads()
    records = StepRecords(plan, GROUPS, store)
    record = records.register(manifest)
    for number in (1, 2, 3):
        worker = LedgerWriter(plan.ledger / f"w-{number}{SUFFIX}", plan.number)
        worker.append(Kind.STARTED, record.number, 1, number)
        worker.append(Kind.ENDED, record.number, 1, number)
        worker.close()
    store.failing = f"w-2{SUFFIX}"
    with pytest.raises(OSError, match="again later"):
        records.follow()
    assert record.samples.counts().finished == 2, "the files behind the faulty one are not read"
    store.failing = ""
    records.follow()

    assert record.samples.counts().finished == 3
