"""The worker pool at the end of a study: an error of one file does not keep workers alive."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest
from support import PATIENCE_S

from maestro_celery_plugin.conductor.pool_end import PoolEnd
from maestro_celery_plugin.conductor.relatives import Relatives
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.machine import host_name, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat, Heartbeats
from maestro_celery_plugin.study.session import Session


@pytest.fixture
def worker():
    """A process that stands for a supervisor and its worker."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def session(tmp_path):
    return Session.create(tmp_path / "session")


def beat_of(process, name="w-1", machine=None, beat=1):
    number = ProcessId.of(process.pid)
    identity = (number.pid, number.start)
    return Heartbeat(
        name=name, group="w", host=host_name(), node="n", supervisor=identity, process=identity, slots=1, beat=beat,
        state=WorkerState.IDLE, machine=machine_id() if machine is None else machine,
    )  # fmt: skip


def fail(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["request_worker_stop", "remove", "all"])
def test_an_error_of_one_file_does_not_keep_a_worker_alive(session, worker, monkeypatch, caplog, broken):
    session.heartbeats.write(beat_of(worker))
    pool = WorkerPool(session, {"w": WorkerGroupSettings()}, {}, Relatives(session, "0"))
    pool.refresh()
    if broken == "request_worker_stop":  # as when the request to all workers cannot be written
        monkeypatch.setattr(Session, broken, fail)
    else:
        session.request_stop()
        monkeypatch.setattr(Heartbeats, broken, fail)

    PoolEnd(session, pool, frozenset()).run()

    assert worker.wait(PATIENCE_S) == -15
    assert "No space left on device" in caplog.text


def test_a_worker_that_cannot_be_asked_to_end_is_logged(session, worker, monkeypatch, caplog):
    session.heartbeats.write(beat_of(worker, machine="another"))
    pool = WorkerPool(session, {}, {}, Relatives(session, "0"))
    pool.refresh()
    monkeypatch.setattr(Session, "request_worker_stop", fail)

    pool.kill("w-1")

    assert "Worker 'w-1' cannot be asked to end: [Errno 28]" in caplog.text
    assert worker.poll() is None


def test_numbers_of_another_machine_with_this_name_are_not_looked_up(session, worker):
    """Given a cloned machine with the same name, then its worker lives, whatever runs here under its number."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    session.heartbeats.write(beat_of(dead, "w-1", machine="another"))
    session.heartbeats.write(beat_of(dead, "w-2"))
    pool = WorkerPool(session, {}, {}, Relatives(session, "0"))

    assert [beat.name for beat in pool.refresh()] == ["w-2"]
    assert list(pool.alive) == ["w-1"]


def test_a_heartbeat_of_release_0_1_is_compared_by_host_name(session, worker):
    session.heartbeats.write(beat_of(worker, machine=""))
    (beat,) = session.heartbeats.all()
    assert beat.is_here
