"""The priority of a step as the level of its messages."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.broker.app import queue_for
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.priority import MAX_PRIORITY, priority_of
from maestro_celery_plugin.config.priority import HIGHEST_LEVEL, level_of
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.session import BrokerLocation, Session


@pytest.mark.parametrize(
    ("priority", "level"),
    [
        (None, 4), ("", 4), ("MINIMAL", 0), ("low", 2), ("Medium", 4), ("HIGH", 6), ("EXPEDITED", 8),
        (0, 0), (1, 8), (0.0, 0), (0.25, 2), (0.5, 4), (0.75, 6), ("0.75", 6), (1.0, 8),
    ],
)  # fmt: skip
def test_each_priority_of_maestro_has_a_level(priority, level):
    assert level_of(priority) == level


@pytest.mark.parametrize(("priority", "start"), [("HELD", "found 'HELD', but"), ("x", "found 'x'; "), (2, "found '2'; ")])
def test_a_priority_without_a_level_has_a_message(priority, start):
    with pytest.raises(ValueError, match=f"^{start}"):
        level_of(priority)


@pytest.mark.parametrize(("on_redis", "priorities"), [(True, [0, 1, 9]), (False, [9, 8, 0])])
def test_samples_that_run_again_are_first_and_then_the_highest_level(on_redis, priorities):
    def priority(mode: RunMode, level: int) -> int:
        return priority_of(RangeTask("/s", "0", "m", 1, 0, 1, 1, mode), level, on_redis=on_redis)

    again = {priority(mode, level) for mode in RunMode if mode is not RunMode.FIRST for level in (0, HIGHEST_LEVEL)}
    assert [*again, priority(RunMode.FIRST, HIGHEST_LEVEL), priority(RunMode.FIRST, 0)] == priorities


def test_a_queue_has_priorities_unless_its_broker_refuses_them(tmp_path):
    session = Session.create(tmp_path)
    assert queue_for(session, "q").max_priority == MAX_PRIORITY
    session.write_broker(BrokerLocation(url="amqp://h", has_priorities=False))
    assert queue_for(session, "q").max_priority is None
