"""Leases: the samples that a slot has taken and not released."""

from __future__ import annotations

import numpy as np
from damages import each_example
from ensembles import entries, span
from hypothesis import given
from hypothesis import strategies as st

from maestro_celery_plugin.ledger.entries import ENTRY, Kind
from maestro_celery_plugin.ledger.leases import Lease, Leases
from maestro_celery_plugin.ledger.sample_set import SampleSet

TAKEN, PASSED, RELEASED = Kind.TAKEN, Kind.PASSED, Kind.RELEASED


def leases_of(**rows_of_writers):
    leases = Leases()
    for writer, rows in rows_of_writers.items():
        leases.apply(writer, entries(*rows))
    return leases


def leased_samples(leases, record=1, size=10):
    return (leases.samples(record) & SampleSet.of_range(0, size)).samples().tolist()


def test_a_taken_range_is_leased():
    assert leased_samples(leases_of(a=[span(TAKEN, 2, 5)])) == [2, 3, 4]


def test_a_part_that_is_passed_on_is_no_longer_leased():
    leases = leases_of(a=[span(TAKEN, 0, 8), span(PASSED, 6, 8), span(PASSED, 4, 6)])
    assert leased_samples(leases) == [0, 1, 2, 3]


def test_no_sample_is_leased_after_the_release():
    leases = leases_of(a=[span(TAKEN, 0, 8), span(RELEASED, 0, 8)])
    assert leased_samples(leases) == []
    assert leases.holders() == set()


def test_each_slot_has_its_own_lease():
    leases = leases_of(
        a=[span(TAKEN, 0, 2, slot=0), span(TAKEN, 4, 8, slot=1), span(PASSED, 6, 8, slot=1), span(RELEASED, 0, 2, slot=0)]
    )
    assert leased_samples(leases) == [4, 5]
    assert leases.count("a") == 1


def test_a_slot_takes_another_range_after_the_release():
    assert leased_samples(leases_of(a=[span(TAKEN, 0, 2), span(RELEASED, 0, 2), span(TAKEN, 7, 9)])) == [7, 8]


def test_each_writer_and_each_step_record_has_its_own_leases():
    leases = leases_of(a=[span(TAKEN, 0, 2)], b=[span(TAKEN, 1, 4)])
    leases.apply("c", entries(span(TAKEN, 8, 9), record=2))

    assert leased_samples(leases) == [0, 1, 2, 3]
    assert leased_samples(leases, record=2) == [8]
    assert leases.holders() == {"a", "b", "c"}
    assert list(leases.of_record(2)) == [Lease(2, 1, 8, 9)]


def test_the_leases_of_a_dead_writer_are_revoked_once():
    leases = leases_of(a=[span(TAKEN, 0, 2)], b=[span(TAKEN, 5, 6)])

    assert leases.of_writer("a") == [Lease(1, 1, 0, 2)]
    leases.revoke("a")
    assert leases.of_writer("a") == []
    assert leased_samples(leases) == [5]
    assert leases.count("a") == 0


def test_other_entries_and_samples_outside_the_step_record_are_ignored():
    leases = leases_of(
        a=[(Kind.STARTED, 3, 1), span(PASSED, 1, 2), span(RELEASED, 1, 2), span(TAKEN, 8, 2**63, slot=3)]
    )
    assert leased_samples(leases) == [8, 9]


def test_a_part_that_was_not_sent_stays_leased():
    leases = leases_of(a=[span(TAKEN, 0, 8), span(PASSED, 4, 8), span(PASSED, 1, 4), span(Kind.KEPT, 1, 4)])
    assert leased_samples(leases) == [0, 1, 2, 3]


def test_a_part_that_was_not_sent_is_leased_again():
    leases = leases_of(a=[span(TAKEN, 0, 8), span(PASSED, 4, 8), span(PASSED, 2, 4), span(Kind.KEPT, 2, 4)])
    assert leased_samples(leases) == [0, 1, 2, 3]


class Model:
    """The same rules for one entry after the other."""

    def __init__(self) -> None:
        self.leases: dict[tuple[str, int], list[int]] = {}

    def apply(self, writer, part):
        for entry in part.tolist():
            kind, _, slot, _, record, epoch, start, stop, *_ = entry
            key = writer, slot
            if kind == TAKEN:
                self.leases[key] = [record, epoch, start, stop]
            elif kind == RELEASED:
                self.leases.pop(key, None)
            elif key in self.leases and kind == PASSED:
                self.leases[key][3] = min(self.leases[key][3], start)
            elif key in self.leases and kind == Kind.KEPT:
                self.leases[key][3] = max(self.leases[key][3], stop)


def rows():
    kinds = st.sampled_from([TAKEN, TAKEN, PASSED, Kind.KEPT, RELEASED, RELEASED, Kind.STARTED])
    return st.tuples(kinds, st.integers(0, 3), st.integers(0, 6), st.integers(0, 8), st.sampled_from([1, 1, 2]))


looks = st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.lists(rows(), max_size=9)), max_size=4), max_size=6)


@each_example(150)
@given(looks, st.sampled_from("abcd"))
def test_the_leases_of_many_entries_at_once_are_those_of_one_after_the_other(looks, dead):
    leases, model = Leases(), Model()
    for look in looks:
        parts = [(writer, entries_of(part)) for writer, part in look]
        leases.apply_all(
            [writer for writer, _ in parts],
            [len(part) for _, part in parts],
            np.concatenate([np.empty(0, ENTRY), *(part for _, part in parts)]),
        )
        for writer, part in parts:
            model.apply(writer, part)
    agree(leases, model)
    expected = [tuple(model.leases.pop(key)) for key in sorted(model.leases) if key[0] == dead]
    assert leases.of_writer(dead) == expected
    leases.revoke(dead)
    agree(leases, model)


def entries_of(part):
    found = [entries(span(kind, start, stop, slot=slot), record=record) for kind, slot, start, stop, record in part]
    return np.concatenate([np.empty(0, ENTRY), *found])


def agree(leases, model):
    for writer in "abcd":
        assert leases.count(writer) == sum(key[0] == writer for key in model.leases)
    assert leases.holders() == {writer for writer, _ in model.leases}
    for record in (1, 2, 3):
        own = [tuple(lease) for lease in model.leases.values() if lease[0] == record]
        assert sorted(leases.of_record(record)) == sorted(own)
        assert leases.has(record) is bool(own)
        holders = {key[0] for key, lease in model.leases.items() if lease[0] == record}
        assert sorted(leases.holders_of([record])) == sorted(holders)
        assert leases.samples(record).samples().tolist() == sorted({s for _, _, a, b in own for s in range(a, b)})
