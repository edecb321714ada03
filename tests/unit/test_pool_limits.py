"""The heartbeat limits of the processes of a worker, and what a process does when it cannot write its heartbeat."""

from __future__ import annotations

import errno
import os
import sys
from types import SimpleNamespace

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.machine import machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.conductor_beats import ConductorBeats
from maestro_celery_plugin.study.heartbeats import Heartbeats
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker import worker_process
from maestro_celery_plugin.worker.arguments import WorkerArguments
from maestro_celery_plugin.worker.gate import gate
from maestro_celery_plugin.worker.health import Health
from maestro_celery_plugin.worker.heartbeat_limit import HEARTBEAT_LIMIT_S
from maestro_celery_plugin.worker.orphan_fence import OrphanFence
from maestro_celery_plugin.worker.pool_limits import PoolLimits
from maestro_celery_plugin.worker.range_task import UNCLAIMED_LIMIT
from maestro_celery_plugin.worker.worker_process import WorkerProcess

# --- the memory of the processes of a pool -----------------------------------------------------------


@pytest.fixture
def limits():
    limits = PoolLimits()
    yield limits
    limits.close()


def test_processes_that_start_at_the_same_time_have_different_limits(limits):
    """Given many processes that claim an entry at once, then the supervisor sees each of them."""
    reader, writer = os.pipe()
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.read(reader, 1)
            limits.claim(ProcessId.of(os.getpid())).renew(clock.since_boot())
            os._exit(0)
        children.append(ProcessId.of(child))
    os.write(writer, b"x" * 20)
    for child in children:
        os.waitpid(child.pid, 0)
    os.close(reader)
    os.close(writer)

    found = list(limits.processes())
    assert {one.process for one in found} == set(children)
    assert len({one.entry for one in found}) == 20


def test_the_limit_of_each_process_of_a_pool_is_its_own(limits, monkeypatch):
    now = clock.since_boot()
    first, second, third = (limits.claim(ProcessId(pid, 7)) for pid in (11, 12, 13))
    first.renew(now)
    second.renew(now + HEARTBEAT_LIMIT_S)
    assert third.is_suspended
    monkeypatch.setattr(clock, "since_boot", lambda: now + HEARTBEAT_LIMIT_S + 1)

    assert [(one.process.pid, one.is_exceeded) for one in limits.processes()] == [(11, True), (12, False), (13, False)]


def test_an_entry_is_free_again_after_the_end_of_its_process_only(limits):
    limits.claim(ProcessId(11, 7))
    limits.claim(ProcessId(12, 7))
    first, _ = limits.processes()
    limits.free(first)
    limits.free(first)

    assert [one.process.pid for one in limits.processes()] == [12]
    for pid in range(100, 100 + 2046):
        limits.claim(ProcessId(pid, 7))
    limits.claim(ProcessId(13, 7))
    limits.claim(ProcessId(14, 7)).renew(0.0)  # without a free entry, the process knows its limit alone
    assert {one.process.pid for one in limits.processes()} == {12, 13, *range(100, 100 + 2046)}


# --- the processes of a worker -----------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """The main process of a worker, without its threads."""
    session = Session.create(tmp_path / "session")
    group = GroupConfig(group="w", queues=("q",))
    arguments = WorkerArguments(session=session, group=group, name="w-1", allocation="", number=1)
    monkeypatch.setattr(WorkerProcess, "_watch", lambda self, slots: None)
    monkeypatch.setattr(OrphanFence, "start", lambda self: None)
    yield WorkerProcess(arguments, ProcessId.of(os.getpid()), None)
    arguments.pool_limits.close()


def pool_process_of(worker):
    """Return a process of the worker's pool, with the same memory."""
    process = WorkerProcess(worker._arguments, worker._supervisor, None)
    process._limit = worker._arguments.pool_limits.claim(ProcessId(77, 1))
    process._name = "w-1.77"
    return process


@pytest.fixture
def later(monkeypatch):
    """Move the clock beyond the limit."""

    def move():
        now = clock.since_boot() + HEARTBEAT_LIMIT_S + 1
        monkeypatch.setattr(clock, "since_boot", lambda: now)

    return move


def fail(*arguments):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_worker_that_never_writes_a_heartbeat_has_a_limit(worker, later, monkeypatch):
    assert not worker._limit.is_exceeded
    worker.watch(slots=0)
    monkeypatch.setattr(Heartbeats, "write", fail)
    later()
    with pytest.raises(OSError, match="Input/output error"):
        worker._beat(0, 1)

    assert worker._arguments.heartbeat_limit.is_exceeded


