"""The times of Maestro's step records are those of the samples, whenever Maestro polls."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import pytest
from ensembles import a_manifest, apply_to, entries
from maestrowf.abstracts.enums import State
from maestrowf.datastructures.core.executiongraph import _StepRecord

from maestro_celery_plugin.conductor.run_times import RunTimes
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.maestro import touchpoints
from maestro_celery_plugin.maestro.after_import import STEP_RECORD_MODULE, apply_deferred

NOON = datetime(2026, 1, 1, 12, 0, 0)


def entries_at(*rows):
    """Return entries from (kind, seconds after noon)."""
    made = entries(*[(kind, 0, 1) for kind, _ in rows])
    made["time"] = [NOON.timestamp() + seconds for _, seconds in rows]
    return made


def include(run_times, new):
    """Apply entries of a step record that is not active."""
    manifest = a_manifest()
    record = StepRecord(manifest, "sim/X.1", SampleStates(1, 0), times=run_times)
    apply_to(record, new)


def times(run_times, has_ended=True):
    found = run_times.times(has_ended=has_ended)
    return tuple(None if time is None else time - NOON.timestamp() for time in found)


def test_the_first_start_and_the_last_end_count_in_any_order():
    run_times = RunTimes()
    run_times.submit()
    assert times(run_times) == (None, None)
    include(run_times, entries_at((Kind.STARTED, 5), (Kind.ENDED, 9), (Kind.STARTED, 2), (Kind.STOPPED, 7), (Kind.SENT, 99)))
    include(run_times, entries_at((Kind.ENDED, 8), (Kind.STARTED, 3)))
    assert times(run_times) == (2, 9)


def test_the_times_under_an_earlier_conductor_count_until_a_sample_runs():
    run_times = RunTimes()
    include(run_times, entries_at((Kind.STARTED, 1), (Kind.ENDED, 2)))
    run_times.submit()
    assert times(run_times) == (1, 2)
    assert times(run_times, has_ended=False) == (None, None)
    include(run_times, entries_at((Kind.STARTED, 100)))
    run_times.submit()  # a restart
    include(run_times, entries_at((Kind.STARTED, 150), (Kind.ENDED, 160)))
    assert times(run_times) == (100, 160)


@pytest.fixture
def ledger(monkeypatch):
    """The times that the only coordinator returns for the job `sim#1`, in seconds after noon."""
    known = {"sim#1": (None, None)}

    def run_times(job):
        return tuple(None if time is None else NOON.timestamp() + time for time in known.get(job, (None, None)))

    apply_deferred(STEP_RECORD_MODULE)
    coordinator = SimpleNamespace(run_times=run_times, set_restarts=known.setdefault("restarts", {}).__setitem__)
    monkeypatch.setattr(touchpoints, "coordinators_here", lambda: [coordinator])
    return known


def a_record(job="sim#1", submitted=NOON):
    step = SimpleNamespace(real_name="sim", run={"cmd": "true", "restart": ""})
    record = _StepRecord("/x", step)
    record.jobid.append(job)
    record._submit_time = submitted
    return record


def test_a_step_record_that_starts_and_ends_between_two_polls_has_a_run_time(ledger):
    record = a_record()
    ledger["sim#1"] = (3, 10.6)
    record.mark_end(State.FINISHED)
    assert (record.time_start, record.time_end) == ("2026-01-01 12:00:03", "2026-01-01 12:00:11")
    assert (record.run_time, record.elapsed_time) == ("0d:00h:00m:08s", "0d:00h:00m:11s")


def test_the_time_of_a_poll_is_replaced(ledger):
    record = a_record()
    record.mark_running()
    assert record.time_start != "--"
    ledger["sim#1"] = (3, None)
    record.mark_running()
    assert record.time_start == "2026-01-01 12:00:03"
    before = datetime.now().replace(microsecond=0)
    record.mark_end(State.CANCELLED)  # while no sample ran: the end is that of the cancellation
    assert record._end_time >= before


def test_a_step_record_of_an_earlier_conductor_is_not_submitted_after_its_start(ledger):
    record = a_record(submitted=NOON.replace(hour=20))
    ledger["sim#1"] = (3, 10)
    record.mark_end(State.FINISHED)
    assert record.time_submitted == record.time_start == "2026-01-01 12:00:03"
    assert record.elapsed_time == "0d:00h:00m:07s"


@pytest.mark.parametrize(("limit", "answers"), [(2, [True, True, False]), (0, [True, True, True])])
def test_the_coordinator_knows_whether_maestro_restarts_a_step_record(ledger, limit, answers):
    record = a_record()
    record.mark_running()
    record.restart_limit = limit  # `maestro update` may change it
    found = []
    for _ in range(3):
        found.append(ledger["restarts"]["sim#1"]())
        record.mark_restart()
    assert found == answers


def test_other_step_records_have_the_times_of_maestro(ledger):
    native = a_record(job=7)
    native.mark_end(State.FINISHED)
    never_submitted = a_record()
    never_submitted.jobid.clear()
    never_submitted.mark_end(State.FAILED)
    for record in (native, never_submitted):
        assert record.time_start == "--"
        assert record.time_end != "--"
