"""SampleStates: the state of each sample, which does not depend on the order of the entries."""

from __future__ import annotations

import errno
import random
from collections import Counter

import numpy as np
import pytest
from ensembles import a_manifest, entries, span, states_of

from maestro_celery_plugin.ledger import sample_states, state_table
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.report.durations import Durations
from maestro_celery_plugin.states import (
    BROKEN,
    EXIT_OUTCOMES,
    POISON_LIMIT,
    UNREADABLE,
    ExitCode,
    Outcome,
    RunMode,
    cannot_run_code,
    is_request,
    outcome_of,
)

COLUMNS = ("outcome", "started", "ended", "losses", "requests", "mode")
STARTED, ENDED, STOPPED, LOST, RERUN = Kind.STARTED, Kind.ENDED, Kind.STOPPED, Kind.LOST, Kind.RERUN
NOT_RUN, GAVE_UP = Kind.NOT_RUN, Kind.GAVE_UP


def states_after(*rows, **changes):
    states = states_of(a_manifest(**changes))
    states.apply(entries(*rows))
    return states


def outcome(*rows, **changes):
    return Outcome(int(states_after(*rows, **changes).outcome[0]))


def attempt(epoch, code, sample=0):
    return (STARTED, sample, epoch), (ENDED, sample, epoch, code)


# --- outcomes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*ExitCode, 1, 99, 103, 127, 255, -9, -15])
def test_the_exit_code_gives_the_outcome(code):
    assert outcome(*attempt(1, code)) is outcome_of(code)


def test_an_unreadable_row_of_the_sample_table_is_a_hard_failure():
    assert outcome((ENDED, 0, 1, UNREADABLE)) is Outcome.HARD_FAILED


def test_a_sample_without_an_end_is_open():
    assert outcome() is Outcome.OPEN
    assert outcome((STARTED, 0, 1)) is Outcome.OPEN
    assert outcome((STARTED, 0, 1), (STOPPED, 0, 1, 0)) is Outcome.OPEN


@pytest.mark.parametrize("code", [ExitCode.RESTART, ExitCode.RETRY, cannot_run_code(errno.ENOSPC)])
@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_sample_fails_when_it_requests_another_run_more_than_max_retries_times(code, max_retries):
    rows = [row for epoch in range(1, max_retries + 2) for row in attempt(epoch, code)]

    assert outcome(*rows[:-2], max_retries=max_retries) is Outcome.OPEN
    assert outcome(*rows, max_retries=max_retries) is Outcome.FAILED


def test_a_sample_may_finish_after_it_requested_another_run():
    assert outcome(*attempt(1, 104), *attempt(2, 0), max_retries=1) is Outcome.FINISHED


def test_requests_for_another_run_are_distinguished_from_outcomes():
    requests = [code for code in (*ExitCode, 1, -9, UNREADABLE, *map(cannot_run_code, (0, 1, 28))) if is_request(code)]
    assert requests == [100, 104, -1000, -1001, -1028]
    assert all(is_request(code) == (EXIT_OUTCOMES[code] is Outcome.OPEN) for code in ExitCode)


def test_a_sample_fails_after_too_many_losses():
    lost = [row for epoch in range(1, POISON_LIMIT + 1) for row in ((STARTED, 0, epoch), (LOST, 0, epoch))]

    assert POISON_LIMIT == 5
    assert outcome(*lost[:-1]) is Outcome.OPEN
    assert outcome(*lost) is Outcome.FAILED


def test_losses_do_not_count_as_requests():
    states = states_after((STARTED, 0, 1), (LOST, 0, 1), *attempt(2, 104), max_retries=1)

    assert (states.losses[0], states.requests[0]) == (1, 1)
    assert states.outcome[0] == Outcome.OPEN


def test_a_loss_that_the_sample_cannot_have_caused_does_not_count():
    """The code of such a LOST entry is 1, for example because the conductor had ended as well."""
    states = states_after(*[row for epoch in range(1, 9) for row in ((STARTED, 0, epoch), (LOST, 0, epoch, 1))])

    assert (states.losses[0], states.requests[0], states.outcome[0]) == (0, 0, Outcome.OPEN)
    assert states.ended[0] == 8


