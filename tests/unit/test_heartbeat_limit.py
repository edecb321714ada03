"""The heartbeat limit, and what a supervisor does to a session that is not its own any more."""

from __future__ import annotations

import os

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.heartbeat_limit import HEARTBEAT_LIMIT_S, HeartbeatLimit
from maestro_celery_plugin.worker.supervisor import _Supervisor


def test_the_limit_is_exceeded_before_the_conductor_counts_the_worker_as_dead(monkeypatch):
    limit, now = HeartbeatLimit(), clock.since_boot()
    assert HEARTBEAT_LIMIT_S <= SILENCE_LIMIT_S - 10
    assert not limit.is_exceeded

    limit.renew(now)
    monkeypatch.setattr(clock, "since_boot", lambda: now + HEARTBEAT_LIMIT_S - 0.1)
    assert not limit.is_exceeded
    monkeypatch.setattr(clock, "since_boot", lambda: now + HEARTBEAT_LIMIT_S + 0.1)
    assert limit.is_exceeded
    limit.suspend()
    assert not limit.is_exceeded


def test_another_process_sees_the_limit():
    limit = HeartbeatLimit()
    child = os.fork()
    if child == 0:
        limit.renew(clock.since_boot() - HEARTBEAT_LIMIT_S - 1)
        os._exit(0)
    os.waitpid(child, 0)

    assert limit.is_exceeded


@pytest.fixture
def session(tmp_path):
    return Session.create(tmp_path / "session")


@pytest.fixture
def supervisor(session):
    """The supervisor of the worker `w-1`, which has a heartbeat."""
    supervisor = _Supervisor(session)
    supervisor.name = "w-1"
    (session.path / "workers" / "w-1.json").touch()
    return supervisor


def files_of(session):
    return sorted(path.name for path in (session.path / "workers").iterdir())


def test_a_supervisor_asks_its_worker_to_stop_and_removes_its_heartbeat(session, supervisor):
    supervisor._request_stop("w-1")
    assert files_of(session) == ["w-1.json", "w-1.stop"]

    supervisor._remove_heartbeat()
    assert files_of(session) == []


def test_the_supervisor_of_an_earlier_launch_touches_nothing_in_a_new_session(session, supervisor):
    """Given a study that was launched again in the same directory, with a worker of the same name."""
    Session.create(session.path)

    supervisor._request_stop("w-1")
    supervisor._remove_heartbeat()

    assert files_of(session) == ["w-1.json"]


def test_the_heartbeat_of_a_worker_that_could_not_write_it_stays(session, supervisor):
    """The conductor then finds that the machine is the cause, and counts nothing against the samples."""
    supervisor.lost_heartbeat = True

    supervisor._remove_heartbeat()

    assert files_of(session) == ["w-1.json"]


def test_a_worker_that_could_not_write_its_heartbeat_is_replaced(supervisor):
    """Given a user's worker whose machine was cut off from the files, then the machine works on when it sees them again."""
    assert not supervisor.must_restart(-9, in_allocation=False, has_fault=False)
    supervisor.lost_heartbeat = True
    assert supervisor.must_restart(-9, in_allocation=False, has_fault=False)
    supervisor.end_requested = True
    assert not supervisor.must_restart(-9, in_allocation=False, has_fault=False)
