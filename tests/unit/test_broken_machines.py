"""Faults of machines: whose fault it is that samples fail, and when a sample fails for good."""

from __future__ import annotations

import dataclasses
import errno

import numpy as np
import pytest
from ensembles import a_manifest, a_study, apply_to, entries, states_of
from msgspec.structs import replace

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor import broken_machines, convictions
from maestro_celery_plugin.conductor.broken_machines import BrokenMachines
from maestro_celery_plugin.conductor.quick_failures import QuickFailures
from maestro_celery_plugin.conductor.step_record import Faults, StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import (
    BROKEN,
    QUICK_FAILURES,
    UNREADABLE,
    Outcome,
    RecordState,
    WorkerState,
    cannot_run_code,
    is_permanent,
    is_quick_failure,
)
from maestro_celery_plugin.study.broken_machines import read_broken_machines
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S, Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.health import Health

MISSING, FULL = cannot_run_code(errno.ENOENT), cannot_run_code(errno.ENOSPC)


# --- the worker --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "duration_s", "is_failure"),
    [(127, 0.01, True), (1, 0.9, True), (102, 0.1, True), (-11, 0.1, True), (127, 1.5, False), (0, 0.01, False),
     (105, 0.01, False), (100, 0.01, False), (104, 0.01, False)],
)  # fmt: skip
def test_a_quick_failure_is_a_failure_within_a_second(code, duration_s, is_failure):
    assert is_quick_failure(code, duration_s) is is_failure


def test_a_worker_is_held_after_several_failures_in_a_row():
    health = Health()
    for failed in (*[True] * (QUICK_FAILURES - 1), False, *[True] * (QUICK_FAILURES - 1)):
        health.record(failed=failed)
    assert not health.is_held
    health.record(failed=True)
    assert health.is_held


def test_a_worker_that_was_acquitted_is_held_after_twice_as_many_failures():
    health = Health()
    for count in (QUICK_FAILURES, 2 * QUICK_FAILURES, 4 * QUICK_FAILURES):
        for _ in range(count):
            assert not health.is_held
            health.record(failed=True)
        assert health.is_held
        health.acquit()


# --- the failures of a worker in the ledger ----------------------------------------------------------


def ended(sample, code, duration_us=1000):
    return Kind.ENDED, sample, 1, code, duration_us


def test_the_quick_failures_of_a_worker_are_those_since_its_last_other_result():
    failures = QuickFailures()
    failures.apply("w-1", entries(ended(0, 127), ended(1, 0), ended(2, 127)))
    failures.apply("w-1", entries((Kind.STARTED, 3, 1), ended(3, 1), (Kind.NOT_RUN, 4, 1, MISSING)))
    failures.apply("w-2", entries(ended(5, 127), ended(6, 127, 2_000_000)))

    assert failures.of("w-1") == [(1, 2, 127, 1), (1, 3, 1, 1), (1, 4, MISSING, 1)]
    assert failures.of("w-2") == failures.of("w-3") == []


def test_a_worker_is_released_until_its_next_other_result():
    failures = QuickFailures()
    failures.apply("w-1", entries(*[ended(sample, 127) for sample in range(5)]))
    assert failures.concerns(1)
    failures.release("w-1")
    assert failures.accused() == ["w-1"]
    assert not failures.concerns(1)

    failures.apply("w-1", entries(ended(5, 0), *[ended(sample, 127) for sample in range(5)]))
    assert failures.concerns(1)


@pytest.mark.parametrize("duration_s", [0.0, 0.999_999, 1.0, 60.0])
def test_the_coordinator_and_the_workers_agree_about_quick_failures(duration_s):
    """Given any code of a process, a signal or a worker, then the ledger shows what the worker has counted."""
    for code in range(-1200, 256):
        failures = QuickFailures()
        failures.apply("w-1", entries(ended(0, code, int(duration_s * 1e6))))
        assert bool(failures.of("w-1")) is is_quick_failure(code, duration_s), code


# --- the coordinator ---------------------------------------------------------------------------------


