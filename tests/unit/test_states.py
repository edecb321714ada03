"""States: every code and every state has its place in the tables."""

from __future__ import annotations

import pytest
from maestrowf.abstracts.enums import State

from maestro_celery_plugin.states import (
    ALLOCATION_ENDS,
    EXIT_OUTCOMES,
    MAESTRO_STATES,
    AllocationState,
    ExitCode,
    Outcome,
    RecordState,
    outcome_of,
)


def test_every_exit_code_has_an_outcome():
    assert set(EXIT_OUTCOMES) == set(ExitCode)


def test_every_outcome_comes_of_an_exit_code():
    assert set(EXIT_OUTCOMES.values()) == set(Outcome)


def test_every_record_state_is_a_state_of_maestro():
    assert set(MAESTRO_STATES) == set(RecordState)
    for name in MAESTRO_STATES.values():
        assert name in State.__members__


def test_no_two_record_states_are_the_same_to_maestro():
    assert len(set(MAESTRO_STATES.values())) == len(RecordState)


def test_every_end_of_an_allocation_has_a_state():
    assert set(ALLOCATION_ENDS) == set(AllocationState)


def test_what_is_open_ends_nothing_and_what_has_ended_ends_something():
    for state, record in ALLOCATION_ENDS.items():
        assert (record is RecordState.RUNNING) == state.is_open, state


def test_no_end_of_an_allocation_is_unknown_to_maestro():
    assert {MAESTRO_STATES[state] for state in ALLOCATION_ENDS.values()} <= {"RUNNING", "TIMEDOUT", "CANCELLED"}


def test_the_exit_codes_are_merlins():
    assert {code.name: code.value for code in ExitCode} == {
        "SUCCESS": 0,
        "RESTART": 100,
        "SOFT_FAIL": 101,
        "HARD_FAIL": 102,
        "RETRY": 104,
        "STOP_WORKERS": 105,
        "RAISE_ERROR": 106,
    }


@pytest.mark.parametrize("code", [1, 2, 99, 103, 107, 127, 137, 255, -9, -15, -999, -1028])
def test_a_code_without_a_meaning_is_a_soft_failure(code):
    assert outcome_of(code) is Outcome.FAILED


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
    ],
)
def test_a_code_with_a_meaning(code, outcome):
    assert outcome_of(code) is outcome
