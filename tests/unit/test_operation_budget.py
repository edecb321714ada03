"""Operation budgets: what one look of the coordinator, and one submission, may cost in a large study.

The tests count operations instead of seconds. The study has 2,000 step records and 500 workers.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from ensembles import a_study
from msgspec.structs import replace

from maestro_celery_plugin.conductor.free_slots import FreeSlots
from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.redelivery import Redelivery
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.ledger import reader
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.store import Store
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat

RECORDS, WRITERS = 2000, 500
GROUPS = {"w": WorkerGroupSettings(task_queues=("merlin",))}


class CountingStore(Store):
    """Counts the operations on files, and the bytes that are read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def names(self, directory, *, fresh=False):
        self.counts["listings"] += 1
        return super().names(directory, fresh=fresh)

    def _read(self, descriptor, offset, least):
        size, data = super()._read(descriptor, offset, least)
        self.counts["reads"] += 1
        self.counts["bytes"] += len(data)
        return size, data

    def link(self, target, path):
        self.counts["links"] += 1
        super().link(target, path)

    def flush(self, descriptor, *, to_disk):
        self.counts["flushes"] += 1
        super().flush(descriptor, to_disk=to_disk)

    def of(self, action) -> Counter[str]:
        """Return the operations of an action."""
        self.counts.clear()
        action()
        return Counter(self.counts)