class Pool:
    """The live workers; each group serves the task queue `merlin`. NFS hides the name of a new heartbeat at first."""

    def __init__(self) -> None:
        self.groups = {"w": WorkerGroupSettings(task_queues=("merlin",))}
        self.alive: dict[str, Heartbeat] = {}
        self.hidden: dict[str, Heartbeat] = {}
        self.unread: set[str] = set()
        self.excluded: list[str] = []
        self.looks = 0

    def look_again(self):
        self.looks += 1
        self.alive.update(self.hidden)
        return True

    def exclude(self, beat):
        self.excluded.append(beat.name)

    def add(self, name, host, state=WorkerState.IDLE):
        self.alive[name] = Heartbeat(
            name=name, group="w", host=host, node=f"node of {host}", supervisor=(1, 1), process=(1, 1), slots=1, beat=1,
            state=state,
        )  # fmt: skip


class Study:
    def __init__(self, root) -> None:
        self.plan, self.manifest = a_study(root)
        self.session, self.pool = Session.create(self.plan.session), Pool()
        self.start()
        self.record = self.records.register(self.manifest)
        self.record.begin(cancelled=False)

    def start(self):
        """Start a conductor."""
        self.records = StepRecords(self.plan, self.pool.groups)
        # As in a study with workers on several machines.
        self.records.quick_failures = self.records._follower.quick_failures = QuickFailures()
        self.records.load(lambda: self.pool.alive)
        self.machines = BrokenMachines(self.plan, self.session, self.records, self.pool)

    def set_state(self, name, state):
        self.pool.alive[name] = dataclasses.replace(self.pool.alive[name], state=state)

    def as_worker(self, name, *rows):
        writer = LedgerWriter(self.plan.ledger / f"{name}{SUFFIX}", self.plan.number)
        for kind, sample, code, epoch in rows:
            writer.append(kind, 1, epoch, sample, 1000, code=code)
        writer.close()
        self.records.follow()

    def fail(self, name, samples=range(6), kind=Kind.ENDED, code=127):
        self.as_worker(name, *[(kind, sample, code, 1) for sample in samples])

    @property
    def outcomes(self):
        return [Outcome(int(outcome)).name for outcome in self.record.samples.outcome[:6]]

    def is_acquitted(self, name):
        return self.session.heartbeats.take_acquittal(name)


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "study")


def test_a_trial_waits_for_a_machine_whose_worker_is_starting(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b", WorkerState.STARTING)
    study.fail("w-1")
    study.machines.check()

    assert not study.is_acquitted("w-1")
    assert set(study.record.delayed) == {4, 5}


def test_an_accused_worker_on_the_only_machine_continues_at_once(study):
    """Given no other machine, then the samples are the cause, and none of them runs again."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "a")
    study.fail("w-1")

    study.machines.check()

    assert study.is_acquitted("w-1")
    assert study.outcomes == ["FAILED"] * 6


def test_a_machine_is_broken_if_its_samples_run_elsewhere(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b", WorkerState.BUSY)
    study.fail("w-1")
    study.machines.check()
    assert study.outcomes == ["FAILED"] * 4 + ["OPEN"] * 2
    assert set(study.record.delayed) == {4, 5}

    study.machines.check()  # the other machine has not run them yet
    assert not study.is_acquitted("w-1")
    study.as_worker("w-2", (Kind.ENDED, 5, 0, 2))
    study.machines.check()
    study.machines.check()

    assert study.outcomes == ["OPEN"] * 5 + ["FINISHED"]
    assert (study.record.samples.requests[:6] == 0).all()
    assert study.session.worker_stop_requested("w-1")
    (machine,) = read_broken_machines(study.plan.broken_machines)
    assert (machine.node, machine.worker, machine.reason, machine.samples) == ("node of a", "w-1", "exit code 127", 6)


def test_an_accused_worker_continues_if_its_samples_fail_elsewhere_as_well(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1")
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 4, 127, 2), (Kind.ENDED, 5, 1, 2))
    study.machines.check()

    assert study.is_acquitted("w-1")
    assert study.outcomes == ["FAILED"] * 6
    assert read_broken_machines(study.plan.broken_machines) == []


def test_a_failure_on_another_worker_of_the_same_machine_is_no_evidence(study):
    """Given two workers on a broken machine, when the second fails the probes of the first, they run again elsewhere."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "a")
    study.pool.add("w-3", "b", WorkerState.BUSY)
    study.fail("w-1")
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 4, 127, 2), (Kind.ENDED, 5, 127, 2))
    study.machines.check()
    assert study.outcomes == ["FAILED"] * 4 + ["OPEN"] * 2
    assert not study.is_acquitted("w-1")

    study.as_worker("w-3", (Kind.ENDED, 4, 0, 3))
    study.machines.check()
    assert study.session.worker_stop_requested("w-1")