@pytest.mark.parametrize("conductor", ["here", "elsewhere", "unreadable"])
def test_a_heartbeat_renews_the_limit_of_its_process_unless_the_conductor_is_here(
    worker, later, monkeypatch, conductor
):
    if conductor == "here":
        worker._session.conductors.write(1)
    elif conductor == "elsewhere":
        monkeypatch.setattr("maestro_celery_plugin.study.conductor_beats.machine_id", lambda: "another")
        worker._session.conductors.write(1)
    else:
        monkeypatch.setattr(ConductorBeats, "read_all", fail)
    worker.watch(slots=0)
    later()
    worker_process._try(lambda: worker._beat(0, 1))

    assert worker._limit.is_suspended == (conductor == "here")
    assert not worker._limit.is_exceeded


def test_a_process_of_a_pool_has_its_own_limit(worker, later):
    """Given that only the main process can write its heartbeat, then only the limit of the other one is exceeded."""
    process = pool_process_of(worker)
    worker.watch(slots=0)
    process.watch(slots=1)
    later()
    worker._beat(0, 1)

    assert not worker._limit.is_exceeded
    assert [one.is_exceeded for one in worker._arguments.pool_limits.processes()] == [True]
    process._beat(1, 1)
    assert [one.is_exceeded for one in worker._arguments.pool_limits.processes()] == [False]


def test_a_process_of_a_pool_has_no_limit_on_the_machine_of_the_conductor(worker):
    assert machine_id()
    worker._session.conductors.write(1)
    process = pool_process_of(worker)
    for one in (worker, process):
        one.watch(slots=0)
        one._beat(0, 1)

    assert process._limit.is_suspended


@pytest.mark.parametrize("is_pool_process", [False, True])
def test_a_worker_that_cannot_claim_messages_is_replaced_later(worker, is_pool_process):
    process = pool_process_of(worker) if is_pool_process else worker
    process._tasks = SimpleNamespace(unclaimed=UNCLAIMED_LIMIT - 1)
    process._tasks.slots = SimpleNamespace(busy=1, out_of_time=())
    assert process._end_reason() is None
    assert not worker._arguments.has_fault.is_set
    process._tasks.unclaimed += 1

    assert process._end_reason() == "it could not claim 10 messages in a row"
    assert worker._arguments.has_fault.is_set


@pytest.fixture
def watched(worker, monkeypatch):
    """Run the thread of a worker for some rounds; before each, a function may change its health."""
    monkeypatch.undo()
    health = Health()
    worker._tasks = SimpleNamespace(health=health, unclaimed=0, flush=lambda: None)
    worker._tasks.slots = SimpleNamespace(
        busy=1, out_of_time=(), check_running=lambda: None, stopping=SimpleNamespace(is_set=lambda: False)
    )
    worker._ready = True

    def watch(*steps):
        rounds = iter(steps)

        def sleep(seconds):
            step = next(rounds, None)
            if step is None:
                sys.exit()
            step(health)

        monkeypatch.setattr(clock, "sleep", sleep)
        monkeypatch.setattr(worker_process, "_WATCH_S", 0.0)
        with pytest.raises(SystemExit):
            worker._watch(1)

    yield watch
    gate.hold(held=False)


def fail_samples(health):
    for _ in range(5):
        health.record(failed=True)


def test_a_held_worker_logs_why_and_shows_it(watched, worker, caplog):
    states = []

    def look(health):
        (beat,) = worker._session.heartbeats.all()
        states.append(beat.state)

    watched(look, fail_samples, look, look, lambda health: worker._session.heartbeats.acquit("w-1"), look, look)

    assert [state for state in states if state is WorkerState.HELD]
    assert states[0] == states[-1] == WorkerState.BUSY
    assert caplog.text.count("takes no samples for now: all of its last samples have failed within a second") == 1
    assert caplog.text.count("continues to take samples") == 1


def test_the_main_process_of_a_pool_takes_no_message_while_the_heartbeat_of_a_held_process_cannot_be_read(
    worker, monkeypatch
):
    gate.hold(held=True)
    monkeypatch.setattr(Heartbeats, "read", lambda self, prefix: ([], {"w-1.77": OSError(5, "I/O error")}))
    try:
        worker._hold()
        assert gate.is_held
        monkeypatch.setattr(Heartbeats, "read", lambda self, prefix: ([], {}))
        worker._hold()
        assert not gate.is_held
    finally:
        gate.hold(held=False)


def test_a_worker_is_not_idle_while_the_heartbeat_of_a_process_of_its_pool_cannot_be_read(worker, monkeypatch):
    worker._pool_busy_at -= 100
    assert worker._idle_s() > 99
    monkeypatch.setattr(Heartbeats, "read", lambda self, prefix: ([], {"w-1.77": OSError(5, "I/O error")}))
    assert worker._idle_s() < 99
