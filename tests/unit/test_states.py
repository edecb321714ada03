"""States: the tables map every exit code and every state."""

from __future__ import annotations

import errno
import json
import signal

import pytest
from maestrowf.abstracts.enums import State

from maestro_celery_plugin.states import (
    ALLOCATION_ENDS,
    BROKEN,
    EXIT_OUTCOMES,
    MAESTRO_STATES,
    UNREADABLE,
    AllocationState,
    ExitCode,
    Outcome,
    RecordState,
    WorkerState,
    cannot_run_code,
    errno_of,
    is_request,
    outcome_of,
)


def test_every_exit_code_has_an_outcome():
    assert set(EXIT_OUTCOMES) == set(ExitCode)


def test_every_outcome_has_an_exit_code():
    assert set(EXIT_OUTCOMES.values()) == set(Outcome)


def test_every_record_state_is_a_state_of_maestro():
    assert set(MAESTRO_STATES) == set(RecordState)
    for name in MAESTRO_STATES.values():
        assert name in State.__members__


def test_each_record_state_has_its_own_state_of_maestro():
    assert len(set(MAESTRO_STATES.values())) == len(RecordState)


def test_every_allocation_state_has_a_record_state():
    assert set(ALLOCATION_ENDS) == set(AllocationState)


def test_an_open_allocation_ends_no_step_record_and_every_other_state_ends_it():
    for state, record in ALLOCATION_ENDS.items():
        assert (record is RecordState.RUNNING) == state.is_open, state


def test_every_end_of_an_allocation_is_a_state_that_maestro_supports():
    assert {MAESTRO_STATES[state] for state in ALLOCATION_ENDS.values()} <= {"RUNNING", "TIMEDOUT", "CANCELLED"}


def test_the_text_of_a_worker_state_is_its_value():
    """Scripts read it in the output of `status --json`."""
    for state in WorkerState:
        assert f"{state}" == str(state) == json.loads(json.dumps(state)) == state.name.lower()


def test_an_unknown_state_of_a_worker_is_that_of_another_version():
    assert WorkerState("dancing") is WorkerState.UNKNOWN


def test_the_exit_codes_are_those_of_merlin():
    assert {code.name: code.value for code in ExitCode} == {
        "SUCCESS": 0,
        "RESTART": 100,
        "SOFT_FAIL": 101,
        "HARD_FAIL": 102,
        "RETRY": 104,
        "STOP_WORKERS": 105,
        "RAISE_ERROR": 106,
    }


@pytest.mark.parametrize("code", [1, 2, 99, 103, 107, 127, 137, 255, -9, -15, -64, -997])
def test_a_code_without_a_meaning_is_a_soft_failure(code):
    assert outcome_of(code) is Outcome.FAILED


@pytest.mark.parametrize("number", sorted(signal.valid_signals()))
def test_every_signal_is_a_soft_failure(number):
    assert outcome_of(-number) is Outcome.FAILED


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, Outcome.FINISHED),
        (100, Outcome.OPEN),
        (101, Outcome.FAILED),
        (102, Outcome.HARD_FAILED),
        (104, Outcome.OPEN),
        (105, Outcome.STOPPED_STUDY),
        (106, Outcome.HARD_FAILED),
        (-998, Outcome.HARD_FAILED),
        (-999, Outcome.HARD_FAILED),
        (-1000, Outcome.OPEN),
        (-1028, Outcome.OPEN),
    ],
)
def test_a_code_with_a_meaning_gives_its_outcome(code, outcome):
    assert outcome_of(code) is outcome


def test_the_codes_below_those_of_signals_are_stored_in_ledgers_and_never_change():
    assert (BROKEN, UNREADABLE) == (-998, -999)
    assert cannot_run_code(errno.ENOSPC) == -1028


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_a_sample_that_could_not_start_is_open_and_keeps_its_errno(number):
    code = cannot_run_code(number)
    assert outcome_of(code) is Outcome.OPEN
    assert is_request(code)
    assert errno_of(code) == number


def test_the_mapping_covers_every_code():
    """Given any code of a process, a signal or a worker, then exactly one rule gives its outcome."""
    named = {0: Outcome.FINISHED, 102: Outcome.HARD_FAILED, 105: Outcome.STOPPED_STUDY, 106: Outcome.HARD_FAILED}
    for code in range(-1200, 256):
        request = code in (100, 104) or code <= -1000
        hard = code in (-998, -999)
        expected = Outcome.OPEN if request else Outcome.HARD_FAILED if hard else named.get(code, Outcome.FAILED)
        assert outcome_of(code) is expected, code
        assert is_request(code) is request, code
        assert errno_of(code) == (-1000 - code if code <= -1000 else None), code