@pytest.mark.parametrize("end", ["time", "machine"])
def test_an_accused_worker_continues_if_no_other_machine_runs_its_samples(study, monkeypatch, end):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b", WorkerState.BUSY)
    study.fail("w-1")
    study.machines.check()
    if end == "time":
        later = clock.monotonic() + broken_machines.TRIAL_LIMIT_S + 1
        monkeypatch.setattr(clock, "monotonic", lambda: later)
    else:
        del study.pool.alive["w-2"]
    study.machines.check()

    assert study.is_acquitted("w-1")


def test_samples_that_a_machine_could_not_run_run_elsewhere(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1", kind=Kind.NOT_RUN, code=FULL)
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 4, 0, 2))
    study.machines.check()

    assert study.outcomes == ["OPEN"] * 4 + ["FINISHED", "OPEN"]
    assert study.session.worker_stop_requested("w-1")


def test_a_trial_ends_when_another_sample_of_the_worker_finishes(study):
    """Given a slower sample in another slot, then the machine works, and the worker continues."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1")
    study.machines.check()
    study.as_worker("w-1", (Kind.ENDED, 8, 0, 1))
    study.as_worker("w-2", (Kind.ENDED, 5, 0, 2))
    study.machines.check()

    assert study.is_acquitted("w-1")
    assert read_broken_machines(study.plan.broken_machines) == []


def test_a_step_record_is_not_finished_while_a_machine_is_on_trial(study):
    """Given a machine that has failed the last samples, then Maestro does not see the end of the step before the trial."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.as_worker("w-2", *[(Kind.ENDED, sample, 0, 1) for sample in range(6, 10)])
    study.fail("w-1")
    assert study.record.samples.is_complete
    assert study.records.state(study.record) is RecordState.RUNNING

    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 4, 1, 2), (Kind.ENDED, 5, 1, 2))
    study.machines.check()
    assert study.records.state(study.record) is RecordState.FINISHED


def test_a_trial_goes_on_when_the_worker_dies(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1")
    study.machines.check()
    del study.pool.alive["w-1"]
    study.as_worker("w-2", (Kind.ENDED, 5, 0, 2))
    study.machines.check()

    assert study.outcomes == ["OPEN"] * 5 + ["FINISHED"]


def test_the_failures_of_all_processes_of_a_pool_run_again(study):
    for name, samples in (("w-1.11", range(6)), ("w-1.12", range(6, 8))):
        study.pool.add(name, "a", WorkerState.HELD)
        study.fail(name, samples)
    study.pool.add("w-2", "b")
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 5, 0, 2))
    study.machines.check()

    assert study.outcomes == ["OPEN"] * 5 + ["FINISHED"]
    assert (study.record.samples.outcome[6:8] == Outcome.OPEN).all()
    assert study.session.worker_stop_requested("w-1")
    assert study.pool.excluded == ["w-1.11"]


def test_a_worker_that_is_held_without_a_trial_continues(study, monkeypatch):
    """Given a worker that has counted other failures than the coordinator, then it does not wait for ever."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.machines.check()
    assert not study.is_acquitted("w-1")

    later = clock.monotonic() + 11
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    study.machines.check()
    assert study.is_acquitted("w-1")


def test_in_a_study_on_one_machine_no_worker_is_accused():
    failures = QuickFailures(is_enabled=False)
    failures.apply("w-1", entries(*[ended(sample, 127) for sample in range(9)]))

    assert failures.accused() == []
    assert not failures.concerns(1)


# --- another machine that appears later ---------------------------------------------------------------


def test_the_failures_of_a_worker_without_another_machine_count_when_one_appears(study):
    """Given a broken machine whose worker was the first of the study, then all of its failures run again elsewhere."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.fail("w-1")
    study.machines.check()
    assert study.is_acquitted("w-1")
    study.set_state("w-1", WorkerState.BUSY)
    study.fail("w-1", range(6, 9))
    study.machines.check()

    study.pool.add("w-2", "b", WorkerState.STARTING)
    study.machines.check()
    assert set(study.record.delayed) == {7, 8}
    study.as_worker("w-2", (Kind.ENDED, 8, 0, 2))
    study.machines.check()

    assert study.outcomes == ["OPEN"] * 6
    assert study.session.worker_stop_requested("w-1")
    (machine,) = read_broken_machines(study.plan.broken_machines)
    assert machine.samples == 9


