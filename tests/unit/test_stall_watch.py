"""The stall watch: when a worker that receives no messages counts as stalled."""

from __future__ import annotations

import itertools

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.worker.stall_watch import CHECK_INTERVAL_S, STALL_LIMIT_S, StallWatch


class World:
    """A worker and its broker, with a clock that a test moves."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.waiting, self.received, self.can_receive = 1000.0, 1, 0, True
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        self.watch = StallWatch(self.count_waiting, lambda: self.can_receive, lambda: self.received)

    def count_waiting(self) -> int:
        if self.waiting < 0:
            raise OSError("the broker does not answer")
        return self.waiting

    def check(self, seconds: float) -> bool:
        """Check at intervals for some seconds; return whether the worker has stalled."""
        for _ in range(int(seconds / CHECK_INTERVAL_S) + 1):
            self.watch.check()
            self.now += CHECK_INTERVAL_S
        return self.watch.has_stalled


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_a_worker_that_receives_none_of_the_waiting_messages_has_stalled(world):
    assert not world.check(STALL_LIMIT_S - CHECK_INTERVAL_S)
    assert world.check(CHECK_INTERVAL_S)


@pytest.mark.parametrize("change", [{"waiting": 0}, {"waiting": -1}, {"received": 1}, {"can_receive": False}])
def test_the_time_begins_again(world, change):
    """Given no message, no answer, a received message, or no free slot, then the waiting time begins again."""
    before = vars(world).copy()
    world.check(STALL_LIMIT_S - CHECK_INTERVAL_S)

    vars(world).update(change)
    world.check(0)
    vars(world).update({key: before[key] for key in change if key != "received"})

    assert not world.check(STALL_LIMIT_S - CHECK_INTERVAL_S)
    assert world.check(CHECK_INTERVAL_S)


def test_a_worker_without_an_answer_of_its_broker_is_cut_off_until_it_has_one(world, caplog):
    world.waiting = -1
    world.check(0)
    assert not world.watch.is_cut_off
    world.check(CHECK_INTERVAL_S)
    assert world.watch.is_cut_off
    assert "cannot reach the broker and takes no samples until it answers: the broker does not answer" in caplog.text

    world.waiting = 0
    world.check(0)
    assert not world.watch.is_cut_off
    assert "reaches the broker again" in caplog.text


def test_a_message_shows_that_a_worker_is_not_cut_off(world):
    world.waiting = -1
    world.check(2 * CHECK_INTERVAL_S)
    world.received += 1
    world.can_receive = False
    world.check(0)
    assert not world.watch.is_cut_off


def test_an_error_of_one_check_does_not_end_the_watch(monkeypatch):
    """Given heartbeats that cannot be read now, then a later check sees that the worker has stalled."""
    errors = [OSError(116, "Stale file handle")]

    def can_receive():
        if errors:
            raise errors.pop()
        return True

    watch = StallWatch(lambda: 1, can_receive, lambda: 0)
    now = itertools.count(step=STALL_LIMIT_S)
    monkeypatch.setattr(clock, "sleep", lambda seconds: None)
    monkeypatch.setattr(clock, "monotonic", lambda: float(next(now)))

    watch._run()

    assert watch.has_stalled
    assert not errors
