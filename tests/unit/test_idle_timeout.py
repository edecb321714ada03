"""The idle timeout: when a worker leaves, and for which reason."""

from __future__ import annotations

import errno

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study import conductor_beats
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.idle_timeout import IdleTimeout

LIMIT_S = 10.0
pytestmark = pytest.mark.usefixtures("still_clock")


@pytest.fixture
def session(tmp_path):
    return Session.create(tmp_path / "session")


def idle_timeout(session, allocation="sim/1", ends_in_s=3600.0):
    return IdleTimeout(session, allocation, LIMIT_S, Deadline(clock.now() + ends_in_s, is_in_allocation=True))


def write_heartbeat(session, name, state, allocation="sim/1"):
    common = {"group": "sim", "host": "h", "node": "n", "supervisor": (1, 1), "process": (1, 1), "slots": 1, "beat": 1}
    session.heartbeats.write(Heartbeat(name=name, state=state, allocation=allocation, **common))


@pytest.mark.parametrize(
    ("working", "leaves"),
    [(set(), True), ({"sim/1"}, False), ({"sim/2"}, True), (None, True)],
    ids=["no allocation", "this allocation", "another allocation", "unknown"],
)
def test_an_idle_worker_stays_while_the_conductor_reports_its_allocation_as_busy(session, working, leaves):
    timeout = idle_timeout(session)
    session.conductors.write(1, working)

    reason = timeout.leave_reason(LIMIT_S + 1, out_of_time=False)

    assert reason == ("all workers of its allocation have been idle for 11 s" if leaves else None)


@pytest.mark.parametrize(("allocation", "leaves"), [("sim/1", False), ("sim/2", True)])
def test_without_a_report_of_the_conductor_the_heartbeats_of_the_workers_decide(session, allocation, leaves):
    timeout = idle_timeout(session)
    session.conductors.write(1)
    write_heartbeat(session, "sim-1-2", WorkerState.BUSY, allocation)

    assert (timeout.leave_reason(LIMIT_S + 1, out_of_time=False) is not None) is leaves


def test_a_worker_stays_before_its_idle_limit_or_outside_an_allocation(session):
    session.conductors.write(1, set())

    assert idle_timeout(session).leave_reason(LIMIT_S - 1, out_of_time=False) is None
    assert idle_timeout(session, allocation="").leave_reason(LIMIT_S + 1, out_of_time=False) is None


def test_a_worker_without_time_for_the_remaining_samples_leaves(session):
    session.conductors.write(1, {"sim/1"})

    assert idle_timeout(session).leave_reason(4.0, out_of_time=True) is None
    assert idle_timeout(session, ends_in_s=40.0).leave_reason(6.0, out_of_time=True) == (
        "its allocation ends in 40 s, too soon for the remaining samples"
    )
    assert idle_timeout(session, ends_in_s=4.0).leave_reason(0.1, out_of_time=False) == "its allocation ends in 4 s"


def test_an_idle_worker_leaves_when_the_conductor_writes_no_heartbeat(session, monkeypatch):
    session.conductors.write(1, {"sim/1"})
    timeout = idle_timeout(session)
    assert timeout.leave_reason(LIMIT_S + 1, out_of_time=False) is None

    later = clock.monotonic() + LIMIT_S + 1
    monkeypatch.setattr(clock, "monotonic", lambda: later)

    assert timeout.leave_reason(LIMIT_S + 1, out_of_time=False) == (
        "it has been idle for 11 s, and the conductor has been silent"
    )


def test_a_heartbeat_that_cannot_be_read_is_no_sign_of_life_of_the_conductor(session, monkeypatch):
    """Given a conductor that is dead, and errors of the file system, then each error does not let a worker wait anew."""
    session.conductors.write(1, {"sim/1"})
    timeout, begin = idle_timeout(session), clock.monotonic()
    timeout.conductor.refresh()

    for seconds in range(1, 12):
        monkeypatch.setattr(clock, "monotonic", lambda seconds=seconds: begin + seconds)
        with monkeypatch.context() as patch:
            patch.setattr(conductor_beats.os, "listdir", fails)
            timeout.conductor.refresh()
        timeout.conductor.refresh()

    assert timeout.conductor.silent_s == LIMIT_S + 1
    assert "the conductor has been silent" in timeout.leave_reason(LIMIT_S + 1, out_of_time=False)


def fails(path):
    raise OSError(errno.EIO, "Input/output error")
