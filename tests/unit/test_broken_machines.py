"""Faults of machines: whose fault it is that samples fail, and when a sample fails for good."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from ensembles import a_manifest, a_study, entries, states_of

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor import broken_machines
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
from maestro_celery_plugin.study.heartbeats import Heartbeat
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

    assert failures.of("w-1") == [(1, 2, 127), (1, 3, 1), (1, 4, MISSING)]
    assert failures.of("w-2") == failures.of("w-3") == []


@pytest.mark.parametrize("duration_s", [0.0, 0.999_999, 1.0, 60.0])
def test_the_coordinator_and_the_workers_agree_about_quick_failures(duration_s):
    """Given any code of a process, a signal or a worker, then the ledger shows what the worker has counted."""
    for code in range(-1200, 256):
        failures = QuickFailures()
        failures.apply("w-1", entries(ended(0, code, int(duration_s * 1e6))))
        assert bool(failures.of("w-1")) is is_quick_failure(code, duration_s), code


# --- the coordinator ---------------------------------------------------------------------------------


class Pool:
    """The live workers; each group serves the task queue `merlin`."""

    def __init__(self) -> None:
        self.groups = {"w": WorkerGroupSettings(task_queues=("merlin",))}
        self.alive: dict[str, Heartbeat] = {}
        self.excluded: list[str] = []

    def exclude(self, beat):
        self.excluded.append(beat.name)

    def add(self, name, host, state=WorkerState.IDLE):
        self.alive[name] = Heartbeat(
            name=name, group="w", host=host, node=f"node of {host}", supervisor=(1, 1), process=(1, 1), slots=1, beat=1,
            state=state,
        )  # fmt: skip


class Study:
    def __init__(self, root) -> None:
        self.plan, manifest = a_study(root)
        self.session, self.pool = Session.create(self.plan.session), Pool()
        self.records = StepRecords(self.plan, self.pool.groups)
        self.records.quick_failures = QuickFailures()  # as in a study with workers on several machines
        self.record = self.records.register(manifest)
        self.record.begin(cancelled=False)
        self.machines = BrokenMachines(self.plan, self.session, self.records, self.pool)

    def as_worker(self, name, *rows):
        writer = LedgerWriter(self.plan.ledger / f"{name}{SUFFIX}")
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
    assert study.record.samples.code[2] == code
    study.records.give_up(lambda record: 1)
    assert not study.record.faults


def test_the_delay_before_the_next_try_doubles():
    manifest = a_manifest()
    step = StepRecord(manifest, "sim", states_of(manifest), active=True)
    delays = []
    for _ in range(9):
        step.apply(entries((Kind.NOT_RUN, 3, 1, FULL)))
        delays.append(step.delayed[3] - clock.monotonic())

    np.testing.assert_allclose(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60], atol=0.2)