def test_an_attempt_that_its_worker_has_ended_counts_neither_as_a_loss_nor_as_a_request():
    states = states_after(*[row for epoch in range(1, 9) for row in ((STARTED, 0, epoch), (STOPPED, 0, epoch, 100))])

    assert (states.losses[0], states.requests[0], states.outcome[0]) == (0, 0, Outcome.OPEN)


# --- attempts and epochs -----------------------------------------------------------------------------


def test_epochs_and_code_are_those_of_the_last_attempt():
    states = states_after(*attempt(1, 104), *attempt(4, 3))

    assert (states.started[0], states.ended[0], states.code(0)) == (4, 4, 3)


@pytest.mark.parametrize("is_late", [False, True])
def test_the_duration_is_that_of_the_last_attempt(is_late):
    """Also if the end of an earlier attempt becomes visible later."""
    states, durations = states_of(a_manifest()), Durations(10)
    batches = [[(ENDED, 0, 1, 104, 7_000_000)], [(STARTED, 0, 4), (ENDED, 0, 4, 3, 2**40), (ENDED, 10, 4, 3, 5)]]
    for batch in reversed(batches) if is_late else batches:
        states.apply(entries(*batch))
        durations.apply(states, entries(*batch))

    assert durations.us[0] == 2**40  # twelve days
    assert not durations.us[1:].any()


def test_negative_codes_are_stored():
    assert states_after((ENDED, 0, 1, 104), (ENDED, 0, 2, -9)).code(0) == -9
    assert states_after((ENDED, 0, 1, -1028)).code(0) == -1028


def test_an_attempt_is_running_unless_it_has_ended_or_was_lost():
    states = states_after(
        (STARTED, 0, 1), (STARTED, 1, 1), (LOST, 1, 1), (STARTED, 2, 1), (STOPPED, 2, 1), (STARTED, 3, 1), (ENDED, 3, 1)
    )  # fmt: skip

    assert states.running[:4].tolist() == [True, False, False, False]


def test_the_epoch_is_the_highest_that_was_sent_cancelled_or_marked_to_run_again():
    states = states_after(span(Kind.SENT, 0, 10, 3), span(Kind.CANCELLED, 0, 10, 4), (STARTED, 0, 9))
    assert (states.epoch, states.cancelled_epoch) == (4, 4)

    states.apply(entries(span(Kind.SENT, 5, 6, 5), (RERUN, 0, 6)))
    assert (states.epoch, states.cancelled_epoch) == (6, 4)


def test_entries_about_samples_outside_the_step_record_are_ignored():
    states = states_after(
        *attempt(1, 0, sample=10), (LOST, 2**64 - 1, 1), (RERUN, 11, 1), (ENDED, 9, 1, 0), samples=10
    )

    assert states.counts() == Counts(total=10, finished=1, failed=0, running=0, pending=9)


FULL = cannot_run_code(28)


@pytest.mark.parametrize(
    ("rows", "mode"),
    [
        ([], RunMode.FIRST),
        ([(ENDED, 0, 1, FULL)], RunMode.FIRST),
        ([(STARTED, 0, 1), (NOT_RUN, 0, 1, FULL)], RunMode.FIRST),
        ([*attempt(1, UNREADABLE)], RunMode.FIRST),
        ([*attempt(1, 104)], RunMode.AGAIN),
        ([*attempt(1, 100)], RunMode.RESTART),
        ([*attempt(1, 1)], RunMode.RESTART),
        ([(STARTED, 0, 1), (LOST, 0, 1)], RunMode.RESTART),
        ([(STARTED, 0, 1), (STOPPED, 0, 1, -15)], RunMode.RESTART),
        ([*attempt(1, 104), (STARTED, 0, 2), (LOST, 0, 2)], RunMode.RESTART),
        ([*attempt(1, 100), *attempt(2, 104)], RunMode.AGAIN),
        ([*attempt(1, 100), (STARTED, 0, 2), (NOT_RUN, 0, 2, FULL)], RunMode.RESTART),
        ([*attempt(1, 100), *attempt(2, FULL)], RunMode.RESTART),
        ([*attempt(1, 104), (NOT_RUN, 0, 2, FULL)], RunMode.AGAIN),
    ],
)
def test_restart_runs_when_a_sample_has_run_unless_it_requested_cmd(rows, mode):
    """An attempt that could not start does not count: the sample does not begin anew after it."""
    assert states_after(*rows).mode[0] == mode