class Study:
    """A study in the conductor: the step records have been submitted, and each worker has begun a sample."""

    def __init__(self, root) -> None:
        self.plan, self.manifest = a_study(root)
        self.store = CountingStore()
        self.writers = [
            LedgerWriter(self.plan.ledger / f"w-{number}{SUFFIX}", self.plan.number) for number in range(WRITERS)
        ]
        self.records = StepRecords(self.plan, GROUPS, self.store)
        self.sent = 0
        self.publisher = Publisher(self.plan, None, self.records, {"merlin"}, set().__contains__, set().add)
        self.publisher._sender = self
        for number in range(1, RECORDS + 1):
            self.submit(number)
        for number, writer in enumerate(self.writers, 1):
            writer.append(Kind.TAKEN, number, 1, 0, 10)
            writer.append(Kind.STARTED, number, 1, 0)
        self.records.follow()
        self.records.changed()

    def send(self, task, task_queue, level):
        self.sent += 1

    def submit(self, number):
        workspace = str(self.plan.root / f"sim/{number}")
        record = self.records.register(replace(self.manifest, workspace=workspace, name=f"sim_{number}"))
        record.begin(cancelled=False)
        self.publisher.send(record, record.unassigned(self.records.leased(record)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("large") / "study")
    yield study
    for writer in study.writers:
        writer.close()


def test_a_look_opens_each_ledger_file_once_and_reads_only_what_is_new(study):
    study.writers[7].append(Kind.ENDED, 8, 1, 0, 1000)
    counts = study.store.of(study.records.follow)

    assert counts["listings"] == 1
    assert counts["reads"] == WRITERS + 1
    assert counts["bytes"] == 44
    assert [record.number for record in study.records.changed()] == [8]


def test_a_submission_reads_no_ledger_of_a_worker(study):
    counts = study.store.of(lambda: study.submit(RECORDS + 1))

    assert counts["reads"] <= 2  # the coordinator's own file
    assert counts["listings"] == 0
    assert counts["links"] == 0
    assert counts["flushes"] == 1


def test_the_state_of_a_step_record_needs_no_look_at_the_leases_of_others(study, monkeypatch):
    leases = study.records.leases
    assert not leases.has(RECORDS)
    monkeypatch.setattr(leases, "_rows", None)  # of all slots

    states = {study.records.state(record) for record in study.records}

    assert len(states) == 2


def test_what_many_workers_have_written_is_checked_and_applied_together(study, monkeypatch):
    """Given an entry of each of 500 workers, then checksums, leases and quick failures are computed once."""
    calls = Counter()

    def count(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: calls.update([name]) or function(*args))

    count(reader, "are_sound")
    count(study.records.leases, "apply_all")
    count(study.records.quick_failures, "apply_all")
    for number, writer in enumerate(study.writers, 1):
        writer.append(Kind.PASSED, number, 1, 8, 10)
    study.records.follow()

    assert calls == {"are_sound": 1, "apply_all": 2}
    assert all(study.records.leased(record).last == 7 for record in [*study.records][:WRITERS])
    study.records.changed()


def test_which_step_records_may_fail_because_of_a_machine_is_found_once(study, monkeypatch):
    failures = study.records.quick_failures
    looks = []
    accused = failures.accused
    monkeypatch.setattr(failures, "accused", lambda: looks.append(1) or accused())

    for record in study.records:
        study.records.state(record)

    assert len(looks) <= 1


def test_the_state_of_a_step_record_without_news_counts_no_samples(study, monkeypatch):
    for record in study.records:
        study.records.state(record)
    counted = []
    monkeypatch.setattr("numpy.bincount", lambda *args, **options: counted.append(args))

    for record in study.records:
        study.records.state(record)

    assert counted == []


def test_free_slots_are_counted_once_for_all_step_records(study, monkeypatch):
    beats = [
        Heartbeat(
            name=f"w-{number}", group="w", host="h", node="n", supervisor=(1, 1), process=(1, 1), slots=2, beat=1,
            state=WorkerState.BUSY,
        )
        for number in range(WRITERS)
    ]  # fmt: skip
    counted = []
    count = study.records.leases.count
    monkeypatch.setattr(study.records.leases, "count", lambda writer: counted.append(writer) or count(writer))

    free_slots = FreeSlots(beats, study.records.leases, "study-1")
    assert all(free_slots.accept(record) for record in study.records)

    assert len(counted) == WRITERS


def test_slots_without_time_for_a_study_are_free_for_the_others(study):
    """Given the same number of a step record in two studies, then the slots are free for one of them."""
    record = next(iter(study.records))
    beat = Heartbeat(
        name="w-0", group="w", host="h", node="n", supervisor=(1, 1), process=(1, 1), slots=2, beat=1,
        state=WorkerState.BUSY, out_of_time=(("study-1", record.number),),
    )  # fmt: skip
    assert not FreeSlots([beat], study.records.leases, "study-1").accept(record)
    assert FreeSlots([beat], study.records.leases, "study-2").accept(record)




def test_the_death_of_a_worker_costs_what_it_had(study, monkeypatch):
    """Given the death of a worker with a sample of one of 2,000 step records, then no other one is looked at."""
    study.records.follow()
    visited = []
    unassigned = StepRecord.unassigned
    monkeypatch.setattr(StepRecord, "unassigned", lambda *args: visited.append(args[0].number) or unassigned(*args))
    monkeypatch.setattr(study.records, "with_work", None)
    sent = study.sent

    study.records.mark_lost(["w-20"], is_elsewhere=True)
    study.publisher.resend_lost()
    study.publisher.resend_lost()

    assert visited == [21]
    assert study.sent == sent + 2  # the interrupted sample runs `restart`, the others `cmd`


def test_what_a_dead_worker_had_is_sent_when_the_broker_answers_again(study, monkeypatch):
    refusals = [BrokerError("away")]
    send = study.publisher.send
    monkeypatch.setattr(
        study.publisher, "send", lambda *args: (_ for _ in ()).throw(refusals.pop()) if refusals else send(*args)
    )
    sent = study.sent

    study.records.mark_lost(["w-30"], is_elsewhere=True)
    with pytest.raises(BrokerError):
        study.publisher.resend_lost()
    assert study.sent == sent
    study.publisher.resend_lost()

    assert study.sent == sent + 2


def looked_at(monkeypatch, study):
    """Return a list that gets the number of each step record whose state, work or samples are looked at."""
    found = []
    for name in ("state", "has_work"):
        function = getattr(StepRecords, name)
        monkeypatch.setattr(
            StepRecords, name, lambda self, record, call=function: found.append(record.number) or call(self, record)
        )
    return found


def test_a_look_without_news_visits_no_step_record(study, monkeypatch):
    study.records.follow()
    study.records.changed()
    found = looked_at(monkeypatch, study)
    noted = []
    monkeypatch.setattr(StepRecord, "note", lambda self, entries, **options: noted.append(self.number))

    study.records.follow()
    assert study.records.changed() == []
    Redelivery(study.records, study.publisher, None).send_due()

    assert found == noted == []


def test_a_look_visits_the_step_records_with_news(study, monkeypatch):
    study.records.follow()
    study.records.changed()
    noted = []
    note = StepRecord.note
    monkeypatch.setattr(
        StepRecord, "note", lambda self, entries, **options: noted.append(self.number) or note(self, entries, **options)
    )
    for number in (40, 50):
        study.writers[number].append(Kind.STARTED, number + 1, 1, 1)

    study.records.follow()

    assert noted == sorted(record.number for record in study.records.changed()) == [41, 51]


def test_maintenance_without_a_free_slot_or_a_fault_visits_no_step_record(study, monkeypatch):
    scaling = SimpleNamespace(free_slots=lambda: FreeSlots([], study.records.leases, "study-1"))
    for record in study.records:
        record.idle_since = None
    found = looked_at(monkeypatch, study)

    Redelivery(study.records, study.publisher, scaling).resend_if_slots_stay_free()
    study.records.give_up(lambda record: 1)

    assert found == []


def test_a_step_record_is_idle_from_when_a_slot_is_free(study):
    """Given a free slot, then the idle time begins; without a free slot, it ends."""
    record = next(iter(study.records))
    beat = Heartbeat(
        name="v-1", group="w", host="h", node="n", supervisor=(1, 1), process=(1, 1), slots=2, beat=1,
        state=WorkerState.IDLE,
    )  # fmt: skip
    beats = [beat]
    scaling = SimpleNamespace(free_slots=lambda: FreeSlots(beats, study.records.leases, "study-1"))
    redelivery = Redelivery(study.records, study.publisher, scaling)

    redelivery.resend_if_slots_stay_free()
    assert record.idle_since is not None
    beats.clear()
    redelivery.resend_if_slots_stay_free()
    assert record.idle_since is None
