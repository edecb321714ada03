"""A step record: which samples must still run, when they run, and the state that Maestro receives."""

from __future__ import annotations

import random

import numpy as np
import pytest
from ensembles import a_manifest, apply_to, entries, span, states_of

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.step_record import SUSPECT_LOSSES, StepRecord
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.states import RecordState, cannot_run_code

NOTHING = SampleSet.of_samples([])


def a_record(*rows, active=True, **changes):
    manifest = a_manifest(**changes)
    record = StepRecord(manifest, "sim/X.1", states_of(manifest), active=active)
    apply_to(record, entries(*rows))
    return record


def attempt(sample, code=0, epoch=1):
    return (Kind.STARTED, sample, epoch), (Kind.ENDED, sample, epoch, code)


def lost(*samples, times=SUSPECT_LOSSES):
    return [row for e in range(1, times + 1) for s in samples for row in ((Kind.STARTED, s, e), (Kind.LOST, s, e))]


def samples_of(found):
    return found.samples().tolist()


# --- ranges ------------------------------------------------------------------------------------------


def naive_ranges(mask, bridge):
    """Compute the ranges sample by sample: a range continues while the next sample is wanted or may be covered."""
    ranges, start, stop = [], None, None
    for sample, (wanted, may_cover) in enumerate(zip(mask, bridge, strict=True)):
        if wanted:
            start, stop = sample if start is None else start, sample + 1
        elif not may_cover:
            ranges += [] if start is None else [(start, stop)]
            start = None
    return ranges if start is None else [*ranges, (start, stop)]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 9, 64])
def test_ranges_are_those_of_a_simple_algorithm(size):
    random_ = np.random.default_rng(size)
    for _ in range(60):
        mask, bridge = random_.random((2, size)) < random_.random((2, 1))
        ranges = SampleSet.of_mask(mask).bridged(SampleSet.of_mask(bridge & ~mask))
        assert ranges == naive_ranges(mask, bridge)
        assert all(type(end) is int for pair in ranges for end in pair)  # JSON does not accept integers of NumPy


# --- samples that must run ---------------------------------------------------------------------------


def test_open_samples_are_unassigned_unless_a_worker_has_a_lease_or_they_wait():
    record = a_record(*attempt(0), *attempt(1, 104), retry_delay_s=60)
    leased = SampleSet.of_range(5, 8)

    assert samples_of(record.unassigned(leased)) == [2, 3, 4, 8, 9]


def test_a_sample_that_requests_a_retry_is_due_after_its_delay(advance_clock):
    record = a_record(*attempt(3, 104), retry_delay_s=60)

    assert samples_of(record.due()) == []
    advance_clock(61)
    assert samples_of(record.due()) == [3]
    assert samples_of(record.due()) == []


def test_without_a_delay_a_sample_is_due_at_once():
    assert samples_of(a_record(*attempt(3, 100), *attempt(4, 104), retry_delay_s=0).due()) == [3, 4]


def test_a_sample_whose_slot_still_has_its_range_is_due_when_the_slot_releases_it():
    """Given a delay that ends while the slot runs other samples of the range, then the sample is due later, not never."""
    record = a_record(*attempt(3, 104), retry_delay_s=0)
    leased = SampleSet.of_range(2, 6)

    assert samples_of(record.due(leased)) == []
    assert samples_of(record.due(NOTHING)) == [3]
    assert samples_of(record.due(NOTHING)) == []


def test_a_sample_that_got_an_outcome_while_it_waited_is_not_due():
    record = a_record(*attempt(3, 104))
    apply_to(record, entries(*attempt(3, 0, epoch=2)))

    assert samples_of(record.due()) == []


def test_the_delay_of_a_sample_that_could_not_start_doubles_up_to_a_limit(still_clock):
    record = a_record(*attempt(3, cannot_run_code(28)), max_retries=3000)
    first_s = record.delayed[3] - clock.monotonic()
    apply_to(record, entries(*attempt(3, cannot_run_code(28), epoch=2)))
    second_s = record.delayed[3] - clock.monotonic()
    apply_to(record, entries(*[row for e in range(3, 1500) for row in attempt(3, cannot_run_code(28), e)]))
    last_s = record.delayed[3] - clock.monotonic()

    assert (first_s, second_s, last_s) == pytest.approx((2, 4, 60))