# --- faults of the machine ---------------------------------------------------------------------------


def test_a_sample_that_a_machine_could_not_run_is_open_and_has_no_code():
    states = states_after((STARTED, 0, 1), (NOT_RUN, 0, 1, FULL), (NOT_RUN, 1, 1, BROKEN))

    assert states.counts() == Counts(total=10, finished=0, failed=0, running=0, pending=10)
    assert (states.requests[0], states.losses[0], states.code(0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(FULL, Outcome.FAILED), (127, Outcome.FAILED), (BROKEN, Outcome.HARD_FAILED), (UNREADABLE, Outcome.HARD_FAILED)],
)
def test_a_sample_fails_when_the_coordinator_gives_it_up(code, expected):
    states = states_after((NOT_RUN, 0, 1, code), (GAVE_UP, 0, 1, code))

    assert (states.outcome[0], states.code(0)) == (expected, code)


@pytest.mark.parametrize("later", [(ENDED, 0, 2, BROKEN), (GAVE_UP, 0, 2, BROKEN), (ENDED, 0, 2, 1), (NOT_RUN, 0, 2, FULL)])
def test_a_finished_sample_never_changes(later):
    assert outcome(*attempt(1, 0), later) is outcome(later, *attempt(1, 0)) is Outcome.FINISHED


@pytest.mark.parametrize("order", [1, -1])
def test_outcomes_of_a_dead_worker_that_become_visible_late_are_invalid(order):
    """Given a range of a worker that counts as dead, then only attempts under later epochs decide about its samples."""
    rows = [span(Kind.INVALID, 0, 2, 3), *attempt(3, 0, 0), *attempt(3, 0, 2), *attempt(4, 3, 1)]
    states = states_after(*rows[::order])

    assert states.outcome[:3].tolist() == [Outcome.OPEN, Outcome.FAILED, Outcome.FINISHED]


def test_an_attempt_that_was_declared_lost_has_no_outcome():
    """Given a worker that counts as dead, when it reports an end later, then only the next attempt decides."""
    assert outcome((LOST, 0, 1), *attempt(1, 0)) is outcome(*attempt(1, 0), (LOST, 0, 1)) is Outcome.OPEN
    assert outcome((LOST, 0, 1), *attempt(1, 0), *attempt(2, 3)) is Outcome.FAILED


# --- samples that run again --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 102, 0])
def test_a_sample_that_runs_again_is_open_and_may_request_max_retries_further_runs(code):
    first = [*attempt(1, 104), *attempt(2, 104), (STARTED, 0, 3), (LOST, 0, 3), *attempt(4, code)]

    states = states_after(*first, (RERUN, 0, 4), max_retries=2)

    assert (states.outcome[0], states.requests[0], states.losses[0]) == (Outcome.OPEN, 0, 0)
    states.apply(entries(*attempt(5, 104), *attempt(6, 104)))
    assert states.outcome[0] == Outcome.OPEN
    states.apply(entries(*attempt(7, 104)))
    assert states.outcome[0] == Outcome.FAILED


def test_earlier_outcomes_of_a_sample_that_runs_again_are_invalid_in_any_order_of_entries():
    """Readers read the file of a worker 'all-1' before that of the coordinator."""
    states = states_after(*attempt(1, 1), *attempt(2, 0))

    states.apply(entries((RERUN, 0, 1)))
    assert states.outcome[0] == Outcome.FINISHED

    states = states_after((RERUN, 0, 1))
    states.apply(entries(*attempt(1, 102)))
    assert states.outcome[0] == Outcome.OPEN


def test_other_samples_do_not_run_again():
    states = states_after(*attempt(1, 1), *attempt(1, 1, sample=1), (LOST, 2, 1), (RERUN, 0, 1))

    assert states.outcome[:2].tolist() == [Outcome.OPEN, Outcome.FAILED]
    assert states.losses[2] == 1


