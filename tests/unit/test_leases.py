"""Leases: which samples are in somebody's hands."""

from __future__ import annotations

import numpy as np
from ensembles import entries, span

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.leases import Lease, Leases

TAKEN, PASSED, RELEASED = Kind.TAKEN, Kind.PASSED, Kind.RELEASED


def holdings_of(**rows_of_writers):
    leases = Leases()
    for writer, rows in rows_of_writers.items():
        leases.apply(writer, entries(*rows))
    return leases


def held(leases, record=1, size=10):
    return np.flatnonzero(leases.mask(record, size)).tolist()


def test_a_range_is_held_when_it_is_taken():
    assert held(holdings_of(a=[span(TAKEN, 2, 5)])) == [2, 3, 4]


def test_what_is_passed_on_is_held_no_more():
    leases = holdings_of(a=[span(TAKEN, 0, 8), span(PASSED, 6, 8), span(PASSED, 4, 6)])
    assert held(leases) == [0, 1, 2, 3]


def test_nothing_is_held_after_the_release():
    leases = holdings_of(a=[span(TAKEN, 0, 8), span(RELEASED, 0, 8)])
    assert held(leases) == []
    assert leases.holders() == set()


def test_slots_hold_a_piece_each():
    leases = holdings_of(
        a=[span(TAKEN, 0, 2, slot=0), span(TAKEN, 4, 8, slot=1), span(PASSED, 6, 8, slot=1), span(RELEASED, 0, 2, slot=0)]
    )
    assert held(leases) == [4, 5]
    assert leases.count("a") == 1


def test_a_slot_goes_on_with_another_range():
    assert held(holdings_of(a=[span(TAKEN, 0, 2), span(RELEASED, 0, 2), span(TAKEN, 7, 9)])) == [7, 8]


def test_writers_and_records_are_told_apart():
    leases = holdings_of(a=[span(TAKEN, 0, 2)], b=[span(TAKEN, 1, 4)])
    leases.apply("c", entries(span(TAKEN, 8, 9), record=2))

    assert held(leases) == [0, 1, 2, 3]
    assert held(leases, record=2) == [8]
    assert leases.holders() == {"a", "b", "c"}
    assert list(leases.of_record(2)) == [Lease(2, 8, 9)]


def test_what_a_dead_writer_held_is_given_out_once():
    leases = holdings_of(a=[span(TAKEN, 0, 2)], b=[span(TAKEN, 5, 6)])

    assert leases.revoke("a") == [Lease(1, 0, 2)]
    assert leases.revoke("a") == []
    assert held(leases) == [5]
    assert leases.count("a") == 0


def test_other_entries_and_ranges_outside_the_record_do_no_harm():
    leases = holdings_of(
        a=[(Kind.STARTED, 3, 1), span(PASSED, 1, 2), span(RELEASED, 1, 2), span(TAKEN, 8, 2**63, slot=3)]
    )
    assert held(leases) == [8, 9]
