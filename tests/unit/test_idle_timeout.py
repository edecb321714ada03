"""The stay of a worker: when it leaves, and what it goes by."""

from __future__ import annotations

import time

import pytest

from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.idle_timeout import IdleTimeout

LIMIT_S = 10.0


@pytest.fixture
def session(tmp_path):
    return Session.create(tmp_path / "session")


def stay(session, allocation="sim/1", ends_in_s=3600.0):
    return IdleTimeout(session, allocation, LIMIT_S, Deadline(time.time() + ends_in_s, is_in_allocation=True))


def beat(session, name, state, allocation="sim/1"):
    common = {"group": "sim", "host": "h", "node": "n", "supervisor": (1, 1), "process": (1, 1), "slots": 1, "beat": 1}
    session.heartbeats.write(Heartbeat(name=name, state=state, allocation=allocation, **common))


@pytest.mark.parametrize(
    ("working", "leaves"),
    [(set(), True), ({"sim/1"}, False), ({"sim/2"}, True), (None, True)],
    ids=["nobody", "others", "another allocation", "not known"],
)
def test_an_idle_worker_stays_while_the_conductor_sees_others_of_its_allocation_work(session, working, leaves):
    one = stay(session)
    session.heartbeats.write_conductor(1, working)

    why = one.leave_reason(LIMIT_S + 1, refuses=False)

    assert (why is not None) is leaves
    assert why is None or why == "nobody in its allocation has had anything to do for 11 s"


@pytest.mark.parametrize(("state", "allocation", "leaves"), [("busy", "sim/1", False), ("busy", "sim/2", True)])
def test_without_the_conductors_word_their_heartbeats_count(session, state, allocation, leaves):
    one = stay(session)
    session.heartbeats.write_conductor(1)
    beat(session, "sim-1-2", state, allocation)

    assert (one.leave_reason(LIMIT_S + 1, refuses=False) is not None) is leaves


def test_a_worker_that_has_something_to_do_or_is_in_no_allocation_stays(session):
    session.heartbeats.write_conductor(1, set())

    assert stay(session).leave_reason(LIMIT_S - 1, refuses=False) is None
    assert stay(session, allocation="").leave_reason(LIMIT_S + 1, refuses=False) is None


def test_a_worker_leaves_that_has_no_time_for_what_is_left(session):
    session.heartbeats.write_conductor(1, {"sim/1"})

    assert stay(session).leave_reason(4.0, refuses=True) is None
    assert stay(session, ends_in_s=40.0).leave_reason(6.0, refuses=True) == (
        "its allocation ends in 40 s, too soon for the samples that are left"
    )
    assert stay(session, ends_in_s=4.0).leave_reason(0.1, refuses=False) == "its allocation ends in 4 s"


def test_a_worker_leaves_when_nothing_is_heard_of_the_conductor(session, monkeypatch):
    session.heartbeats.write_conductor(1, {"sim/1"})
    one = stay(session)
    assert one.leave_reason(LIMIT_S + 1, refuses=False) is None

    later = time.monotonic() + LIMIT_S + 1
    monkeypatch.setattr("maestro_celery_plugin.clock.monotonic", lambda: later)

    assert one.leave_reason(LIMIT_S + 1, refuses=False) == (
        "it has had nothing to do for 11 s, and nothing is heard of the conductor"
    )