# --- any order ---------------------------------------------------------------------------------------

CODES = (0, 0, 1, 100, 104, 104, 102, 105, -9, UNREADABLE, cannot_run_code(28))


def a_history(random_, samples, writers):
    """Return the entries of each writer in their order, for a study with every kind of failure."""
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
            if end >= 6 or not random_.randrange(12):  # sometimes also an attempt that has ended
                history[0].append((LOST, sample, epoch))
            if not random_.randrange(8):
                history[0].append((RERUN, sample, epoch))
    history[0] += [span(Kind.SENT, 0, samples, 2), span(Kind.CANCELLED, 0, samples, 7), span(Kind.SENT, 1, 2, 9)]
    return history


def interleavings(random_, history):
    """Yield the entries in pieces: the writers in random order, the entries of each writer in their order."""
    left = {writer: list(rows) for writer, rows in history.items() if rows}
    while left:
        writer = random_.choice(list(left))
        count = random_.randrange(1, 12)
        yield left[writer][:count]
        left[writer] = left[writer][count:]
        if not left[writer]:
            del left[writer]


def expected(rows, max_retries):
    """Return the outcome of a sample; this algorithm is slow, but simple."""
    invalid = max((row[2] for row in rows if row[0] in (RERUN, LOST)), default=0)
    rerun = max((row[2] for row in rows if row[0] == RERUN), default=0)
    rows = [row for row in rows if row[2] > rerun]
    ends = [row for row in rows if row[0] == ENDED]
    finals = [
        (row[2], Outcome.HARD_FAILED if row[3] == UNREADABLE else outcome_of(row[3]))
        for row in ends
        if not is_request(row[3]) and row[2] > invalid
    ]
    finished = [final for final in finals if final[1] in (Outcome.FINISHED, Outcome.STOPPED_STUDY)]
    if finals:
        return max(finished or finals)[1]
    losses, requests = sum(row[0] == LOST for row in rows), sum(is_request(row[3]) for row in ends)
    return Outcome.FAILED if losses >= POISON_LIMIT or requests > max_retries else Outcome.OPEN


@pytest.mark.parametrize("many", [1, 4, 256])
@pytest.mark.parametrize("seed", range(12))
def test_the_states_do_not_depend_on_the_order_of_the_writers(seed, many, monkeypatch):
    monkeypatch.setattr(sample_states, "_MANY", many)  # of so many equal entries, each is applied once
    random_ = random.Random(seed)
    samples = 12
    history = a_history(random_, samples, writers=4)
    rows = [row for writer in history.values() for row in writer]
    at_once = states_after(*rows, samples=samples)

    for _ in range(4):
        states = states_of(a_manifest(samples=samples))
        for piece in interleavings(random_, history):
            states.apply(entries(*piece))
            counts = states.counts()
            assert counts.total == samples == counts.finished + counts.failed + counts.running + counts.pending
            assert min(counts.finished, counts.failed, counts.running, counts.pending) >= 0
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(states, name), getattr(at_once, name), name)
        np.testing.assert_array_equal(states.code(slice(None)), at_once.code(slice(None)))
        assert (states.epoch, states.cancelled_epoch) == (at_once.epoch, 7)

    kinds = (STARTED, ENDED, STOPPED, LOST, RERUN)
    for sample in range(samples):
        own = [row for row in rows if row[0] in kinds and row[1] == sample]
        assert at_once.outcome[sample] == expected(own, max_retries=2), own


def test_the_higher_epoch_decides_between_two_attempts_in_one_call():
    assert outcome(*attempt(1, 3), *attempt(2, 102)) is outcome(*attempt(2, 102), *attempt(1, 3)) is Outcome.HARD_FAILED
    assert outcome(*attempt(1, 102), *attempt(2, 3)) is outcome(*attempt(2, 3), *attempt(1, 102)) is Outcome.FAILED


# --- counts ------------------------------------------------------------------------------------------