def test_a_machine_whose_heartbeat_is_not_visible_yet_is_another_machine(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.pool.hidden["w-2"] = study.pool.alive.pop("w-2")
    study.fail("w-1")
    for _ in range(2):
        study.machines.check()

    assert set(study.record.delayed) == {4, 5}
    assert not study.is_acquitted("w-1")


def test_a_worker_that_continues_without_another_machine_does_not_delay_the_end_of_the_step(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.fail("w-1", range(10))
    study.machines.check()

    assert study.records.state(study.record) is RecordState.FAILED


def test_a_worker_that_continues_is_not_told_so_twice(study, monkeypatch, still_clock):
    """Given a heartbeat from before the answer, then the worker finds no second answer when it is held again."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.fail("w-1")
    study.machines.check()
    assert study.is_acquitted("w-1")
    study.machines.check()
    assert not study.is_acquitted("w-1")

    study.fail("w-1", range(6, 9))  # it is held again
    later = clock.monotonic() + 4
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    study.machines.check()
    assert study.is_acquitted("w-1")
    assert study.pool.looks == 1


def test_a_finished_sample_clears_the_failures_that_were_kept(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.fail("w-1")
    study.machines.check()
    study.as_worker("w-1", (Kind.ENDED, 7, 0, 1))
    study.pool.add("w-2", "b")
    study.machines.check()

    assert study.outcomes == ["FAILED"] * 6
    assert not study.record.delayed


def test_a_probe_that_the_worker_on_trial_takes_itself_is_no_evidence(study):
    """Given a worker that was not held when another machine appeared, then it may take the probes itself."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.fail("w-1")
    study.machines.check()
    study.set_state("w-1", WorkerState.BUSY)
    study.pool.add("w-2", "b", WorkerState.BUSY)
    study.machines.check()
    study.as_worker("w-1", (Kind.ENDED, 4, 127, 2), (Kind.ENDED, 5, 127, 2))
    study.machines.check()
    assert study.outcomes == ["FAILED"] * 4 + ["OPEN"] * 2

    study.as_worker("w-2", (Kind.ENDED, 4, 0, 3))
    study.machines.check()
    assert study.session.worker_stop_requested("w-1")


def test_failures_about_which_nothing_was_found_out_in_time_are_kept(study, monkeypatch):
    """Given a trial that has ended because the other machine was busy, then the next one concerns all failures."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b", WorkerState.BUSY)
    study.fail("w-1", range(5))
    study.machines.check()
    later = clock.monotonic() + broken_machines.TRIAL_LIMIT_S + 1
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    study.machines.check()
    assert study.is_acquitted("w-1")

    study.fail("w-1", range(5, 10))
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 9, 0, 2))
    study.machines.check()
    assert study.outcomes == ["OPEN"] * 6


def test_samples_that_have_failed_on_another_machine_do_not_run_again(study):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1")
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 5, 127, 2), (Kind.ENDED, 4, 0, 2))
    study.machines.check()

    assert study.session.worker_stop_requested("w-1")
    assert study.outcomes == ["OPEN"] * 4 + ["FINISHED", "FAILED"]


# --- heartbeats that are not visible, and conductors that resume --------------------------------------


def test_the_heartbeat_of_an_accused_worker_is_looked_for(study):
    """Given a ledger that is visible before the heartbeats, as on NFS, then the failures are not forgotten."""
    for name, host in (("w-1", "a"), ("w-2", "b")):
        study.pool.add(name, host, WorkerState.HELD if host == "a" else WorkerState.IDLE)
    study.pool.hidden, study.pool.alive = study.pool.alive, {}
    study.fail("w-1")
    study.machines.check()

    assert set(study.record.delayed) == {4, 5}


def test_the_failures_of_a_worker_without_a_heartbeat_are_forgotten_after_the_silence_limit(study, monkeypatch):
    study.pool.add("w-2", "b")
    study.fail("w-1", range(10))
    study.machines.check()
    study.machines.check()
    assert study.pool.looks == 1
    assert study.records.state(study.record) is RecordState.RUNNING

    later = clock.monotonic() + SILENCE_LIMIT_S + 1
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    study.machines.check()
    assert study.pool.looks == 2
    assert study.records.state(study.record) is RecordState.FAILED


def test_a_trial_goes_on_after_the_conductor_was_killed(study):
    """Given a conductor that has resumed, then it judges no step record before Maestro has submitted it again."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1")
    study.machines.check()
    study.records.flush()

    study.start()
    study.record = study.records.register(study.manifest)
    study.machines.check()
    assert not study.is_acquitted("w-1")
    study.record.begin(cancelled=False)
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 5, 0, 2))
    study.machines.check()

    assert study.outcomes == ["OPEN"] * 5 + ["FINISHED"]
    assert study.session.worker_stop_requested("w-1")