def test_no_sample_of_an_inactive_step_record_waits():
    """A step record of an earlier conductor is inactive; all its open samples are sent when Maestro submits it."""
    record = a_record(*attempt(3, 104), active=False, retry_delay_s=60)

    assert 3 in samples_of(record.unassigned(NOTHING))


def test_a_new_entry_ends_the_idle_time():
    record = a_record()
    record.idle_since = 1.0
    apply_to(record, entries((Kind.STARTED, 0, 1)))

    assert record.idle_since is None


# --- suspects ----------------------------------------------------------------------------------------


def test_suspects_run_one_at_a_time():
    record = a_record(*lost(2, 5, 7))

    assert samples_of(record.unassigned(NOTHING)) == [0, 1, 2, 3, 4, 6, 8, 9]
    assert samples_of(record.due()) == []  # `unassigned` has returned the first suspect
    apply_to(record, entries(*attempt(2, 0, epoch=3)))
    assert samples_of(record.due()) == [5]
    assert samples_of(record.due()) == []
    apply_to(record, entries(*attempt(5, 1, epoch=3)))
    assert samples_of(record.due()) == [7]
    apply_to(record, entries(*attempt(7, 0, epoch=3)))
    assert samples_of(record.due()) == []
    assert record.suspect is None


def test_a_suspect_that_is_lost_again_remains_the_only_one_that_may_run():
    record = a_record(*lost(2, 5))
    record.unassigned(NOTHING)
    apply_to(record, entries((Kind.STARTED, 2, 9), (Kind.LOST, 2, 9)))

    assert 2 in samples_of(record.unassigned(NOTHING))
    assert 5 not in samples_of(record.unassigned(NOTHING))


def test_one_loss_makes_no_suspect():
    assert samples_of(a_record(*lost(2, 5, times=1)).unassigned(NOTHING)) == list(range(10))


def test_a_suspect_that_requests_a_retry_is_sent_once_after_its_delay(advance_clock):
    """A second message would make the first one invalid, and end the sample while it runs."""
    record = a_record(*lost(2, 5), *attempt(5, 104, epoch=3), retry_delay_s=60)
    record.unassigned(NOTHING)
    apply_to(record, entries(*attempt(2, 0, epoch=3)))

    assert samples_of(record.due()) == []
    advance_clock(61)
    assert samples_of(record.due()) == [5]
    assert samples_of(record.due()) == []


def test_every_suspect_runs_in_the_end():
    random_ = random.Random(1)
    record, ran = a_record(*lost(*range(10))), []
    to_run = samples_of(record.unassigned(NOTHING))
    for epoch in range(3, 30):
        assert len(to_run) <= 1
        ran += to_run
        for sample in to_run:
            apply_to(record, entries(*attempt(sample, random_.choice((0, 1, 104)), epoch)))
        to_run = samples_of(record.due())

    assert set(ran) == set(range(10))
    assert record.samples.is_complete


# --- state -------------------------------------------------------------------------------------------

ALL = [row for sample in range(10) for row in attempt(sample)]
HARD = attempt(0, 102)


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize(
    ("rows", "state"),
    [
        ([], RecordState.PENDING),
        ([span(Kind.SENT, 0, 10)], RecordState.PENDING),
        ([span(Kind.TAKEN, 0, 10)], RecordState.PENDING),
        ([(Kind.STARTED, 0, 1)], RecordState.RUNNING),
        ([*attempt(0)], RecordState.RUNNING),
        (lost(0), RecordState.RUNNING),
        (ALL, RecordState.FINISHED),
        ([*ALL[2:], *attempt(0, 1)], RecordState.FINISHED),
        ([*ALL[2:], *HARD], RecordState.FAILED),
    ],
)
def test_the_state_follows_from_the_samples(rows, state, leased):
    assert a_record(*rows).state(has_leases=leased) is state


def test_after_a_hard_failure_a_step_record_ends_when_it_has_no_leases():
    record = a_record(*HARD, (Kind.STARTED, 1, 1))

    assert record.stops_early
    assert record.state(has_leases=True) is RecordState.RUNNING
    assert record.state(has_leases=False) is RecordState.FAILED


def test_a_cancelled_step_record_ends_when_it_has_no_leases():
    record = a_record(*attempt(0))
    record.cancelled = True

    assert record.stops_early
    assert record.state(has_leases=True) is RecordState.RUNNING
    assert record.state(has_leases=False) is RecordState.CANCELLED


