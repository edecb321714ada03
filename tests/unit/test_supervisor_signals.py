"""The signal handlers of a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker import supervisor


@pytest.fixture
def alarms(monkeypatch):
    found = []
    monkeypatch.setattr(signal, "alarm", found.append)
    return found


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_further_signal_does_not_prolong_the_time_of_a_worker(tmp_path, alarms, child):
    one = supervisor._Supervisor(Session.create(tmp_path / "session"))
    one.child = child

    one._on_leave(signal.SIGUSR1, None)
    one._on_end(signal.SIGTERM, None)

    assert alarms == [supervisor._STOP_LIMIT_S]


def test_a_request_to_leave_that_arrives_before_the_worker_is_known_is_not_lost(tmp_path, monkeypatch, alarms):
    """Given a signal between the fork and its result, which another thread has received, then the new worker ends."""
    one = supervisor._Supervisor(Session.create(tmp_path / "session"))
    ended, fork = [], os.fork

    def fork_with_signal():
        pid = fork()
        if not pid:
            os._exit(0)
        one._on_leave(signal.SIGUSR1, None)
        return pid

    monkeypatch.setattr(os, "fork", fork_with_signal)
    monkeypatch.setattr(one, "_end_child", lambda: ended.append(one.child))

    pid = one._start(None)
    os.waitpid(pid, 0)

    assert ended[-1] == pid
    assert not alarms


def test_an_error_that_cannot_even_be_printed_does_not_end_the_supervisor(monkeypatch):
    """Given a fault of the file system that also has the log, then the supervisor goes on with the rest of its cleanup."""

    def fail(*args, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.print", fail)

    supervisor._try("its heartbeat", fail)
