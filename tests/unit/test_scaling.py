"""Scaling: which step records the end of an allocation, a dead worker, or a group without workers affects."""

from __future__ import annotations

import dataclasses
import errno
import math
import os

import pytest
from ensembles import a_manifest, entries

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.conductor import dead_workers
from maestro_celery_plugin.conductor.scaling import Scaling
from maestro_celery_plugin.conductor.step_record import Faults
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import AllocationState, Outcome, RecordState, WorkerState, cannot_run_code
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import has_stem, worker_stem


@pytest.fixture
def study(tmp_path, monkeypatch, still_clock):
    """A study with a group in allocations and a group on another machine, and a started step record of each."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return Study(tmp_path)


class Study:
    def __init__(self, root):
        workers = {
            "near": WorkerGroupSettings(task_queues=("a",), batch={"type": "slurm"}),
            "far": WorkerGroupSettings(task_queues=("b",), machines=("elsewhere",)),
        }
        settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=workers))
        self.plan = StudyPlan(root=root, timestamp="t", settings=settings)
        self.records = StepRecords(self.plan, workers)
        self.scaling = Scaling(self.plan, Session.create(self.plan.session), self.records, workers)
        self.by_queue = {queue: self._submit(number, queue) for number, queue in enumerate("ab", 1)}

    def _submit(self, number, queue):
        root = self.plan.root
        manifest = a_manifest(root, number=number, name=queue, workspace=str(root / queue), task_queue=queue)
        record = self.records.register(manifest)
        record.begin(cancelled=False)
        record.has_started = True
        return record


def beat(name, allocation="", group="near", host=None, state=WorkerState.IDLE):
    return Heartbeat(
        name=name, group=group, host=host or host_name(), node="n", supervisor=(1, 1), process=(1, 1), slots=1, beat=1,
        state=state, allocation=allocation,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "becomes"),
    [(AllocationState.CANCELLED, RecordState.CANCELLED), (AllocationState.TIMED_OUT, RecordState.TIMED_OUT)],
)
def test_the_end_of_an_allocation_affects_only_step_records_of_its_groups(study, monkeypatch, state, becomes):
    """Given an allocation that has ended, then the state of a step record of another group does not change."""
    (source,) = study.scaling._pool.allocation_sources
    directory = study.plan.allocations / "near" / "1"
    directory.mkdir(parents=True)
    source.current = Allocation("near", 1, directory, job="7", state=AllocationState.RUNNING)
    monkeypatch.setattr(source._jobs, "report", lambda job: JobReport(state))

    for ended, allocation in study.scaling._pool.refresh_allocations():
        study.scaling._reopening.apply(ended, allocation)

    assert study.records.state(study.by_queue["a"]) is becomes
    assert study.records.state(study.by_queue["b"]) is RecordState.PENDING


@pytest.mark.parametrize(
    ("state", "may_restart", "samples_wait", "becomes", "withdrawn"),
    [
        (AllocationState.TIMED_OUT, True, True, RecordState.TIMED_OUT, {"near"}),
        (AllocationState.TIMED_OUT, False, True, RecordState.PENDING, {"near"}),
        (AllocationState.TIMED_OUT, True, False, RecordState.PENDING, {"near"}),
        (AllocationState.CANCELLED, True, True, RecordState.PENDING, {"near"}),
    ],
)
def test_an_allocation_opens_again_while_another_group_continues(
    study, monkeypatch, state, may_restart, samples_wait, becomes, withdrawn
):
    """Given two groups that serve a step record, when the allocation of one ends, then a restart of Maestro opens the next
    one if samples wait; without a further restart, the other group runs the rest."""
    record, pool = study.by_queue["a"], study.scaling._pool
    record.groups, record.may_restart = ("near", "far"), lambda: may_restart
    Session(study.plan.session).heartbeats.write(beat("far-1", group="far", host="elsewhere"))
    if not samples_wait:
        LedgerWriter(study.plan.ledger / f"far-1{SUFFIX}").append(Kind.TAKEN, 1, 0, 0, record.manifest.samples)
    pool.refresh()
    (source,) = pool.allocation_sources
    allocation = Allocation("near", 1, study.plan.allocations / "near" / "1", job="7", state=state)

    study.scaling._reopening.apply(source, allocation)

    assert study.records.state(record) is becomes
    assert set(record.withdrawn) == withdrawn
    record.begin(cancelled=False)
    assert not record.withdrawn


@pytest.mark.parametrize(
    ("state", "becomes"),
    [(AllocationState.TIMED_OUT, RecordState.TIMED_OUT), (AllocationState.CANCELLED, RecordState.CANCELLED)],
)
@pytest.mark.parametrize("other", [beat("far-1", group="far", host="elsewhere"), beat("near-1-1", "near/1", host="elsewhere")])
def test_a_step_record_does_not_wait_for_workers_that_have_continued_it_and_have_ended(
    study, monkeypatch, state, becomes, other
):
    """Given an allocation that has ended while other workers had the open samples, when these have died, then Maestro
    restarts the step record, which opens the next allocation. They may be workers of an allocation whose end an earlier
    conductor has seen."""
    record, session = study.by_queue["a"], Session(study.plan.session)
    record.groups, record.may_restart = ("near", "far"), lambda: True
    session.heartbeats.write(other)
    LedgerWriter(study.plan.ledger / f"{other.name}{SUFFIX}").append(Kind.TAKEN, 1, 0, 0, record.manifest.samples)
    study.scaling._pool.refresh()
    (source,) = study.scaling._pool.allocation_sources
    allocation = Allocation("near", 2, study.plan.allocations / "near" / "2", job="7", state=state)
    study.scaling._reopening.apply(source, allocation)
    study.scaling.maintain()
    assert study.records.state(record) is RecordState.PENDING

    session.heartbeats.remove(other.name)
    study.scaling.maintain()

    assert study.records.state(record) is becomes


def test_a_worker_whose_heartbeat_is_not_visible_yet_is_not_dead(study, monkeypatch):
    """Given a ledger that is visible before the heartbeat, as on NFS, then the samples are not lost at once."""
    worker = LedgerWriter(study.plan.ledger / f"near-1-1{SUFFIX}")
    worker.append(Kind.TAKEN, 1, 1, 0, 10)
    worker.append(Kind.STARTED, 1, 1, 0)
    study.records.follow()

    assert not study.scaling._dead_workers.detect()
    assert study.records.leases.holders() == {"near-1-1"}

    monkeypatch.setattr(dead_workers, "SILENCE_LIMIT_S", 0.0)
    assert study.scaling._dead_workers.detect()
    assert study.records.leases.holders() == set()


def test_a_worker_that_was_only_silent_lives_although_nfs_hides_its_new_heartbeat(study, monkeypatch):
    """Given a worker that has counted as dead, goes on and takes samples, then these attempts are not declared lost while the
    cached names do not show its heartbeat: they would run twice at once, again and again."""
    heartbeats, pool = study.scaling._pool._session.heartbeats, study.scaling._pool
    heartbeats.write(beat("far-1", group="far", host="elsewhere"))
    study.scaling._dead_workers.detect()
    heartbeats.remove("far-1")
    study.scaling._dead_workers.detect()
    heartbeats.write(beat("far-1", group="far", host="elsewhere"))
    names, shown = heartbeats._names, []
    monkeypatch.setattr(type(heartbeats), "_names", lambda self, prefix: names(prefix) if shown else [])
    monkeypatch.setattr(type(heartbeats), "refresh", lambda self: shown.append(True))
    worker = LedgerWriter(study.plan.ledger / f"far-1{SUFFIX}")
    worker.append(Kind.TAKEN, 2, 1, 0, 10)
    worker.append(Kind.STARTED, 2, 1, 0)
    study.records.follow(fresh=True)

    assert not study.scaling._dead_workers.detect()
    assert study.records.leases.holders() == {"far-1"}
    assert set(pool.alive) == {"far-1"}


@pytest.mark.parametrize(
    ("allocation", "needs_allocation"),
    [("", False), ("near/", False), ("near/1", True)],
    ids=["outside an allocation", "inside an allocation of the user", "inside an allocation of the conductor"],
)
def test_workers_that_a_user_has_started_replace_an_allocation(study, monkeypatch, allocation, needs_allocation):
    pool = study.scaling._pool
    (source,) = pool.allocation_sources
    calls = []
    monkeypatch.setattr(source, "ensure", lambda: calls.append(1))
    pool.alive = {"near-1": beat("near-1", allocation)}

    pool.ensure("near")

    assert bool(calls) == needs_allocation


def test_a_worker_of_another_machine_is_asked_to_leave(study):
    pool = study.scaling._pool
    pool.alive = {"far-1": beat("far-1", group="far", host="elsewhere")}

    pool.kill("far-1")

    assert Session(study.plan.session).worker_stop_requested("far-1")


def test_the_last_entries_of_a_worker_are_read_when_it_has_left(study):
    """Given a worker whose last sample ended just before it left, then that sample is not lost."""
    session, pool, records = Session(study.plan.session), study.scaling._pool, study.records
    session.heartbeats.write(beat("far-1", group="far", host="elsewhere", state=WorkerState.BUSY))
    study.scaling._dead_workers.detect()
    worker = LedgerWriter(study.plan.ledger / f"far-1{SUFFIX}")
    worker.append(Kind.TAKEN, 2, 1, 0, 10)
    worker.append(Kind.STARTED, 2, 1, 0)
    records.follow(skip=study.scaling.ended_workers)
    worker.append(Kind.ENDED, 2, 1, 0, 1000)
    pool._ended.add("")  # from now on, the worker counts as dead

    assert study.scaling._dead_workers.detect()
    assert study.scaling.ended_workers == {"far-1"}
    assert Kind.LOST not in read_ledger(study.plan.ledger)["kind"]
    assert study.by_queue["b"].samples.outcome[0] == Outcome.FINISHED


def test_the_ledger_of_a_worker_that_was_only_silent_is_read_again(study, advance_clock):
    session, pool = Session(study.plan.session), study.scaling._pool
    session.heartbeats.write(beat("far-1", group="far", host="elsewhere"))
    study.scaling._dead_workers.detect()
    pool._ended.add("")
    study.scaling._dead_workers.detect()
    LedgerWriter(study.plan.ledger / f"far-1{SUFFIX}").append(Kind.STARTED, 2, 1, 0)

    study.records.follow(skip=study.scaling.ended_workers)
    assert not study.by_queue["b"].samples.started.max()
    advance_clock(dead_workers.ENDED_WORKERS_INTERVAL_S + 1)
    study.scaling._dead_workers.detect()
    assert study.by_queue["b"].samples.started.max()


@pytest.mark.parametrize(
    ("states", "working"),
    [(("IDLE", "BUSY"), {"near/1"}), (("IDLE", "STARTING"), set()), (("IDLE", "DRAINING"), set())],
)
def test_an_allocation_is_working_while_one_of_its_workers_is_busy(study, states, working):
    workers = [beat("far-1", group="far"), *(beat(f"near-1-{n}", "near/1", state=WorkerState[s]) for n, s in enumerate(states))]
    study.scaling._pool.alive = {worker.name: worker for worker in workers}
    assert study.scaling.working_allocations == working


@pytest.mark.parametrize("has_other_group", [True, False])
def test_a_group_without_workers_fails_only_the_step_records_that_it_alone_serves(study, monkeypatch, has_other_group):
    pool, record = study.scaling._pool, study.by_queue["a"]
    monkeypatch.setattr(pool, "ensure", lambda group: (_ for _ in ()).throw(WorkerError("bad partition")))
    if has_other_group:
        record.groups = ("near", "far")
        pool.alive = {"far-1": beat("far-1", group="far")}

    study.scaling._ensure("near", [record])

    assert (study.records.state(record) is RecordState.FAILED) == (not has_other_group)
    assert set(record.withdrawn) == ({"near"} if has_other_group else set())
    assert record.reason == "bad partition"


@pytest.mark.parametrize(
    ("writer", "is_in_allocation"),
    [("sim-2-1", True), ("sim-2-13.77", True), ("sim-2-1-1", False), ("sim-1", False), ("sim-2-", False)],
)
def test_the_name_of_a_worker_identifies_its_allocation(writer, is_in_allocation):
    assert has_stem(writer, worker_stem("sim", "sim/2")) == is_in_allocation


def test_an_end_of_a_dead_worker_on_another_machine_that_becomes_visible_late_is_invalid(study):
    """Given a worker whose last entries are not visible, when it counts as dead, then they never count."""
    worker = LedgerWriter(study.plan.ledger / f"far-1{SUFFIX}")
    worker.append(Kind.TAKEN, 2, 1, 0, 10)
    study.records.follow()
    study.records.mark_lost(["far-1"], external_cause=True, is_elsewhere=True)
    worker.append(Kind.STARTED, 2, 1, 0)
    worker.append(Kind.ENDED, 2, 1, 0, 1000)
    worker.close()
    study.records.follow()

    assert study.by_queue["b"].samples.outcome[0] == Outcome.OPEN


def test_a_worker_on_this_machine_whose_heartbeat_has_vanished_is_alive(study):
    session, pool = Session(study.plan.session), study.scaling._pool
    process = ProcessId.of(os.getpid())
    session.heartbeats.write(dataclasses.replace(beat("near-1"), process=(process.pid, process.start)))
    pool.refresh()
    session.heartbeats.remove("near-1")

    assert pool.refresh() == []
    assert set(pool.alive) == {"near-1"}


def test_a_submission_starts_workers_unless_all_samples_have_ended(study, monkeypatch):
    started, record = [], study.by_queue["a"]
    monkeypatch.setattr(study.scaling._pool, "ensure", started.append)

    study.scaling.start_workers(record)
    record.samples.apply(entries(*((Kind.ENDED, sample, 1, 0) for sample in range(len(record.samples)))))
    study.scaling.start_workers(record)

    assert started == ["near"]


def test_the_end_of_an_allocation_is_applied_when_an_error_has_passed(study, monkeypatch, caplog):
    """Given an error of the file system when an allocation has ended, then its step record times out later, and no further
    allocation opens before."""
    (source,) = study.scaling._pool.allocation_sources
    directory = study.plan.allocations / "near" / "1"
    directory.mkdir(parents=True)
    source.current = Allocation("near", 1, directory, job="7", state=AllocationState.RUNNING)
    monkeypatch.setattr(source._jobs, "report", lambda job: JobReport(AllocationState.TIMED_OUT))
    opened = []
    monkeypatch.setattr(study.scaling._pool, "ensure", opened.append)
    errors = [OSError(errno.ESTALE, "stale"), OSError(errno.ESTALE, "stale")]
    follow = study.records.follow

    def failing(*args, **options):
        if options.get("fresh") and errors:
            raise errors.pop()
        return follow(*args, **options)

    monkeypatch.setattr(study.records, "follow", failing)
    study.scaling._dead_workers._followed_all_at = math.inf  # does not look now

    study.scaling.maintain()
    assert study.records.state(study.by_queue["a"]) is RecordState.PENDING
    assert "near" not in opened
    study.scaling.maintain()
    study.scaling.maintain()

    assert study.records.state(study.by_queue["a"]) is RecordState.TIMED_OUT
    assert "stale" in caplog.text


def test_an_error_of_one_part_keeps_no_other_part_from_its_work(study, monkeypatch, caplog):
    """Given a directory in which no file can be created, then cancelled samples end, and workers start."""
    calls = []
    monkeypatch.setattr(study.scaling._dead_workers, "detect", failing_with(errno.EDQUOT))
    monkeypatch.setattr(study.scaling._stopped, "refresh", failing_with(errno.EDQUOT))
    monkeypatch.setattr(study.records, "give_up", lambda live: calls.append("give up"))
    monkeypatch.setattr(study.scaling._pool, "ensure", calls.append)
    monkeypatch.setattr(study.scaling._pool, "kill", calls.append)
    study.by_queue["b"].cancelled, study.by_queue["b"].cancelled_at = True, clock.monotonic() - 60
    LedgerWriter(study.plan.ledger / f"far-1{SUFFIX}").append(Kind.TAKEN, 2, 0, 0, 1)
    study.records.follow(fresh=True)

    study.scaling.maintain()

    assert {"give up", "near", "far", "far-1"} == set(calls)
    assert caplog.text.count("Disk quota exceeded") == 2


def failing_with(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_sample_that_runs_now_is_not_given_up(study):
    """Given a sample that could not run on a machine which has left, when it runs on another one, then it goes on."""
    record = study.by_queue["a"]
    record.faults[0] = Faults(epoch=1, code=cannot_run_code(errno.ENOEXEC), count=9, machines={1})
    worker = LedgerWriter(study.plan.ledger / f"near-1{SUFFIX}")
    worker.append(Kind.TAKEN, 1, 2, 0, 1)
    study.records.follow(fresh=True)

    study.records.give_up(lambda record: 1)
    assert record.samples.outcome[0] == Outcome.OPEN
    worker.append(Kind.RELEASED, 1, 2, 0, 1)
    study.records.follow()
    study.records.give_up(lambda record: 1)

    assert record.samples.outcome[0] != Outcome.OPEN
