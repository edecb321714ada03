"""Entries about many step records: applied together, they have the effect that they have one step record at a time."""

from __future__ import annotations

import numpy as np
import pytest
from damages import each_example
from ensembles import a_manifest, entries
from hypothesis import given
from hypothesis import strategies as st

from maestro_celery_plugin.conductor.new_entries import NewEntries
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.ledger import attempt_rules
from maestro_celery_plugin.ledger.entries import ENTRY, Kind
from maestro_celery_plugin.ledger.joint_states import apply_together
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.states import Outcome

SIZES = (5, 1, 300, 5)
KINDS = st.sampled_from([*[Kind.STARTED, Kind.ENDED] * 4, *Kind])
CODES = st.sampled_from([0, 0, 0, 0, 1, 100, 101, 102, 104, 105, -15])
ROWS = st.tuples(st.integers(0, 3), KINDS, st.sampled_from([0, 1, 2, 4, 299, 300, 2**63]), st.integers(1, 4), CODES)


def look_of(rows):
    """Return entries from (place of the step record, kind, sample, epoch, code), in the order of the step records."""
    made = [entries((kind, sample, epoch, code, sample + 2), record=place + 1) for place, kind, sample, epoch, code in rows]
    together = np.concatenate([np.empty(0, ENTRY), *made])
    return together[np.argsort(together["record"], kind="stable")]


@each_example(150)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=12), min_size=1, max_size=4))
def test_the_states_are_those_of_one_step_record_after_the_other(looks):
    joint, single = ([SampleStates(size, 2) for size in SIZES] for _ in range(2))
    for look in map(look_of, looks):
        edges = np.searchsorted(look["record"], np.arange(1, len(SIZES) + 2))
        apply_together(joint, edges, look)
        for number, states in enumerate(single, 1):
            if (look["record"] == number).any():
                states.apply(look[look["record"] == number])
    for one, other in zip(joint, single, strict=True):
        every = np.arange(len(one))
        assert one._table.of(every).tobytes() == other._table.of(every).tobytes()
        assert (one.has_started, one.epoch, one.cancelled_epoch) == (other.has_started, other.epoch, other.cancelled_epoch)
        assert [one.total(outcome) for outcome in Outcome] == [other.total(outcome) for outcome in Outcome]


def test_the_rules_are_applied_once_to_the_attempts_at_samples_of_all_step_records(monkeypatch):
    calls = []
    apply = attempt_rules.apply_attempts
    monkeypatch.setattr(attempt_rules, "apply_attempts", lambda *args: calls.append(len(args[2])) or apply(*args))
    records = [SampleStates(10, 2) for _ in range(50)]
    look = look_of([row for place in range(50) for row in ((place, Kind.STARTED, 3, 1, 0), (place, Kind.ENDED, 3, 1, 0))])

    apply_together(records, np.arange(0, 101, 2), look)

    assert calls == [100]
    assert [states.total(Outcome.FINISHED) for states in records] == [1] * 50


@pytest.mark.parametrize("restored", [10, 2])
def test_new_entries_belong_to_their_step_records_also_beyond_a_restored_manifest(restored):
    """Given a manifest of before an addition, then entries about samples that it does not have change nothing."""
    records = [StepRecord(a_manifest(number=n, samples=size), f"sim/{n}", SampleStates(size, 2), active=True)
               for n, size in ((1, restored), (2, 10))]  # fmt: skip
    new = NewEntries.sorted(look_of([(1, Kind.ENDED, 3, 1, 104), (0, Kind.ENDED, 2, 1, 104), (0, Kind.STARTED, 2, 1, 0)]))

    ended = new.apply(records)

    assert [list(record.delayed) for record in records] == [[2] if restored == 10 else [], [3]]
    assert [record.has_started for record in records] == [restored == 10, False]
    assert [record.number for record, _ in ended] == ([1, 2] if restored == 10 else [2])


def test_entries_about_unknown_step_records_are_left_out():
    new = NewEntries.sorted(look_of([(1, Kind.STARTED, 3, 1, 0), (0, Kind.STARTED, 2, 1, 0), (2, Kind.STARTED, 4, 1, 0)]))

    known = new.only({1, 3})

    assert known.numbers == [1, 3]
    assert known.edges.tolist() == [0, 1, 2]
    assert known.entries["start"].tolist() == [2, 4]
    assert new.only(()).numbers == []
    assert new.only(()).apply([]) == []
