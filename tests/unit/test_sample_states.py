"""SampleStates: what becomes of each sample, whatever the order in which its entries are seen."""

from __future__ import annotations

import errno
import random
from collections import Counter

import numpy as np
import pytest
from ensembles import a_manifest, entries, span, states_of

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_states import Counts
from maestro_celery_plugin.states import (
    EXIT_OUTCOMES,
    POISON_LIMIT,
    UNREADABLE,
    ExitCode,
    Outcome,
    cannot_run_code,
    is_request,
    outcome_of,
)

ARRAYS = ("outcome", "code", "duration_us", "started", "ended", "requests", "losses")
STARTED, ENDED, STOPPED, LOST, REOPENED = Kind.STARTED, Kind.ENDED, Kind.STOPPED, Kind.LOST, Kind.RERUN


def progress_of(*rows, **changes):
    progress = states_of(a_manifest(**changes))
    progress.apply(entries(*rows))
    return progress


def outcome(*rows, **changes):
    return Outcome(int(progress_of(*rows, **changes).outcome[0]))


def attempt(epoch, code, sample=0):
    return (STARTED, sample, epoch), (ENDED, sample, epoch, code)


# --- outcomes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*ExitCode, 1, 99, 103, 127, 255, -9, -15])
def test_an_exit_code_decides(code):
    assert outcome(*attempt(1, code)) is outcome_of(code)


def test_a_row_that_cannot_be_read_fails_the_step():
    assert outcome((ENDED, 0, 1, UNREADABLE)) is Outcome.HARD_FAILED


def test_a_sample_that_has_not_ended_is_open():
    assert outcome() is Outcome.OPEN
    assert outcome((STARTED, 0, 1)) is Outcome.OPEN
    assert outcome((STARTED, 0, 1), (STOPPED, 0, 1, 0)) is Outcome.OPEN


@pytest.mark.parametrize("code", [ExitCode.RESTART, ExitCode.RETRY, cannot_run_code(errno.ENOSPC)])
@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_sample_may_ask_to_run_again_so_often_and_then_has_failed(code, max_retries):
    asked = [row for epoch in range(1, max_retries + 2) for row in attempt(epoch, code)]

    assert outcome(*asked[:-2], max_retries=max_retries) is Outcome.OPEN
    assert outcome(*asked, max_retries=max_retries) is Outcome.FAILED


def test_a_sample_that_asked_may_succeed():
    assert outcome(*attempt(1, 104), *attempt(2, 0), max_retries=1) is Outcome.FINISHED


def test_requests_are_told_from_outcomes():
    requests = [code for code in (*ExitCode, 1, -9, UNREADABLE, *map(cannot_run_code, (0, 1, 28))) if is_request(code)]
    assert requests == [100, 104, -1000, -1001, -1028]
    assert all(is_request(code) == (EXIT_OUTCOMES[code] is Outcome.OPEN) for code in ExitCode)


def test_a_sample_that_takes_its_worker_down_too_often_is_poisonous():
    lost = [row for epoch in range(1, POISON_LIMIT + 1) for row in ((STARTED, 0, epoch), (LOST, 0, epoch))]

    assert POISON_LIMIT == 5
    assert outcome(*lost[:-1]) is Outcome.OPEN
    assert outcome(*lost) is Outcome.FAILED


def test_losses_do_not_count_as_requests():
    progress = progress_of((STARTED, 0, 1), (LOST, 0, 1), *attempt(2, 104), max_retries=1)

    assert (progress.losses[0], progress.requests[0]) == (1, 1)
    assert progress.outcome[0] == Outcome.OPEN


def test_a_loss_of_which_the_sample_cannot_have_been_the_reason_counts_as_neither():
    """Its code is 1: the conductor had ended, too."""
    progress = progress_of(*[row for epoch in range(1, 9) for row in ((STARTED, 0, epoch), (LOST, 0, epoch, 1))])

    assert (progress.losses[0], progress.requests[0], progress.outcome[0]) == (0, 0, Outcome.OPEN)
    assert progress.ended[0] == 8


def test_an_attempt_that_was_ended_counts_as_neither():
    progress = progress_of(*[row for epoch in range(1, 9) for row in ((STARTED, 0, epoch), (STOPPED, 0, epoch, 100))])

    assert (progress.losses[0], progress.requests[0], progress.outcome[0]) == (0, 0, Outcome.OPEN)


# --- what is known of an attempt ---------------------------------------------------------------------