def test_each_sample_is_counted_in_one_state():
    states = states_after(
        *attempt(1, 0, 0), *attempt(1, 105, 1), *attempt(1, 1, 2), *attempt(1, 102, 3), (STARTED, 4, 1), (LOST, 5, 1),
        *attempt(1, 104, 6),
    )  # fmt: skip

    assert states.counts() == Counts(total=10, finished=2, failed=2, running=1, pending=5)
    assert not states.is_complete


def test_a_step_record_is_complete_when_every_sample_has_an_outcome():
    states = states_of(a_manifest(samples=3))
    for sample, code in enumerate((0, 1, 102)):
        assert not states.is_complete
        states.apply(entries(*attempt(1, code, sample)))

    assert states.is_complete
    assert Counter(states.outcome.tolist()) == {Outcome.FINISHED: 1, Outcome.FAILED: 1, Outcome.HARD_FAILED: 1}


# --- samples with changed inputs ---------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_a_range_of_finished_samples_runs_again_with_cmd(order):
    rows = [*attempt(1, 0, 0), *attempt(1, 0, 1), *attempt(1, 0, 2), *attempt(1, 100, 3), (RERUN, 1, 2, 1, 4)]
    states = states_after(*rows[::order])

    assert states.outcome[:4].tolist() == [Outcome.FINISHED, Outcome.OPEN, Outcome.OPEN, Outcome.OPEN]
    assert np.asarray(states.mode)[:5].tolist() == [RunMode.RESTART, RunMode.AGAIN, RunMode.AGAIN, RunMode.AGAIN, RunMode.FIRST]
    states.apply(entries(*attempt(3, 100, 1)))
    assert np.asarray(states.mode)[1:3].tolist() == [RunMode.RESTART, RunMode.AGAIN]


def test_another_limit_of_retries_decides_again():
    """Given a corrected specification with another `max_retries`, then it applies to the samples that have run, too."""
    states = states_after(*attempt(1, 104), *attempt(2, 104), *attempt(1, 1, 1), max_retries=1)
    assert states.outcome[:2].tolist() == [Outcome.FAILED, Outcome.FAILED]

    states.set_max_retries(2)

    assert states.outcome[:2].tolist() == [Outcome.OPEN, Outcome.FAILED]
    assert states.total(Outcome.FAILED) == 1


# --- sets of samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_sets_of_samples_agree_with_what_is_known_of_each(monkeypatch, block):
    """Whether few samples are asked for one by one, or all of them in blocks."""
    monkeypatch.setattr(state_table, "_BLOCK", block)
    for seed in range(20):
        random_ = random.Random(seed)
        history = a_history(random_, 12, writers=4)
        states = states_after(*(row for rows in history.values() for row in rows), samples=12)
        within = SampleSet.of_samples(random_.sample(range(12), random_.randrange(13)))
        wanted = within.samples().tolist()

        is_open = states.outcome == Outcome.OPEN
        assert states.find(Outcome.OPEN).samples().tolist() == np.flatnonzero(is_open).tolist()
        assert states.find(Outcome.OPEN, within=within).samples().tolist() == [s for s in wanted if is_open[s]]
        assert states.find_running().samples().tolist() == np.flatnonzero(states.running).tolist()
        assert states.find_running(within).samples().tolist() == [s for s in wanted if states.running[s]]
        assert states.find_begun().samples().tolist() == np.flatnonzero((states.started > 0) | ~is_open).tolist()
        assert states.find_lost(2).samples().tolist() == np.flatnonzero((states.losses > 1) & is_open).tolist()
        modes = {sample: mode for start, stop, mode in states.by_mode(within) for sample in range(start, stop)}
        assert modes == {sample: states.mode[sample] for sample in wanted}


def test_neighbours_with_the_same_mode_form_a_range():
    states = states_after(*attempt(1, 100, 2), *attempt(1, 100, 3), *attempt(1, 104, 4), samples=7)

    assert states.by_mode(SampleSet.of_ranges([(1, 3), (3, 6)])) == [
        (1, 2, RunMode.FIRST), (2, 4, RunMode.RESTART), (4, 5, RunMode.AGAIN), (5, 6, RunMode.FIRST)
    ]  # fmt: skip