def test_a_worker_whose_step_records_are_not_submitted_again_continues(study, monkeypatch):
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1")
    study.start()
    study.machines.check()
    later = clock.monotonic() + 11
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    study.machines.check()

    assert study.is_acquitted("w-1")


# --- convicted workers -------------------------------------------------------------------------------


@pytest.fixture
def convicted(study):
    """A study with a convicted worker that has not left yet, although it was asked."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b")
    study.fail("w-1")
    study.machines.check()
    study.as_worker("w-2", (Kind.ENDED, 5, 0, 2))
    return study


def test_a_convicted_worker_is_asked_again_to_end_and_never_continues(convicted, monkeypatch, caplog):
    """Given a full disk, then the request to end fails at first."""

    def fail(self, name):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(Session, "request_worker_stop", fail)
        convicted.machines.check()
        convicted.machines.check()
    assert caplog.text.count("Worker 'w-1' cannot be asked to end") == 1

    later = clock.monotonic() + 11
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    convicted.machines.check()
    assert convicted.session.worker_stop_requested("w-1")
    assert not convicted.is_acquitted("w-1")


@pytest.mark.parametrize("resumes", [False, True])
def test_what_a_convicted_worker_fails_before_it_leaves_runs_again(convicted, resumes):
    convicted.machines.check()
    if resumes:
        convicted.records.flush()
        convicted.start()
        convicted.record = convicted.records.register(convicted.manifest)
        convicted.record.begin(cancelled=False)
    convicted.fail("w-1", range(6, 8))
    convicted.as_worker("w-2", *[(Kind.ENDED, sample, 0, 3) for sample in (0, 1, 2, 3, 4, 8, 9)])
    assert convicted.records.state(convicted.record) is RecordState.RUNNING
    convicted.machines.check()

    assert (convicted.record.samples.outcome[6:8] == Outcome.OPEN).all()


def test_a_broken_machine_is_stored_when_the_disk_has_room_again(convicted, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(convictions, "write_broken_machines", fail)
        convicted.machines.check()
    convicted.machines.check()

    assert [machine.worker for machine in read_broken_machines(convicted.plan.broken_machines)] == ["w-1"]


# --- samples that no machine can run -----------------------------------------------------------------


@pytest.mark.parametrize("code", [MISSING, UNREADABLE, BROKEN, cannot_run_code(errno.EACCES)])
def test_a_fault_that_will_not_pass_is_final_after_three_tries_on_all_or_three_machines(code):
    assert is_permanent(code)
    assert Faults(code=code, count=3, machines={1}).are_final(live_machines=1)
    assert not Faults(code=code, count=2, machines={1}).are_final(live_machines=1)
    assert not Faults(code=code, count=9, machines={1}).are_final(live_machines=2)
    assert Faults(code=code, count=3, machines={1, 2}).are_final(live_machines=2)
    assert not Faults(code=code, count=9, machines={1, 2}).are_final(live_machines=7)
    assert Faults(code=code, count=3, machines={1, 2, 3}).are_final(live_machines=7)


def test_no_fault_is_final_between_two_allocations():
    assert not Faults(code=MISSING, count=99, machines={1, 2, 3}).are_final(live_machines=0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_a_fault_that_can_pass_is_final_after_thirty_tries(number):
    code = cannot_run_code(number)
    assert not is_permanent(code)
    assert not Faults(code=code, count=29, machines={1, 2, 3}).are_final(live_machines=3)
    assert Faults(code=code, count=30, machines={1, 2, 3}).are_final(live_machines=3)


@pytest.mark.parametrize(("code", "outcome"), [(MISSING, Outcome.FAILED), (BROKEN, Outcome.HARD_FAILED)])
def test_the_coordinator_gives_up_a_sample_that_no_machine_can_run(study, code, outcome):
    for count in (1, 2, 3):
        study.records.give_up(lambda record: 1)
        assert study.record.samples.outcome[2] == Outcome.OPEN
        study.as_worker(f"w-{count}", (Kind.NOT_RUN, 2, code, count))
        assert 2 in study.record.delayed
    study.records.give_up(lambda record: 1)

    assert study.record.samples.outcome[2] == outcome
    assert study.record.samples.code(2) == code
    study.records.give_up(lambda record: 1)
    assert not study.record.faults


def test_the_delay_before_the_next_try_doubles(still_clock):
    manifest = a_manifest()
    step = StepRecord(manifest, "sim", states_of(manifest), active=True)
    delays = []
    for _ in range(9):
        apply_to(step, entries((Kind.NOT_RUN, 3, 1, FULL)))
        delays.append(step.delayed[3] - clock.monotonic())

    np.testing.assert_allclose(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60])


def test_a_step_record_does_not_fail_while_a_machine_may_be_the_cause_of_its_failures(study):
    """Given that all samples have failed on one machine, then the step record fails only if they fail elsewhere, too."""
    study.pool.add("w-1", "a", WorkerState.HELD)
    study.pool.add("w-2", "b", WorkerState.BUSY)
    study.fail("w-1", range(10))
    assert study.records.state(study.record) is RecordState.RUNNING
    study.machines.check()
    study.as_worker("w-2", *[(Kind.ENDED, sample, 127, 2) for sample in (8, 9)])
    study.machines.check()

    assert study.records.state(study.record) is RecordState.FAILED


def test_no_message_remains_about_a_step_record_that_has_failed(study):
    """Given more failed samples than may fail, and a running sample, then the sample ends and no other begins."""
    study.record.manifest = replace(study.manifest, max_failures=1)
    study.records.record_sent(study.record, 1, 0, 10)
    study.pool.add("w-1", "a", WorkerState.BUSY)
    study.as_worker("w-1", (Kind.ENDED, 0, 1, 1), (Kind.STARTED, 2, 0, 1), (Kind.ENDED, 1, 1, 1))

    assert study.record.samples.cancelled_epoch == 2
    assert study.records.state(study.record) is RecordState.FAILED
    before = (study.plan.ledger / "coordinator.ledger").stat().st_size
    study.records.state(study.record)
    assert (study.plan.ledger / "coordinator.ledger").stat().st_size == before


def test_a_corrected_rule_applies_when_the_step_record_is_submitted_again(study):
    """Given more failed samples than may fail, when a user allows more of them, then the other samples run."""
    study.record.manifest = replace(study.manifest, max_failures=1)
    study.pool.add("w-1", "a", WorkerState.BUSY)
    study.as_worker("w-1", (Kind.ENDED, 0, 1, 1), (Kind.ENDED, 1, 1, 1))
    assert study.records.state(study.record) is RecordState.FAILED

    study.start()
    study.record = study.records.register(replace(study.manifest, max_failures=2))
    study.record.begin(cancelled=False)

    assert not study.record.stops_early


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"node": 1, "worker": "w", "reason": "r", "samples": 2}]', '[{"node": "\\ud800"}]'])
def test_a_damaged_list_of_broken_machines_is_empty(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    assert read_broken_machines(tmp_path / "broken.json") == []
