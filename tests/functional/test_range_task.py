"""Range tasks: run in this process, with a queue instead of a broker, with real samples and a real ledger."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import queue
import random
import resource
import shutil
import signal
import threading
import time
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pluggy
import pytest
from ensembles import RELATIVE, a_study, states_of
from support import PATIENCE_S

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.broker.messages import RangeTask, halves
from maestro_celery_plugin.clock import wait_until
from maestro_celery_plugin.errors import DamagedFileError, LedgerError
from maestro_celery_plugin.ledger.claims import Claims, MessageName, owner_text
from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, SUFFIX, Kind
from maestro_celery_plugin.ledger.leases import Leases
from maestro_celery_plugin.ledger.reader import LedgerReader, read_ledger
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.machine import machine_number
from maestro_celery_plugin.plugins import plugin_manager
from maestro_celery_plugin.states import BROKEN, UNREADABLE, Outcome, RunMode, cannot_run_code, is_permanent
from maestro_celery_plugin.study.assignment import Assignment
from maestro_celery_plugin.worker import fences, range_messages, range_task, slots, study_context
from maestro_celery_plugin.worker.gate import Gate
from maestro_celery_plugin.worker.launch_env import LaunchEnvironment
from maestro_celery_plugin.worker.range_task import RangeTasks
from maestro_celery_plugin.worker.sample_directory import SampleDirectories
from maestro_celery_plugin.worker.slots import Slots

# Each sample appends its number to one file; a line is so short that parallel samples do not mix their lines.
RUN = "echo $(MERLIN_SAMPLE_ID) >> ../../../runs"


def worker(writer, count, send, deadline=None):
    """Return a worker process with `count` slots, without Celery."""
    return RangeTasks(writer, Slots(count, deadline or Deadline(), LaunchEnvironment(writer)), send)


@pytest.fixture(autouse=True)
def no_delays(monkeypatch):
    monkeypatch.setattr(range_task, "FAULT_DELAY_S", 0.0)
    monkeypatch.setattr(range_messages, "CLAIM_DELAY_S", 0.0)
    monkeypatch.setattr(fences, "CHECK_INTERVAL_S", 0.0)


@pytest.fixture
def unhurried(monkeypatch):
    """Let no slot send the rest of its range because its samples, on a slow machine, have taken longer than expected."""
    monkeypatch.setattr(Slots, "is_over_budget", lambda *arguments: False)


class Ensemble:
    """A study with one step record, and range tasks for it."""

    def __init__(self, root: Path, **changes) -> None:
        self.plan, self.manifest = a_study(root, **{"cmd": RUN, "restart": RUN, **changes})
        self.root = root
        self.claims = Claims(self.plan.claims, self.plan.number)
        self.claims.prepare(1)

    def task(self, start=0, stop=None, epoch=1, mode=RunMode.FIRST):
        stop = self.manifest.samples if stop is None else stop
        return RangeTask(str(self.root), "0", RELATIVE, 1, start, stop, epoch, mode)

    def append_as_coordinator(self, kind, start, stop, epoch):
        """Append an entry of the coordinator."""
        writer = LedgerWriter(self.plan.ledger / f"{COORDINATOR}{SUFFIX}")
        writer.append(kind, 1, epoch, start, stop)
        writer.close()

    @property
    def entries(self):
        return read_ledger(self.plan.ledger)

    def rows(self, *kinds):
        """Return (kind, start, code) of each entry of these kinds, or of each entry about an attempt, in order."""
        wanted = kinds or (Kind.STARTED, Kind.ENDED, Kind.STOPPED)
        return [(Kind(e["kind"]).name, int(e["start"]), int(e["code"])) for e in self.entries if e["kind"] in wanted]

    @property
    def states(self):
        states = states_of(self.manifest)
        states.apply(self.entries)
        return states

    @property
    def runs(self):
        """How often each sample has run."""
        path = self.root / "runs"
        return Counter(map(int, path.read_text().split())) if path.exists() else Counter()

    def each_sample_has_run_once(self):
        return self.runs == Counter(range(self.manifest.samples)) and self.states.is_complete

    @property
    def leases(self):
        leases = Leases()
        for writer, entries in LedgerReader(self.plan.ledger).poll():
            leases.apply(writer, entries)
        return leases

    @property
    def waiting_messages(self):
        messages = WaitingMessages()
        for _, entries in LedgerReader(self.plan.ledger).poll():
            messages.apply(entries)
        return messages


@pytest.fixture
def make(tmp_path):
    return lambda **changes: Ensemble(tmp_path / "study", **changes)


class Transport:
    """A replacement of the broker: it may deliver twice, deliver in any order, or fail."""

    def __init__(self, copies=1, seed=None, failure_rate=0.0) -> None:
        self.sent: list[RangeTask] = []
        self._random, self._copies, self._failure_rate = random.Random(seed), copies, failure_rate
        self._shuffled, self._condition = seed is not None, threading.Condition()
        self._waiting: list[RangeTask] = []
        self._working = 0

    def send(self, task, task_queue="merlin", level=5):
        assert task_queue == "merlin"
        if self._random.random() < self._failure_rate:
            raise ConnectionError("away")
        self.put(task)

    def put(self, task):
        with self._condition:
            self.sent.append(task)
            self._waiting += [task] * self._copies
            if self._shuffled:
                self._random.shuffle(self._waiting)
            self._condition.notify_all()

    def consume(self, process):
        """Run tasks until no message waits and no task runs."""
        while True:
            with self._condition:
                while not self._waiting and self._working:
                    self._condition.wait()
                if not self._waiting:
                    self._condition.notify_all()
                    return
                task = self._waiting.pop(0)
                self._working += 1
            try:
                process.run(task)
            finally:
                with self._condition:
                    self._working -= 1
                    self._condition.notify_all()


def drive(transport, *processes_and_slots):
    """Run all messages in these worker processes, with one thread per slot."""
    threads = [
        threading.Thread(target=transport.consume, args=(process,))
        for process, slots in processes_and_slots
        for _ in range(slots)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class Pause:
    """Stands for the consumer of a worker."""

    def adjust(self):
        pass

    wake = adjust


def a_gate(slots):
    gate = Gate()
    gate.slots, gate.step = slots, Pause()
    return gate


_numbers = itertools.count(1)


def work(task, writer=None, **options):
    """Run one task in one slot of a new worker process; return the process and the tasks that were sent."""
    transport = Transport(**options)
    process = worker(writer or f"new-{next(_numbers)}", 1, transport.send)
    process.run(task)
    return process, transport.sent


class ImmediateEvent(threading.Event):
    """An event that records each wait and returns at once."""

    def __init__(self, on_wait=lambda: None) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._on_wait = on_wait

    def wait(self, timeout=None):
        self.waits.append(timeout)
        self._on_wait()
        return self.is_set()


def halves_of(start, stop):
    """Return (start, stop) of each half of a task."""
    return [(part.start, part.stop) for part in halves(RangeTask("s", "0", "m", 1, start, stop, 1, RunMode.FIRST))]


# --- splitting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "parts"), [((0, 0), []), ((4, 5), [(4, 5)]), ((4, 6), [(4, 5), (5, 6)]), ((0, 7), [(0, 3), (3, 7)])]
)
def test_a_range_is_split_in_halves(whole, parts):
    assert halves_of(*whole) == parts


def test_a_slot_keeps_one_sample_before_it_knows_the_duration_of_samples(make):
    ensemble = make(samples=9)
    _, sent = work(ensemble.task())

    assert ensemble.runs == {0: 1}
    assert sorted((task.start, task.stop) for task in sent) == [(1, 5), (5, 9)]
    assert ensemble.rows(Kind.TAKEN, Kind.PASSED, Kind.RELEASED) == [
        ("TAKEN", 0, 0), ("PASSED", 5, 0), ("PASSED", 1, 0), ("RELEASED", 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("wait_s", "parts"), [(-1.0, [(2, 5), (5, 9)]), (1e9, [(2, 9)])])
def test_a_slot_that_has_not_waited_for_its_message_sends_one_message_in_its_place(make, monkeypatch, wait_s, parts):
    ensemble, transport = make(samples=9), Transport()
    monkeypatch.setattr(slots, "WAIT_S", wait_s)
    monkeypatch.setattr(slots, "TIME_BUDGET_S", 1e-9)
    process = worker("w-1", 1, transport.send)
    process.run(ensemble.task(0, 1))
    process.run(ensemble.task(1, 9))

    assert sorted((task.start, task.stop) for task in transport.sent) == parts


def test_the_number_of_waiting_messages_does_not_grow_with_the_number_of_samples(make, monkeypatch):
    """Otherwise, the memory of the broker and of the coordinator would limit the size of a study."""
    ensemble, longest = make(samples=20), 0
    monkeypatch.setattr(slots, "WAIT_S", 1e9)
    monkeypatch.setattr(slots, "TIME_BUDGET_S", 1e-9)
    waiting = deque([ensemble.task()])
    process = worker("w-1", 2, lambda task, queue, level: waiting.append(task))
    while waiting:
        longest = max(longest, len(waiting))
        process.run(waiting.popleft())

    assert ensemble.each_sample_has_run_once()
    assert longest <= 4


def test_the_ledger_shows_a_part_to_other_nodes_before_it_is_sent(make, monkeypatch):
    """Otherwise, the coordinator could not take back a message whose sender has died."""
    ensemble = make(samples=9)
    events = []
    monkeypatch.setattr(LedgerWriter, "flush", lambda writer: events.append("flush"))
    worker("w-1", 1, lambda task, queue, level: events.append(len(ensemble.rows(Kind.PASSED)))).run(ensemble.task())

    assert events == ["flush", 2, 2, "flush"]


def test_a_slot_keeps_as_many_samples_as_fit_its_time_budget(make):
    ensemble = make(samples=9)
    process = worker("w-1", 1, Transport().send)
    task = ensemble.task()
    assert process.slots.piece_size(task, "sim") == 1
    process.slots.record_duration(task, "sim", slots.TIME_BUDGET_S / 4)
    assert process.slots.piece_size(task, "sim") == 4
    process.slots.record_duration(task, "sim", 60.0)
    assert process.slots.piece_size(task, "sim") == 1


def test_samples_that_still_run_count_for_the_expected_duration(make):
    """The first samples that end are the shortest: a slot would keep samples for hours that it expects to be short."""
    ensemble = make(samples=9)
    process = worker("w-1", 2, Transport().send)
    task = ensemble.task()
    process.slots.record_duration(task, "sim", slots.TIME_BUDGET_S / 64)
    assert process.slots.piece_size(task, "sim") == 64
    attempt = SimpleNamespace(elapsed_s=slots.TIME_BUDGET_S)
    for record, pieces in ((2, 64), (1, 1)):
        running = slots.Running(attempt, task.study_id, record, signal.SIGTERM, lambda: False)
        process.slots.add(1, running)
        assert process.slots.piece_size(task, "sim") == pieces
    process.slots.remove(1)

    assert process.slots.piece_size(task, "sim") == 64


def test_the_first_sample_of_a_step_record_is_assumed_to_take_as_long_as_those_of_its_step(make):
    """Given many step records with few short samples, then each needs one message, and not one for each half."""
    ensemble = make(samples=9)
    process = worker("w-1", 1, Transport().send)
    process.slots.record_duration(ensemble.task(), "sim", slots.TIME_BUDGET_S / 64)
    other = dataclasses.replace(ensemble.task(), record=2)

    assert process.slots.piece_size(other, "sim") == 64
    assert process.slots.piece_size(other, "another step") == 1


@pytest.mark.usefixtures("unhurried")
def test_the_next_message_may_arrive_while_a_slot_runs_its_last_short_sample(make, monkeypatch):
    """Otherwise, slots would wait for a message after each of many messages with few short samples."""
    ensemble, gate = make(samples=4), a_gate(slots=1)
    monkeypatch.setattr(range_task, "gate", gate)
    free, run_sample = [], range_task._RangeRun._run_sample
    monkeypatch.setattr(
        range_task._RangeRun, "_run_sample", lambda *run: (free.append(gate.has_free_slot), run_sample(*run))
    )
    process = worker("w-1", 1, Transport().send)
    process.slots.record_duration(ensemble.task(), "sim", slots.SOON_S / 8)
    monkeypatch.setattr(process.slots, "record_duration", lambda *arguments: None)  # they may be long on a slow machine

    gate.accept("message")
    process.run(ensemble.task())
    assert free == [False, False, False, True]
    assert not gate.has_free_slot
    gate.finish("message")
    assert gate.has_free_slot


@pytest.mark.parametrize("mean_s", [None, slots.SOON_S], ids=["of unknown duration", "long"])
def test_no_message_waits_behind_a_sample_that_may_take_long(make, monkeypatch, mean_s):
    ensemble, gate = make(samples=2), a_gate(slots=1)
    monkeypatch.setattr(range_task, "gate", gate)
    process = worker("w-1", 1, Transport().send)
    if mean_s:
        process.slots.record_duration(ensemble.task(), "sim", mean_s)
    gate.accept("message")
    monkeypatch.setattr(gate, "expect_free", None)

    process.run(ensemble.task(0, 1))

    assert ensemble.runs == {0: 1}
    assert ensemble.states.counts().finished == 1


def test_a_closed_or_held_gate_expects_no_message():
    gate = a_gate(slots=2)
    gate.accept("first")
    gate.accept("second")
    gate.expect_free(1)
    assert gate.has_free_slot
    gate.accept("third")
    assert not gate.has_free_slot
    gate.expect_free(0)
    gate.hold(held=True)
    assert not gate.has_free_slot
    gate.hold(held=False)
    gate.close()
    assert not gate.has_free_slot


def test_a_slot_sends_the_rest_of_its_range_when_samples_take_longer_than_expected(make, monkeypatch):
    """Given samples of 0.6 s by the clock of the worker, then it has exceeded twice its budget after the second one."""
    monkeypatch.setattr(slots, "TIME_BUDGET_S", 0.5)
    ensemble = make(samples=8)
    monkeypatch.setattr(clock, "monotonic", lambda: 0.6 * ensemble.runs.total())
    transport = Transport()
    process = worker("w-1", 1, transport.send)
    process.slots.record_duration(ensemble.task(), "sim", 0.001)
    process.run(ensemble.task())

    assert len(ensemble.runs) == 2
    assert sorted((task.start, task.stop) for task in transport.sent) == [(2, 5), (5, 8)]


# --- each sample runs once ---------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_any_number_of_slots_runs_each_sample_once(make, slots):
    ensemble = make(samples=23)
    transport = Transport()
    transport.put(ensemble.task())
    drive(transport, (worker("w-1", slots, transport.send), slots))

    assert ensemble.each_sample_has_run_once()
    assert ensemble.leases.holders() == set()


@pytest.mark.parametrize("seed", range(2))
def test_each_sample_runs_once_when_messages_arrive_twice_and_in_any_order(make, seed):
    ensemble = make(samples=12)
    transport = Transport(copies=2, seed=seed)
    transport.put(ensemble.task())
    drive(transport, *((worker(f"w-{n}", 2, transport.send), 2) for n in (1, 2)))

    assert ensemble.each_sample_has_run_once()
    assert set(ensemble.rows(Kind.ENDED)) == {("ENDED", sample, 0) for sample in range(12)}


@pytest.mark.parametrize("failure_rate", [1.0, 0.5])
def test_samples_stay_in_the_slot_and_run_when_the_broker_does_not_answer(make, failure_rate):
    ensemble = make(samples=10)
    transport = Transport(failure_rate=failure_rate, seed=3)
    transport.put(ensemble.task())
    drive(transport, (worker("w-1", 2, transport.send), 2))

    assert ensemble.each_sample_has_run_once()
    assert len(transport.sent) == 1 or failure_rate < 1.0


@pytest.mark.usefixtures("unhurried")
def test_a_part_that_was_not_sent_stays_leased(make):
    """The slot sends the second half first; it cannot send the first half, and runs it."""
    ensemble = make(samples=9, cmd=f"{RUN}; cat ../../../merlin_info/ledger/w-1.ledger > ledger")
    sent = []

    def send(task, task_queue, level):
        if sent:
            raise ConnectionError("away")
        sent.append(task)

    worker("w-1", 1, send).run(ensemble.task())

    assert [(task.start, task.stop) for task in sent] == [(5, 9)]
    assert ensemble.runs == Counter(range(5))
    assert ensemble.rows(Kind.PASSED, Kind.KEPT) == [("PASSED", 5, 0), ("PASSED", 1, 0), ("KEPT", 1, 0)]
    assert ensemble.waiting_messages.of_record(1) == [MessageName(1, 1, 5, 9)]


def test_a_part_that_the_broker_has_delivered_although_it_did_not_answer_runs_once(make):
    ensemble = make(samples=9)
    delivered = []

    def send(task, task_queue, level):
        delivered.append(task)
        other.run(task)
        raise ConnectionError("the answer was lost")

    other = worker("w-2", 1, Transport(failure_rate=1.0).send)
    worker("w-1", 1, send).run(ensemble.task())

    assert ensemble.each_sample_has_run_once()
    assert [(task.start, task.stop) for task in delivered] == [(5, 9)]


@pytest.mark.parametrize("seed", range(6))
def test_parts_that_a_slot_has_kept_are_sent_when_the_broker_answers_again(make, monkeypatch, seed):
    """Given long samples, so that a slot sends its rest again and again, then no message has the name of a kept part."""
    monkeypatch.setattr(slots, "TIME_BUDGET_S", 0.001)
    ensemble = make(samples=16, cmd=f"{RUN}; sleep 0.005")
    transport = Transport(failure_rate=0.6, seed=seed)
    transport.put(ensemble.task())
    drive(transport, (worker("w-1", 1, transport.send), 1), (worker("w-2", 1, transport.send), 1))

    assert ensemble.each_sample_has_run_once()
    names = [task.name for task in transport.sent]
    assert len(names) == len(set(names))


# --- claims ------------------------------------------------------------------------------------------


def test_a_replayed_message_runs_no_sample_again_even_if_the_samples_delete_their_scripts(make):
    ensemble = make(samples=6, cmd=f"{RUN}; rm -rf $PWD")
    transport = Transport(copies=3, seed=1)
    transport.put(ensemble.task())
    drive(transport, *((worker(f"w-{n}", 2, transport.send), 2) for n in (1, 2)))

    assert ensemble.each_sample_has_run_once()
    assert set(ensemble.rows(Kind.STARTED)) == {("STARTED", sample, 0) for sample in range(6)}


@pytest.mark.parametrize("sampled", [True, False])
def test_only_one_of_many_processes_with_the_same_message_runs_its_sample(make, sampled):
    """Given processes that receive a message at the same moment, as two processes of a pool do."""
    changes = {} if sampled else {"sampled": False, "table": None, "labels": [], "cmd": "echo 0 >> ../../runs"}
    ensemble = make(samples=1, **(changes or {"cmd": "echo 0 >> ../../runs"}))
    gate = threading.Barrier(8)

    def run(number):
        process = worker(f"w-{number}", 1, Transport().send)
        for epoch in range(1, 6):
            gate.wait()
            process.run(ensemble.task(epoch=epoch, mode=RunMode.AGAIN))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert ensemble.runs == {0: 5}


def test_a_message_that_the_coordinator_has_taken_back_runs_no_sample(make):
    ensemble = make(samples=4)
    ensemble.claims.claim(ensemble.task().name, owner_text(COORDINATOR))
    work(ensemble.task())

    assert ensemble.runs == {}
    assert ensemble.rows(*Kind) == []


def test_a_worker_leaves_a_message_about_a_study_that_was_launched_again(make):
    """Given a worker of an earlier launch in the same directory, then nothing runs and nothing is written."""
    ensemble = make(samples=2)
    work(dataclasses.replace(ensemble.task(), study_id="1"))

    assert ensemble.runs == {}
    assert not ensemble.plan.ledger.exists()


def test_a_worker_leaves_a_message_when_the_claims_are_gone(make):
    ensemble = make(samples=2)
    shutil.rmtree(ensemble.plan.claims)
    work(ensemble.task())

    assert ensemble.runs == {}
    assert ensemble.rows(*Kind) == []


def test_a_step_record_that_is_not_sampled_runs_once(make):
    ensemble = make(sampled=False, samples=1, table=None, labels=[], cmd="echo 0 >> ../../runs")
    for _ in range(2):
        work(ensemble.task())

    assert ensemble.each_sample_has_run_once()


def test_a_single_sample_runs_in_the_workspace_once(make):
    ensemble = make(samples=1, cmd="echo $(MERLIN_SAMPLE_ID) >> ../../runs")
    for _ in range(2):
        work(ensemble.task())

    assert ensemble.each_sample_has_run_once()


def test_a_sample_whose_worker_died_before_it_recorded_the_start_runs_under_the_next_epoch(make):
    """Under the first epoch, a script that exists belongs to another worker: this one counts as dead."""
    ensemble = make(samples=2)
    Path(ensemble.manifest.workspace, "00").mkdir()
    Path(ensemble.manifest.workspace, "00", "sim.sh").touch()
    work(ensemble.task(), failure_rate=1.0)
    assert ensemble.runs == {1: 1}

    work(ensemble.task(0, 1, epoch=2))
    assert ensemble.each_sample_has_run_once()


# --- samples that run again --------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "script"), [(RunMode.AGAIN, "cmd"), (RunMode.RESTART, "restart")])
def test_the_message_says_which_script_runs_again(make, mode, script):
    ensemble = make(samples=2, cmd="echo cmd; exit 104", restart="echo restart")
    work(ensemble.task(0, 1))
    work(ensemble.task(0, 1, epoch=2, mode=mode))

    assert Path(ensemble.manifest.workspace, "00", "sim.out").read_text().splitlines()[-1] == script
    assert ensemble.rows(Kind.STARTED) == [("STARTED", 0, 0), ("STARTED", 0, int(script == "restart"))]


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("count", [2, 7, 8, 9, 25])
def test_an_assignment_tells_which_samples_run_and_how(make, count):
    ensemble = make(samples=count, cmd=f"{RUN}; echo cmd", restart=f"{RUN}; echo restart")
    modes = np.random.default_rng(count).integers(0, 4, count).astype(np.uint8)
    Assignment(ensemble.plan.records / RELATIVE, 2).write(modes)
    process = worker("w-1", 1, Transport().send)
    for start in range(0, count, 3):
        process.slots.record_duration(ensemble.task(), "sim", 0.01)
        process.run(ensemble.task(start, min(start + 3, count), 2, RunMode.ASSIGNED))

    assert ensemble.runs == dict.fromkeys(np.flatnonzero(modes).tolist(), 1)
    restarted = [sample for _, sample, code in ensemble.rows(Kind.STARTED) if code]
    assert restarted == np.flatnonzero(modes == RunMode.RESTART).tolist()


@pytest.mark.parametrize("content", [b"", b"x" * 200, None])
def test_a_damaged_assignment_runs_nothing(make, content):
    """Given an assignment that a fault of the disk has damaged, then no sample runs by a wrong rule, and it is reported."""
    ensemble = make(samples=4)
    path = ensemble.plan.records / RELATIVE / "assignment-2.npy"
    path.write_bytes(content) if content is not None else np.save(path, np.zeros((3, 1)))
    with pytest.raises(DamagedFileError, match=r"assignment-2\.npy"):
        Assignment(path.parent, 2).read(0, 4)
    process = worker("w-1", 1, Transport().send)
    process.run(ensemble.task(0, 4, 2, RunMode.ASSIGNED))
    assert not ensemble.runs


# --- invalid ranges and stopping workers -------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.SENT, Kind.CANCELLED])
def test_an_old_message_does_not_run_samples_that_were_sent_again_or_cancelled(make, kind):
    ensemble = make(samples=4)
    ensemble.append_as_coordinator(Kind.SENT, 0, 4, 1)
    ensemble.append_as_coordinator(kind, 1, 2, 2)
    for sample in range(4):
        work(ensemble.task(sample, sample + 1), f"w-{sample}")

    assert ensemble.runs == {0: 1, 2: 1, 3: 1}
    assert ensemble.leases.holders() == set()


def test_a_damaged_entry_of_the_coordinator_invalidates_no_message(make):
    ensemble = make(samples=1)
    entry = np.zeros(1, ENTRY)
    entry["kind"], entry["record"], entry["epoch"], entry["stop"] = Kind.CANCELLED, 1, 9, 1
    ensemble.plan.ledger.mkdir()
    entry.tofile(ensemble.plan.ledger / f"{COORDINATOR}{SUFFIX}")
    work(ensemble.task())

    assert ensemble.states.is_complete


def test_a_worker_that_was_stopped_just_before_a_start_leaves_the_sample_to_others(make, monkeypatch):
    """Given a worker that goes on after the conductor has let others run its samples, then it starts none of them."""
    ensemble = make(samples=1)
    process = worker("w-1", 1, Transport().send)
    is_cut_off = iter([False, True, True])  # when the slot looks whether it may start, and at the last moment
    monkeypatch.setattr(type(process.slots), "is_cut_off", property(lambda slots: next(is_cut_off)))
    process.run(ensemble.task())

    assert not ensemble.runs
    assert [row[0] for row in ensemble.rows(Kind.STARTED, Kind.ENDED, Kind.NOT_RUN)] == ["STARTED", "NOT_RUN"]


def test_a_worker_that_goes_on_and_writes_its_heartbeat_first_leaves_the_sample_to_others(make, monkeypatch):
    """Given a worker that was stopped while it made the files of a sample, when its watch thread goes on first, then the
    new heartbeat does not hide that others may have its samples."""
    ensemble = make(samples=3)
    transport = Transport()
    process = worker("w-1", 1, transport.send)
    process.slots.piece_size = lambda task, step: 3
    limit, make_files = process.slots._heartbeat_limit, SampleDirectories.make

    def stopped(directories, sample):
        made = make_files(directories, sample)
        limit.renew(clock.since_boot() - 100)
        limit.renew(clock.since_boot())
        return made

    limit.renew(clock.since_boot())
    monkeypatch.setattr(SampleDirectories, "make", stopped)
    process.run(ensemble.task())

    assert not process.slots.is_cut_off
    assert not ensemble.runs
    assert [row[:2] for row in ensemble.rows(Kind.STARTED, Kind.NOT_RUN)] == [("STARTED", 0), ("NOT_RUN", 0)]


class LongSample:
    """A sample that takes ten minutes, in a worker process with one slot."""

    def __init__(self, ensemble) -> None:
        self.process = worker("w-1", 1, Transport(failure_rate=1.0).send)
        self.thread = threading.Thread(target=self.process.run, args=(ensemble.task(),))
        self.thread.start()
        assert wait_until(lambda: ensemble.runs, PATIENCE_S)
        self.process.slots.check_running()
        time.sleep(0.05)
        assert ensemble.rows() == [("STARTED", 0, 0)]  # `check_running` has not ended it

    def await_end(self):
        assert wait_until(lambda: self.process.slots.check_running() or not self.thread.is_alive(), PATIENCE_S)


def test_a_running_sample_is_ended_when_it_is_cancelled(make):
    ensemble = make(samples=2, cmd=f"{RUN}; exec sleep 600")
    sample = LongSample(ensemble)
    ensemble.append_as_coordinator(Kind.CANCELLED, 0, 2, 1 + 1)
    sample.await_end()

    assert ensemble.rows() == [("STARTED", 0, 0), ("STOPPED", 0, -15)]
    assert ensemble.leases.holders() == set()


def test_a_worker_that_stops_ends_its_sample_and_starts_no_other(make):
    ensemble = make(samples=2, cmd=f"{RUN}; exec sleep 600")
    sample = LongSample(ensemble)
    assert sample.process.slots.busy == 1
    sample.process.slots.stopping.set()
    sample.await_end()

    assert ensemble.rows() == [("STARTED", 0, 0), ("STOPPED", 0, -15)]
    assert sample.process.slots.busy == 0
    sample.process.run(ensemble.task(1, 2))
    assert ensemble.runs == {0: 1}


# --- samples that cannot run -------------------------------------------------------------------------


@pytest.mark.parametrize("task", [{"stop": 4}, {"start": 2, "stop": 2}, {"start": 2, "stop": 1}])
def test_an_empty_range_and_a_range_outside_the_step_record_are_refused(make, task):
    ensemble = make(samples=3)
    work(ensemble.task(**task))

    assert ensemble.runs == {}
    assert ensemble.leases.holders() == set()


def test_a_message_with_the_number_of_another_step_record_is_refused(make):
    ensemble = make(samples=3)
    ensemble.claims.prepare(2)
    work(dataclasses.replace(ensemble.task(), record=2))

    assert ensemble.runs == {}
    assert ensemble.rows(*Kind) == [("TAKEN", 0, 0), ("RELEASED", 0, 0)]


def test_a_sample_without_its_interpreter_is_refused_and_the_rest_goes_to_other_workers(make):
    ensemble = make(samples=4, shell="/no/such/shell")
    process = worker("w-1", 1, (transport := Transport()).send)
    process.slots.record_duration(ensemble.task(), "sim", 0.1)
    process.run(ensemble.task())

    assert ensemble.rows(Kind.STARTED, Kind.ENDED, Kind.NOT_RUN) == [
        ("STARTED", 0, 0), ("NOT_RUN", 0, cannot_run_code(errno.ENOENT)),
    ]  # fmt: skip
    assert sorted((task.start, task.stop) for task in transport.sent) == [(1, 2), (2, 4)]
    assert (ensemble.states.outcome == Outcome.OPEN).all()
    assert not ensemble.states.running.any()


def test_a_worker_waits_for_a_second_after_a_start_that_a_full_disk_prevented(make, monkeypatch):
    monkeypatch.setattr(range_task, "FAULT_DELAY_S", 1.0)
    ensemble = make(samples=1)
    os.symlink("/dev/full", f"{ensemble.manifest.workspace}/sim.sh")
    process = worker("w-1", 1, Transport().send)
    process.slots.stopping = ImmediateEvent()
    process.run(ensemble.task())

    (entry,) = ensemble.entries[ensemble.entries["kind"] == Kind.NOT_RUN]
    assert (entry["code"], entry["stop"]) == (cannot_run_code(errno.ENOSPC), machine_number())
    assert process.slots.stopping.waits == [1.0]


TRANSIENT = (errno.ESTALE, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.EINTR)


@pytest.mark.parametrize("number", TRANSIENT, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "place", ["study.plan.StudyPlan.read", "study.manifest.Manifest.read", "plugins.open_table", "os.mkdir"]
)
def test_a_fault_of_the_machine_gives_no_sample_an_outcome(make, monkeypatch, place, number):
    """Given an error of the file system or of the process, when a range is taken, the samples run elsewhere."""
    ensemble = make(samples=3)

    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("maestro_celery_plugin.study.additions.open_table" if "table" in place else place
                      if place.startswith("os") else f"maestro_celery_plugin.{place}", fail)
        work(ensemble.task(), "w-1")

    assert (ensemble.states.outcome == Outcome.OPEN).all()
    assert ensemble.leases.holders() == set()
    assert ensemble.runs == {}
    work(ensemble.task(epoch=2), "w-2", failure_rate=1.0)
    assert ensemble.each_sample_has_run_once()


@pytest.mark.usefixtures("unhurried")
def test_a_worker_waits_and_retries_when_it_cannot_write_the_ledger(make):
    """The size limit of a file leaves space for one entry and a half."""
    ensemble = make(samples=2, table=None, labels=[])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    process = worker("w-1", 1, Transport(failure_rate=1.0).send)
    process.slots.stopping = ImmediateEvent(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(ENTRY.itemsize * 1.5), hard))
    try:
        process.run(ensemble.task())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert process.slots.stopping.waits == [2.0]
    assert ensemble.rows(*Kind) == [
        ("TAKEN", 0, 0), ("PASSED", 1, 0), ("KEPT", 1, 0),
        ("STARTED", 0, 0), ("ENDED", 0, 0), ("STARTED", 1, 0), ("ENDED", 1, 0), ("RELEASED", 0, 0),
    ]  # fmt: skip


def test_a_missing_sample_table_refuses_the_sample(make):
    ensemble = make(samples=3)
    Path(ensemble.manifest.table).unlink()
    work(ensemble.task(1, 3))

    ((_, sample, code),) = ensemble.rows(Kind.NOT_RUN)
    assert (sample, code) in [(1, UNREADABLE), (1, cannot_run_code(errno.ENOENT))]
    assert ensemble.leases.holders() == set()


def test_a_change_of_the_sample_table_refuses_the_next_sample(make):
    ensemble = make(samples=5, cmd=f"{RUN}; test $(V) != v1 || echo more >> ../../../merlin_info/samples.csv")
    work(ensemble.task(), failure_rate=1.0)

    assert ensemble.rows(Kind.NOT_RUN) == [("NOT_RUN", 2, UNREADABLE)]
    assert ensemble.runs == {0: 1, 1: 1}


def test_a_sample_table_that_cannot_be_read_now_is_a_fault_that_can_pass(make, monkeypatch):
    """Given a file system that loses its server, then the next sample is not unreadable for good."""
    ensemble, is_lost, real_stat = make(samples=2), [], os.stat

    def stat(path, **options):
        if is_lost and path == str(ensemble.manifest.table):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_stat(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    process = worker("w-1", 1, Transport().send)
    process.run(ensemble.task(0, 1))
    is_lost.append(True)
    process.run(ensemble.task(1, 2))

    ((_, sample, code),) = ensemble.rows(Kind.NOT_RUN)
    assert (sample, code) == (1, cannot_run_code(errno.EIO))
    assert not is_permanent(code)


@pytest.mark.parametrize("made", [False, True], ids=["no claim", "a claim"])
def test_a_claim_with_an_unknown_result_is_tried_again(make, monkeypatch, made):
    """Given a file server that reports an error, with or without having made the link, then the message is not lost."""
    ensemble, symlink, calls = make(samples=1), os.symlink, []

    def fail(target, path):
        calls.append(target)
        if made or len(calls) > 2:
            symlink(target, path)
        if len(calls) <= 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "symlink", fail)
    work(ensemble.task())

    assert ensemble.states.is_complete
    assert len(set(calls)) == 1


def test_a_worker_that_can_take_no_message_counts_them(make, monkeypatch):
    ensemble = make(samples=1)
    shutil.rmtree(ensemble.plan.claims)
    process = worker("w-1", 1, Transport().send)
    for count in range(3):
        assert process.unclaimed == count
        process.run(ensemble.task())
    ensemble.claims.prepare(1)
    process.run(ensemble.task())

    assert process.unclaimed == 0


def test_a_worker_whose_first_message_meets_a_full_disk_takes_the_next_one(make, monkeypatch):
    """Given a disk that is full when the worker creates its ledger, then this file is not in its way later."""
    ensemble = make(samples=1)
    process = worker("w-1", 1, Transport().send)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *args: 0)
        process.run(ensemble.task())
    assert ensemble.runs == {}
    process.run(ensemble.task())

    assert ensemble.states.is_complete


def test_the_parts_that_stay_have_no_gap(make):
    """Given that the coordinator takes back a part while the broker does not answer, then only the part before it stays."""
    ensemble = make(samples=9)

    def send(task, task_queue, level):
        ensemble.claims.claim(MessageName(1, 1, 1, 5), owner_text(COORDINATOR))
        raise ConnectionError("away")

    worker("w-1", 1, send).run(ensemble.task())

    assert ensemble.runs == {0: 1}
    assert ensemble.claims.owner(MessageName(1, 1, 5, 9)) is None


def test_a_worker_sees_a_cancellation_behind_damage(make):
    ensemble = make(samples=2)
    ensemble.append_as_coordinator(Kind.SENT, 0, 2, 1)
    ensemble.append_as_coordinator(Kind.CANCELLED, 0, 2, 2)
    file = ensemble.plan.ledger / f"{COORDINATOR}{SUFFIX}"
    data = bytearray(file.read_bytes())
    data[ENTRY.itemsize + 3] ^= 1
    file.write_bytes(data)
    work(ensemble.task())

    assert ensemble.runs == {}


def test_too_little_memory_is_a_fault_of_the_machine(make, monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    ensemble = make(samples=1)
    monkeypatch.setattr(range_task.Runner, "start", fail)
    work(ensemble.task())

    assert ensemble.rows(Kind.NOT_RUN) == [("NOT_RUN", 0, cannot_run_code(errno.ENOMEM))]


def test_an_error_in_the_plugin_refuses_the_sample(make, monkeypatch):
    ensemble = make(samples=2)
    monkeypatch.setattr(range_task.Runner, "start", lambda *args, **options: 1 / 0)
    work(ensemble.task(), failure_rate=1.0)

    assert ensemble.rows(Kind.NOT_RUN) == [("NOT_RUN", 0, BROKEN)]
    assert ensemble.leases.holders() == set()


# --- extensions --------------------------------------------------------------------------------------


class FailingExtension:
    """An extension that stores each attempt, and then raises an error."""

    def __init__(self) -> None:
        self.attempts: queue.SimpleQueue = queue.SimpleQueue()

    @pluggy.HookimplMarker("maestro_celery")
    def attempt_finished(self, attempt):
        self.attempts.put((attempt.record, attempt.sample, attempt.code))
        raise RuntimeError("a mistake of a third party")


def test_an_extension_receives_each_attempt_and_its_errors_fail_no_sample(make):
    ensemble, extension = make(samples=2), FailingExtension()
    plugin_manager().register(extension)
    try:
        work(ensemble.task(), failure_rate=1.0)
    finally:
        plugin_manager().unregister(extension)

    assert [extension.attempts.get_nowait() for _ in range(2)] == [("sim_X.1", 0, 0), ("sim_X.1", 1, 0)]
    assert ensemble.each_sample_has_run_once()


# --- dead workers and late entries -------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("entries_left", range(1, 13))
def test_after_the_death_of_a_worker_exactly_the_samples_without_an_end_run_again(make, entries_left):
    """Given a worker whose ledger ends at any entry, when a coordinator sends its samples again, then these run."""
    ensemble = make(samples=4)
    ensemble.append_as_coordinator(Kind.SENT, 0, 4, 1)
    work(ensemble.task(), "w-1", failure_rate=1.0)
    os.truncate(ensemble.plan.ledger / f"w-1{SUFFIX}", (1 + entries_left) * ENTRY.itemsize + 11)
    ended = {start for _, start, _ in ensemble.rows(Kind.ENDED)}
    before = ensemble.runs

    leases, states = ensemble.leases, ensemble.states
    assert (leases.samples(1) | ensemble.waiting_messages.samples(1)).ranges() == [(0, 4)]
    assert len(leases.of_writer("w-1")) == 1
    for sample in states.find_running().samples().tolist():
        ensemble.append_as_coordinator(Kind.LOST, sample, 0, int(states.started[sample]))
    states = ensemble.states
    for number, (start, stop, mode) in enumerate(states.by_mode(states.find(Outcome.OPEN)), 2):
        ensemble.append_as_coordinator(Kind.SENT, start, stop, 2)
        work(ensemble.task(start, stop, 2, mode), f"w-{number}", failure_rate=1.0)

    assert ensemble.states.is_complete
    again = ensemble.runs - before
    assert set(again) == set(range(4)) - ended
    assert set(again.values()) <= {1}


# --- the end of an allocation ------------------------------------------------------------------------


def deadline_in(seconds, **times):
    return Deadline(time.time() + seconds, is_in_allocation=True, **{"warn_s": 1.0, **times})


@pytest.mark.parametrize(("changes", "times"), [({}, {"drain_s": 200.0}), ({"time_request_s": 200}, {"drain_s": 10.0})])
def test_no_sample_starts_without_enough_time_before_the_end_of_the_allocation(make, changes, times):
    ensemble, transport = make(samples=4, **changes), Transport()
    process = worker("w-1", 1, transport.send, deadline_in(100, **times))

    process.run(ensemble.task())

    assert Kind.STARTED not in ensemble.entries["kind"]
    assert ensemble.entries["kind"][-1] == Kind.RELEASED
    assert process.slots.out_of_time == ((ensemble.task().study_id, 1),)


def test_no_sample_starts_in_less_time_than_the_longest_sample_took(make):
    """Given a sample that took 45 s, then no other sample may start 40 s before the end of the allocation."""
    ensemble, transport = make(samples=4), Transport()
    process = worker("w-1", 1, transport.send, deadline_in(40))
    assert process.slots.has_time_for(ensemble.task(), ensemble.manifest)

    process.slots.record_duration(ensemble.task(), "sim", 45.0)

    assert not process.slots.has_time_for(ensemble.task(), ensemble.manifest)


def test_a_running_sample_is_warned_and_then_killed_before_the_end_of_the_allocation(make, monkeypatch):
    """Given a clock that stands until the sample has done what is awaited, then it is warned 20 s, and killed 5 s before the end."""
    now = time.time()
    monkeypatch.setattr(clock, "now", lambda: now)
    cmd = "trap 'echo warned >> ../../seen' USR1; echo begun >> ../../seen; sleep 600 & wait; sleep 600"
    ensemble, transport = make(samples=1, cmd=cmd, signal="SIGUSR1"), Transport()
    process = worker("w-1", 1, transport.send, Deadline(now + 100, 10.0, 20.0, is_in_allocation=True))
    thread = threading.Thread(target=process.run, args=(ensemble.task(),))
    thread.start()

    def has_seen(text):
        process.slots.check_running()
        seen = ensemble.root / "seen"
        return (seen.read_text() if seen.exists() else "") == text

    assert wait_until(lambda: has_seen("begun\n"), PATIENCE_S)
    now += 81
    assert wait_until(lambda: has_seen("begun\nwarned\n"), PATIENCE_S)
    now += 10
    assert has_seen("begun\nwarned\n")
    assert not ensemble.rows(Kind.STOPPED)
    now += 5
    process.slots.check_running()
    thread.join(PATIENCE_S)

    last = ensemble.entries[ensemble.entries["kind"] == Kind.STOPPED]
    assert last["code"].tolist() == [-9]


@pytest.mark.parametrize(
    ("worker_stops", "kind"),
    [
        (lambda slots: slots.stopping.set(), Kind.STOPPED),
        (lambda slots: setattr(slots, "is_terminated", True), Kind.STOPPED),
        (lambda slots: None, Kind.ENDED),
    ],
    ids=["stops", "has only got the signal", "goes on"],
)
def test_a_sample_that_is_ended_by_the_same_signal_as_its_worker_has_not_failed(make, monkeypatch, worker_stops, kind):
    """Given a sample that SIGTERM has ended, then it has failed only if its worker does not stop as well. Its thread that stops
    it may wait for a file system meanwhile."""
    monkeypatch.setattr(slots, "SIGNAL_LIMIT_S", PATIENCE_S if kind is Kind.STOPPED else 0.3)
    was_ended = Slots.was_ended_with_allocation

    def stop_while_the_slot_waits(own, code):
        threading.Timer(0.15, worker_stops, [own]).start()
        return was_ended(own, code)

    monkeypatch.setattr(Slots, "was_ended_with_allocation", stop_while_the_slot_waits)
    ensemble, transport = make(samples=1, cmd="kill -TERM $$"), Transport()
    process = worker("w-1", 1, transport.send, deadline_in(1000, drain_s=1.0))

    process.run(ensemble.task())

    assert kind in ensemble.entries["kind"]


def test_flush_makes_the_start_of_a_running_sample_visible_to_other_nodes(make, monkeypatch):
    """Given a file system that shows entries only after a flush, when a sample runs, then `flush` flushes them."""
    flushed = []
    monkeypatch.setattr(LedgerWriter, "flush", lambda writer: flushed.append(writer))
    ensemble, transport = make(samples=1, cmd="until test -e ../../go; do sleep 0.05; done"), Transport()
    process = worker("w-1", 1, transport.send)
    thread = threading.Thread(target=process.run, args=(ensemble.task(),))
    thread.start()
    assert wait_until(lambda: Kind.STARTED in ensemble.entries["kind"], PATIENCE_S)

    process.flush()

    assert len(flushed) == 1
    (ensemble.root / "go").touch()
    thread.join()


def test_slots_are_free_sooner_for_a_step_record_whose_samples_request_another_run(make):
    """Given a sample that has requested another run, then a slot is free within a third of a second for the next attempt."""
    ensemble = make(cmd="exit 104", samples=1)
    process = worker("w-1", 1, Transport().send)
    task = ensemble.task()
    process.slots.record_duration(task, "sim", slots.TIME_BUDGET_S / 10)
    assert process.slots.piece_size(task, "sim") == 10
    assert not process.slots.is_over_budget(task, slots.TIME_BUDGET_S)

    process.run(task)

    assert process.slots.is_over_budget(task, slots.TIME_BUDGET_S)
    process.slots.record_duration(task, "sim", 0.0)
    other = dataclasses.replace(task, record=task.record + 1)
    assert not process.slots.is_over_budget(other, slots.TIME_BUDGET_S)


def test_a_sample_that_removes_its_directory_has_finished(make):
    """Given a study with markers of finished samples, then a sample that has removed its directory has its outcome."""
    ensemble = make(samples=2, finished_marker=True, cmd='rm -r "$PWD"')

    process, _ = work(ensemble.task(0, 1))

    assert ensemble.states.counts().finished == 1
    assert ensemble.rows(Kind.NOT_RUN) == []
    assert not process.health.is_held


def test_a_sample_has_finished_when_there_is_room_for_its_marker_again(make, monkeypatch):
    """Given a quota that is exhausted when a sample ends, then its outcome is recorded when the marker is there."""
    ensemble = make(samples=2, finished_marker=True)
    touch, errors = Path.touch, [OSError(errno.EDQUOT, "Disk quota exceeded")] * 3

    def fail_at_first(path, *args, **options):
        if path.name == "MERLIN_FINISHED" and errors:
            raise errors.pop()
        touch(path, *args, **options)

    monkeypatch.setattr(Path, "touch", fail_at_first)
    work(ensemble.task(0, 1))

    assert not errors
    assert ensemble.runs == {0: 1}
    assert ensemble.states.counts().finished == 1
    assert len([*ensemble.root.rglob("MERLIN_FINISHED")]) == 1


@pytest.mark.usefixtures("unhurried")
def test_the_rest_of_a_range_runs_although_a_request_for_another_run_is_not_visible_yet(make, monkeypatch):
    """Given a full disk when a sample asks for another run, then the samples behind it run here, and are not given up."""
    ensemble = make(samples=3, cmd=f"{RUN}; exit 104")
    flush, errors = LedgerWriter.flush, [LedgerError("no space")]

    def fail_once(writer):
        if errors and ensemble.runs:
            raise errors.pop()
        flush(writer)

    monkeypatch.setattr(LedgerWriter, "flush", fail_once)
    transport = Transport()
    process = worker("w-1", 1, transport.send)
    process.slots.piece_size = lambda task, step: 3
    process.run(ensemble.task())

    assert not errors
    assert ensemble.runs == Counter(range(3))
    assert not transport.sent


def test_a_ledger_that_cannot_be_written_keeps_no_other_one_from_being_visible(tmp_path, monkeypatch):
    """Given samples of two studies in a worker, when the ledger of one is on a full disk, then the other one is flushed."""
    ensembles = [Ensemble(tmp_path / name) for name in ("a", "b")]
    process = worker("w-1", 1, Transport().send)
    for ensemble in ensembles:
        process._study(ensemble.task())
    flushed = []

    def fail(writer):
        flushed.append(writer)
        raise LedgerError("no space")

    monkeypatch.setattr(LedgerWriter, "flush", fail)

    with pytest.raises(LedgerError):
        process.flush()

    assert len(flushed) == 2


def test_an_error_at_the_first_message_of_a_study_does_not_make_a_worker_useless_for_it(make, monkeypatch):
    """Given an error of the file system while a worker opens a study, then it runs the next message of it."""
    ensemble = make(samples=2)
    claims, errors = study_context.Claims, [OSError(errno.EIO, "Input/output error")]

    def fail_once(*args):
        if errors:
            raise errors.pop()
        return claims(*args)

    monkeypatch.setattr(study_context, "Claims", fail_once)
    process = worker("w-1", 1, Transport().send)
    process.run(ensemble.task(0, 1))
    assert process.unclaimed == 1
    process.run(ensemble.task(0, 1))

    assert process.unclaimed == 0
    assert ensemble.runs == {0: 1}
