"""The watch thread of a worker: the state that its heartbeat shows, and the errors that it expects."""

from __future__ import annotations

import os
import shutil
import threading
from types import SimpleNamespace

import pytest
from support import PATIENCE_S, wait_for

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.broker.app import make_app
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.session import BrokerLocation, Session
from maestro_celery_plugin.study.worker_facts import read_facts
from maestro_celery_plugin.worker import worker_process
from maestro_celery_plugin.worker.arguments import WorkerArguments
from maestro_celery_plugin.worker.gate import gate
from maestro_celery_plugin.worker.launch_env import LaunchEnvironment
from maestro_celery_plugin.worker.range_task import RangeTasks
from maestro_celery_plugin.worker.slots import Slots
from maestro_celery_plugin.worker.worker_process import HEARTBEAT_S, WorkerProcess, _try


@pytest.fixture
def process(tmp_path):
    """A worker with one slot, which has started, without its threads."""
    session = Session.create(tmp_path / "session")
    session.write_broker(BrokerLocation(url="redis://localhost:1/0"))
    group = GroupConfig(group="w", queues=("q",))
    arguments = WorkerArguments(session=session, group=group, name="w-1", allocation="", number=1)
    process = WorkerProcess(arguments, ProcessId.of(os.getpid()), make_app(session))
    process._tasks = RangeTasks("w-1", Slots(1, Deadline(), LaunchEnvironment("w-1")), lambda task, queue: None)
    process._ready = True
    return process


def state_of(process):
    return process._heartbeat(slots=1, beat=1).state


def test_a_worker_without_work_is_idle(process):
    assert state_of(process) is WorkerState.IDLE


def test_a_worker_with_a_sample_is_busy(process):
    with process._tasks.slots.take():
        assert state_of(process) is WorkerState.BUSY


def test_a_worker_drains_before_the_end_of_its_allocation(process):
    process._deadline = Deadline(clock.now() + 1, is_in_allocation=True)
    assert state_of(process) is WorkerState.DRAINING


def test_a_worker_that_has_stalled_is_stopping(process):
    """Given a worker that receives no messages, then its state says nothing about the end of an allocation."""
    process._stall_watch.has_stalled = True
    with process._tasks.slots.take():
        assert state_of(process) is WorkerState.STOPPING


def test_a_worker_that_leaves_is_stopping_even_if_its_allocation_ends(process):
    process._deadline = Deadline(clock.now() + 1, is_in_allocation=True)
    process._tasks.slots.stopping.set()
    assert state_of(process) is WorkerState.STOPPING


# --- the request to leave ----------------------------------------------------------------------------


def test_a_worker_leaves_when_its_running_samples_have_ended(process):
    """Given a request to leave, then a busy worker takes no samples and continues its own, until the request is revoked."""
    session, slots = process._session, process._tasks.slots
    session.request_worker_leave("w-1")

    with slots.take():
        process._hold()
        assert state_of(process) is WorkerState.STOPPING
        assert gate.is_held
        assert not slots.may_start
        assert not slots.stopping.is_set(), "its samples would end"
        assert process._end_reason() is None
    assert process._end_reason() == "it was asked to leave after its running samples"

    session.revoke_leave()
    process._hold()
    assert process._end_reason() is None
    assert (gate.is_held, slots.may_start) == (False, True)


def test_the_processes_of_a_pool_show_that_they_still_run_samples(process):
    """Given a worker with a pool of processes, then it leaves some seconds after the last of them was busy."""
    process._session.request_worker_leave("w-1")
    process._name = "w-1.77"
    with process._tasks.slots.take():
        process._hold()
        assert state_of(process) is WorkerState.BUSY
        process._beat(slots=1, beat=1)
    assert state_of(process) is WorkerState.STOPPING
    assert process._end_reason() is None, "its main process decides"

    process._name, process._tasks = "w-1", None
    process._hold()
    assert state_of(process) is WorkerState.STOPPING
    assert process._end_reason() is None


def test_a_pool_without_busy_processes_leaves_after_some_seconds(process, still_clock, advance_clock):
    process._session.request_worker_leave("w-1")
    process._tasks = None
    process._hold()
    assert process._end_reason() is None, "a process may have taken a sample just now"
    advance_clock(2 * HEARTBEAT_S + 1)
    assert "after its running samples" in str(process._end_reason())


# --- errors ------------------------------------------------------------------------------------------


def test_a_session_that_cannot_be_read_is_one_line_in_the_log(tmp_path, caplog):
    """Given a session without its key, then each round of the watch thread logs a line, and no traceback."""
    session = Session.create(tmp_path / "session")
    shutil.rmtree(session.path)

    _try(lambda: session.id)

    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert record.getMessage() == f"The session '{session.path}' cannot be read: No such file or directory."


# --- the end -----------------------------------------------------------------------------------------


def test_a_worker_exits_at_the_end_of_its_study_as_soon_as_its_slots_are_free(process, monkeypatch):
    """Celery would need up to a second for its end."""
    exits, flushed = [], []
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(process._tasks, "flush", lambda: flushed.append(list(exits)))
    process._session.request_stop()

    with process._tasks.slots.take():
        process.mark_terminated()
        assert process._tasks.slots.stopping.wait(PATIENCE_S)
        assert exits == []
    wait_for(lambda: exits, "the end of the process")

    assert (exits, flushed) == ([0], [[]])


def test_while_its_study_continues_celery_ends_a_worker(process):
    process.mark_terminated()
    assert not process._tasks.slots.stopping.is_set()
    assert process._tasks.slots.is_terminated, "a sample that the same signal has ended would count as failed"


def test_the_facts_of_a_worker_are_written_after_an_error_has_passed(process, monkeypatch):
    """Given a full disk at the first heartbeat, then the heartbeat counts, and the facts follow with a later one."""
    process._limit = renewals = Renewals()
    write, errors = worker_process.write_facts, [OSError(28, "No space left on device")]

    def write_facts(*arguments):
        if errors:
            raise errors.pop()
        write(*arguments)

    monkeypatch.setattr(worker_process, "write_facts", write_facts)
    with pytest.raises(OSError, match="No space"):
        process._beat(1, 1)
    assert renewals.count == 1
    process._beat(1, 2)

    assert list(read_facts(process._session)) == ["w-1"]


class Renewals:
    """A heartbeat limit that counts how often it was renewed."""

    def __init__(self) -> None:
        self.count = 0

    def renew(self, since):
        self.count += 1

    def suspend(self):
        pass


@pytest.mark.parametrize("is_stopping", [False, True])
def test_a_worker_takes_no_sample_before_its_first_heartbeat(process, monkeypatch, is_stopping):
    """Given a file system that is slow when a worker begins, then a conductor that begins as well sees its heartbeat before
    its samples."""
    events = []
    process._app = SimpleNamespace(signer=SimpleNamespace(decode=lambda message: message[0]))
    process._tasks.run = events.append
    thread = threading.Thread(target=process._receive, args=(("task",),))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert not events

    if is_stopping:
        process._tasks.slots.stopping.set()
    else:
        process._beat(1, 1)
    thread.join(PATIENCE_S)

    assert events == ([] if is_stopping else ["task"])


def test_a_process_of_a_pool_waits_for_a_heartbeat_of_its_own(process, monkeypatch):
    monkeypatch.setattr(process, "watch", lambda slots: None)
    process._beat(1, 1)
    assert process._has_beat.is_set()

    process.open("w-1.7", 1)  # after the fork

    assert not process._has_beat.is_set()