@pytest.mark.parametrize("ends", ["cancelled", "failed"])
def test_a_step_record_that_ends_does_not_time_out_with_its_allocation(ends):
    """Given a cancellation, or a hard failure, while a dead worker has samples, when the allocation ends, then Maestro does
    not restart the step record, and the cancellation is not forgotten."""
    record = a_record((Kind.STARTED, 1, 1), *attempt(0, 102) if ends == "failed" else ())
    record.cancelled = ends == "cancelled"
    record.timed_out = True

    assert record.state(has_leases=True) not in (RecordState.TIMED_OUT, RecordState.FINISHED)
    assert record.state(has_leases=False) is (RecordState.CANCELLED if record.cancelled else RecordState.FAILED)


def test_a_step_record_that_begins_again_is_not_cancelled():
    """Given a step record that was cancelled, when Maestro submits it again, then nobody ends the workers of its samples."""
    record = a_record()
    record.cancelled, record.cancelled_at = True, 1.0

    record.begin(cancelled=False)

    assert not record.cancelled
    assert record.cancelled_at is None


def test_a_step_record_that_is_cancelled_after_its_last_sample_is_finished():
    record = a_record(*ALL)
    record.cancelled = True

    assert record.state(has_leases=False) is RecordState.FINISHED


def test_a_step_record_that_is_cancelled_after_a_hard_failure_has_failed():
    record = a_record(*HARD)
    record.cancelled = True

    assert record.state(has_leases=False) is RecordState.FAILED


def test_a_step_record_without_workers_has_failed():
    record = a_record((Kind.STARTED, 0, 1))
    record.failure = "no worker starts"

    assert record.state(has_leases=True) is RecordState.FAILED


# --- failed samples ----------------------------------------------------------------------------------


def ended(*codes):
    return [row for sample, code in enumerate(codes) for row in attempt(sample, code)]


@pytest.mark.parametrize(
    ("codes", "changes", "state"),
    [
        ([0, 1, 1], {}, RecordState.FINISHED),
        ([1, 1, 1], {}, RecordState.FAILED),
        ([1, 101, -9], {}, RecordState.FAILED),
        ([1], {}, RecordState.FAILED),
        ([1, 0, 0], {"max_failures": 0}, RecordState.FAILED),
        ([1, 0, 0], {"max_failures": 1}, RecordState.FINISHED),
        ([1, 1, 1], {"max_failures": 3}, RecordState.FINISHED),
        ([102, 0, 0], {"max_failures": 3}, RecordState.FAILED),
        ([0], {"sampled": False}, RecordState.FINISHED),
        ([1], {"sampled": False}, RecordState.FAILED),
        ([-9], {"sampled": False}, RecordState.FAILED),
        ([101], {"sampled": False}, RecordState.FINISHED),
        ([102], {"sampled": False}, RecordState.FAILED),
        ([105], {"sampled": False}, RecordState.FINISHED),
        ([1], {"sampled": False, "max_failures": 1}, RecordState.FINISHED),
    ],
)
def test_failed_samples_decide_whether_a_step_record_has_failed(codes, changes, state):
    record = a_record(*ended(*codes), samples=len(codes), **changes)

    assert record.state(has_leases=False) is state


def test_a_step_that_is_not_sampled_fails_after_its_last_retry():
    """Given the exit code 104 more often than `max_retries`, then the step has failed, even after a code 101 before."""
    retries = [row for epoch in range(2, 6) for row in attempt(0, 104, epoch)]
    rerun = (Kind.RERUN, 0, 1)
    record = a_record(*attempt(0, 101), rerun, *retries, samples=1, sampled=False, max_retries=2)

    assert record.state(has_leases=False) is RecordState.FAILED


def test_the_step_record_fails_at_once_when_more_samples_have_failed_than_may():
    record = a_record(*attempt(0, 1), max_failures=1)
    assert not record.stops_early

    apply_to(record, entries(*attempt(5, 1)))
    assert record.stops_early
    assert record.state(has_leases=True) is RecordState.RUNNING
    assert record.state(has_leases=False) is RecordState.FAILED


def test_failures_are_not_final_while_a_machine_may_be_the_cause():
    record = a_record(*attempt(0, 1), max_failures=0)
    record.is_on_trial = lambda: True

    assert not record.stops_early
    assert record.state(has_leases=False) is RecordState.RUNNING
