"""The priority of a step as the level of its messages."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.broker.app import message_priority, queue_for
from maestro_celery_plugin.config.priority import HIGHEST_LEVEL, MEDIUM_LEVEL, level_of
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings, StepFacts
from maestro_celery_plugin.study.session import Session


@pytest.mark.parametrize(
    ("priority", "level"),
    [
        (None, 5), ("", 5), ("MINIMAL", 0), ("low", 2), ("Medium", 5), ("HIGH", 7), ("EXPEDITED", 9),
        (0, 0), (1, 9), (0.0, 0), (0.25, 2), (0.5, 5), (0.75, 7), ("0.75", 7), (1.0, 9),
    ],
)  # fmt: skip
def test_each_priority_of_maestro_has_a_level(priority, level):
    assert level_of(priority) == level


@pytest.mark.parametrize(("priority", "start"), [("HELD", "found 'HELD', but"), ("x", "found 'x'; "), (2, "found '2'; ")])
def test_a_priority_without_a_level_has_a_message(priority, start):
    with pytest.raises(ValueError, match=f"^{start}"):
        level_of(priority)


@pytest.mark.parametrize(("url", "priorities"), [("redis://h", [9, 0]), ("valkey://h", [9, 0]), ("amqp://h", [0, 9])])
def test_the_highest_level_is_the_first_on_each_broker(url, priorities):
    assert [message_priority(url, level) for level in (0, HIGHEST_LEVEL)] == priorities


def test_the_queues_of_a_session_without_priorities_are_as_before(tmp_path):
    """RabbitMQ refuses to declare an existing queue with other arguments."""
    session = Session.create(tmp_path)
    assert queue_for(session, "q").max_priority is None
    session.write_priorities()
    assert queue_for(session, "q").max_priority == HIGHEST_LEVEL


@pytest.mark.parametrize(("levels", "expected"), [((5, 5), False), ((2, 5), True), ((), False)])
def test_a_study_has_priorities_if_they_differ(levels, expected):
    steps = {str(n): StepFacts(queues=("q",), priority=level) for n, level in enumerate(levels)}
    steps["native"] = StepFacts(queues=(), priority=MEDIUM_LEVEL + 1)
    settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(), steps=steps)
    assert settings.has_priorities is expected