def test_the_last_attempt_is_told():
    progress = progress_of(
        (STARTED, 0, 1), (ENDED, 0, 1, 104, 7_000_000), (STARTED, 0, 4), (ENDED, 0, 4, 3, 2**40)
    )

    assert (progress.started[0], progress.ended[0], progress.code[0]) == (4, 4, 3)
    assert progress.duration_us[0] == 2**40  # twelve days


def test_codes_below_zero_are_told():
    assert progress_of((ENDED, 0, 1, 104), (ENDED, 0, 2, -9)).code[0] == -9
    assert progress_of((ENDED, 0, 1, -1028)).code[0] == -1028


def test_an_attempt_without_an_end_is_running_unless_it_was_lost():
    progress = progress_of((STARTED, 0, 1), (STARTED, 1, 1), (LOST, 1, 1), (STARTED, 2, 1), (STOPPED, 2, 1), (STARTED, 3, 1), (ENDED, 3, 1))  # fmt: skip

    assert progress.running[:4].tolist() == [True, False, False, False]


def test_epochs_are_those_that_were_sent_cancelled_or_reopened():
    progress = progress_of(span(Kind.SENT, 0, 10, 3), span(Kind.CANCELLED, 0, 10, 4), (STARTED, 0, 9))
    assert (progress.epoch, progress.cancelled_epoch) == (4, 4)

    progress.apply(entries(span(Kind.SENT, 5, 6, 5), (REOPENED, 0, 6)))
    assert (progress.epoch, progress.cancelled_epoch) == (6, 4)


def test_entries_about_samples_that_there_are_not_are_ignored():
    progress = progress_of(
        *attempt(1, 0, sample=10), (LOST, 2**64 - 1, 1), (REOPENED, 11, 1), (ENDED, 9, 1, 0), samples=10
    )

    assert progress.counts() == Counts(total=10, finished=1, failed=0, running=0, pending=9)


@pytest.mark.parametrize(
    ("rows", "restart"),
    [
        ([], False),
        ([(ENDED, 0, 1, cannot_run_code(28))], False),
        ([(STARTED, 0, 1)], True),
        ([(STARTED, 0, 1), (LOST, 0, 1)], True),
        ([(STARTED, 0, 1), (STOPPED, 0, 1, -15)], True),
        ([*attempt(1, 100)], True),
        ([*attempt(1, 104)], False),
        ([*attempt(1, -9)], True),
        ([*attempt(1, 7)], True),
        ([*attempt(1, 102)], True),
        ([*attempt(1, UNREADABLE)], False),
        ([*attempt(1, cannot_run_code(28))], False),
        ([*attempt(1, 100), *attempt(2, 104)], False),
        ([*attempt(1, 104), (STARTED, 0, 2), (LOST, 0, 2)], True),
    ],
)
def test_restart_runs_when_a_started_sample_runs_again_unless_it_asked_for_cmd(rows, restart):
    assert progress_of(*rows).runs_restart(0) is restart


# --- reopened samples --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 102, 0])
def test_a_reopened_sample_is_open_again_with_all_its_chances(code):
    first = [*attempt(1, 104), *attempt(2, 104), (STARTED, 0, 3), (LOST, 0, 3), *attempt(4, code)]

    progress = progress_of(*first, (REOPENED, 0, 4), max_retries=2)

    assert (progress.outcome[0], progress.requests[0], progress.losses[0]) == (Outcome.OPEN, 0, 0)
    progress.apply(entries(*attempt(5, 104), *attempt(6, 104)))
    assert progress.outcome[0] == Outcome.OPEN
    progress.apply(entries(*attempt(7, 104)))
    assert progress.outcome[0] == Outcome.FAILED


def test_what_a_reopened_sample_did_before_is_void_also_when_it_is_seen_late():
    """Readers take the file of a worker 'all-1' before that of the coordinator."""
    progress = progress_of(*attempt(1, 1), *attempt(2, 0))

    progress.apply(entries((REOPENED, 0, 1)))
    assert progress.outcome[0] == Outcome.FINISHED

    progress = progress_of((REOPENED, 0, 1))
    progress.apply(entries(*attempt(1, 102)))
    assert progress.outcome[0] == Outcome.OPEN


def test_others_are_not_reopened():
    progress = progress_of(*attempt(1, 1), *attempt(1, 1, sample=1), (LOST, 2, 1), (REOPENED, 0, 1))

    assert progress.outcome[:2].tolist() == [Outcome.OPEN, Outcome.FAILED]
    assert progress.losses[2] == 1


# --- any order ---------------------------------------------------------------------------------------

