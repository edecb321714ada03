"""Waiting messages: those that were sent and that no slot has taken."""

from __future__ import annotations

from ensembles import entries, span

from maestro_celery_plugin.ledger.claims import MessageName
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages

SENT, TAKEN, PASSED, KEPT = Kind.SENT, Kind.TAKEN, Kind.PASSED, Kind.KEPT


def messages_after(*rows_of_writers):
    messages = WaitingMessages()
    for rows in rows_of_writers:
        messages.apply(entries(*rows))
    return messages


def waiting(messages, record=1):
    return sorted((name.start, name.stop) for name in messages.of_record(record))


def test_a_message_waits_until_a_slot_takes_it():
    messages = messages_after([span(SENT, 0, 8), span(SENT, 8, 9)])
    assert waiting(messages) == [(0, 8), (8, 9)]
    assert messages.samples(1).ranges() == [(0, 9)]

    messages.apply(entries(span(TAKEN, 0, 8), span(PASSED, 6, 8), span(PASSED, 4, 6)))
    assert waiting(messages) == [(4, 6), (6, 8), (8, 9)]


def test_a_message_of_another_epoch_or_step_record_waits_for_itself():
    messages = messages_after([span(SENT, 0, 8, 1), span(SENT, 0, 8, 2)], [span(TAKEN, 0, 8, 1)])
    messages.apply(entries(span(SENT, 3, 4), record=2))
    assert messages.of_record(1) == [MessageName(1, 2, 0, 8)]
    assert waiting(messages, record=2) == [(3, 4)]


def test_the_end_of_a_wait_may_be_visible_before_its_beginning():
    assert waiting(messages_after([span(TAKEN, 4, 8)], [span(TAKEN, 0, 8), span(PASSED, 4, 8)], [span(SENT, 0, 8)])) == []


def test_a_part_that_was_not_sent_does_not_wait():
    messages = messages_after([span(TAKEN, 0, 8), span(PASSED, 4, 8), span(PASSED, 1, 4), span(KEPT, 1, 4)])
    assert waiting(messages) == [(4, 8)]


def test_a_message_that_was_taken_back_does_not_wait():
    messages = messages_after([span(SENT, 0, 8)])
    messages.forget(MessageName(1, 1, 0, 8))
    messages.forget(MessageName(1, 1, 0, 8))
    assert waiting(messages) == []
    assert not messages.samples(1)


def test_messages_about_some_samples_are_found_among_many():
    messages = messages_after([span(SENT, start, start + 2) for start in range(0, 200, 2)], [span(SENT, 7, 2**63, 9)])
    within = SampleSet.of_ranges([(5, 6), (8, 8)])

    assert messages.of_record(1, within) == [MessageName(1, 1, 4, 6)]
    assert messages.samples(1, within).ranges() == [(4, 6)]
    assert messages.of_record(2, within) == []
    assert not messages.samples(2, within)
    assert messages.of_record(1, SampleSet.of_range(300, 301)) == [MessageName(1, 9, 7, 2**63)]