CODES = (0, 0, 1, 100, 104, 104, 102, 105, -9, UNREADABLE, cannot_run_code(28))


def a_history(random_, samples, writers):
    """Return each writer's entries in its order, as a study with every kind of trouble might leave them."""
    history = {writer: [] for writer in range(writers)}
    for sample in range(samples):
        epoch = 1
        for _ in range(random_.randrange(9)):
            epoch += random_.choice((0, 1, 1, 1, 2))
            worker = random_.randrange(1, writers)
            code = random_.choice(CODES)
            history[worker].append((STARTED, sample, epoch))
            end = random_.randrange(8)
            if end < 5:
                history[worker].append((ENDED, sample, epoch, code, 1000 * epoch + abs(code)))
            elif end == 5:
                history[worker].append((STOPPED, sample, epoch, -15, 5))
            if end >= 6 or not random_.randrange(12):  # also one that was only thought lost
                history[0].append((LOST, sample, epoch))
            if not random_.randrange(8):
                history[0].append((REOPENED, sample, epoch))
    history[0] += [span(Kind.SENT, 0, samples, 2), span(Kind.CANCELLED, 0, samples, 7), span(Kind.SENT, 1, 2, 9)]
    return history


def interleavings(random_, history):
    """Yield the entries in pieces, in any order of writers, but in order for each."""
    left = {writer: list(rows) for writer, rows in history.items() if rows}
    while left:
        writer = random_.choice(list(left))
        count = random_.randrange(1, 12)
        yield left[writer][:count]
        left[writer] = left[writer][count:]
        if not left[writer]:
            del left[writer]


def expected(rows, max_retries):
    """Say what became of a sample, the slow and plain way."""
    reopened = max((row[2] for row in rows if row[0] == REOPENED), default=0)
    rows = [row for row in rows if row[2] > reopened]
    ends = [row for row in rows if row[0] == ENDED]
    finals = [
        (row[2], Outcome.HARD_FAILED if row[3] == UNREADABLE else outcome_of(row[3]))
        for row in ends
        if not is_request(row[3])
    ]
    if finals:
        return max(finals)[1]
    losses, requests = sum(row[0] == LOST for row in rows), len(ends)
    return Outcome.FAILED if losses >= POISON_LIMIT or requests > max_retries else Outcome.OPEN


@pytest.mark.parametrize("seed", range(12))
def test_the_order_in_which_writers_are_read_changes_nothing(seed):
    random_ = random.Random(seed)
    samples = 12
    history = a_history(random_, samples, writers=4)
    rows = [row for writer in history.values() for row in writer]
    at_once = progress_of(*rows, samples=samples)

    for _ in range(4):
        progress = states_of(a_manifest(samples=samples))
        for piece in interleavings(random_, history):
            progress.apply(entries(*piece))
            counts = progress.counts()
            assert counts.total == samples == counts.finished + counts.failed + counts.running + counts.pending
            assert min(counts.finished, counts.failed, counts.running, counts.pending) >= 0
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(progress, name), getattr(at_once, name), name)
        assert (progress.epoch, progress.cancelled_epoch) == (at_once.epoch, 7)

    kinds = (STARTED, ENDED, STOPPED, LOST, REOPENED)
    for sample in range(samples):
        own = [row for row in rows if row[0] in kinds and row[1] == sample]
        assert at_once.outcome[sample] == expected(own, max_retries=2), own


def test_entries_of_two_attempts_in_one_reading_are_taken_by_epoch():
    assert outcome(*attempt(1, 0), *attempt(2, 3)) is outcome(*attempt(2, 3), *attempt(1, 0)) is Outcome.FAILED


# --- counts ------------------------------------------------------------------------------------------


def test_counts():
    progress = progress_of(
        *attempt(1, 0, 0), *attempt(1, 105, 1), *attempt(1, 1, 2), *attempt(1, 102, 3), (STARTED, 4, 1), (LOST, 5, 1),
        *attempt(1, 104, 6),
    )  # fmt: skip

    assert progress.counts() == Counts(total=10, finished=2, failed=2, running=1, pending=5)
    assert not progress.is_complete


def test_a_record_is_complete_when_every_sample_has_an_outcome():
    progress = states_of(a_manifest(samples=3))
    for sample, code in enumerate((0, 1, 102)):
        assert not progress.is_complete
        progress.apply(entries(*attempt(1, code, sample)))

    assert progress.is_complete
    assert Counter(progress.outcome.tolist()) == {Outcome.FINISHED: 1, Outcome.FAILED: 1, Outcome.HARD_FAILED: 1}
