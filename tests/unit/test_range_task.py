"""Range tasks: driven in this process through a queue in place of the broker, with real samples and a real ledger."""

from __future__ import annotations

import dataclasses
import os
import queue
import random
import resource
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pluggy
import pytest
from ensembles import RELATIVE, a_study, states_of

from maestro_celery_plugin.batch import deadline
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.broker.messages import RangeTask, halves
from maestro_celery_plugin.clock import wait_until
from maestro_celery_plugin.conductor.step_record import ranges_of
from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, SUFFIX, Kind
from maestro_celery_plugin.ledger.leases import Leases
from maestro_celery_plugin.ledger.reader import LedgerReader, read_ledger
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.plugins import plugin_manager
from maestro_celery_plugin.states import UNREADABLE, Outcome, cannot_run_code
from maestro_celery_plugin.worker import range_task, slots
from maestro_celery_plugin.worker.launch_env import LaunchEnvironment
from maestro_celery_plugin.worker.range_task import RangeTasks
from maestro_celery_plugin.worker.slots import Slots

# Each sample notes that it has run: a short line, appended whole.
RUN = "echo $(MERLIN_SAMPLE_ID) >> ../../../runs"


def worker(writer, count, send, ends=None):
    """A worker process with so many slots, without Celery."""
    return RangeTasks(writer, Slots(count, ends or Deadline(), LaunchEnvironment(writer)), send)


@pytest.fixture(autouse=True)
def short_claims(monkeypatch):
    monkeypatch.setattr(range_task, "CLAIM_LIMIT_S", 0.15)


class Ensemble:
    """A study with one step record, and messages for it."""

    def __init__(self, root: Path, **changes) -> None:
        self.plan, self.manifest = a_study(root, **{"cmd": RUN, "restart": RUN, **changes})
        self.root = root

    def task(self, start=0, stop=None, epoch=1):
        return RangeTask(str(self.root), RELATIVE, 1, start, self.manifest.samples if stop is None else stop, epoch)

    def note(self, kind, start, stop, epoch):
        """Write as the coordinator."""
        writer = LedgerWriter(self.plan.ledger / f"{COORDINATOR}{SUFFIX}")
        writer.append(kind, 1, epoch, start, stop)
        writer.close()

    @property
    def entries(self):
        return read_ledger(self.plan.ledger)

    def told(self, *kinds):
        """Return (kind, start, code) of each entry in its order, without those about ranges unless asked for."""
        wanted = kinds or (Kind.STARTED, Kind.ENDED, Kind.STOPPED)
        return [(Kind(e["kind"]).name, int(e["start"]), int(e["code"])) for e in self.entries if e["kind"] in wanted]

    @property
    def progress(self):
        progress = states_of(self.manifest)
        progress.apply(self.entries)
        return progress

    @property
    def runs(self):
        """How often each sample has run."""
        path = self.root / "runs"
        return Counter(map(int, path.read_text().split())) if path.exists() else Counter()

    def each_once(self):
        return self.runs == Counter(range(self.manifest.samples)) and self.progress.is_complete

    @property
    def leases(self):
        leases = Leases()
        for writer, entries in LedgerReader(self.plan.ledger).poll():
            leases.apply(writer, entries)
        return leases


@pytest.fixture
def make(tmp_path):
    return lambda **changes: Ensemble(tmp_path / "study", **changes)


class Transport:
    """A broker that may deliver twice, in any order, or be away."""

    def __init__(self, copies=1, seed=None, away=0.0) -> None:
        self.sent: list[RangeTask] = []
        self._random, self._copies, self._away = random.Random(seed), copies, away
        self._shuffled, self._condition = seed is not None, threading.Condition()
        self._waiting: list[RangeTask] = []
        self._working = 0

    def send(self, task, task_queue="merlin"):
        assert task_queue == "merlin"
        if self._random.random() < self._away:
            raise ConnectionError("away")
        self.put(task)

    def put(self, task):
        with self._condition:
            self.sent.append(task)
            self._waiting += [task] * self._copies
            if self._shuffled:
                self._random.shuffle(self._waiting)
            self._condition.notify_all()

    def consume(self, side):
        """Work until no message is left or under way."""
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
                side.run(task)
            finally:
                with self._condition:
                    self._working -= 1
                    self._condition.notify_all()


def drive(transport, *sides_and_slots):
    """Let workers, each with its slots, do all there is to do."""
    threads = [
        threading.Thread(target=transport.consume, args=(side,))
        for side, slots in sides_and_slots
        for _ in range(slots)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def work(task, writer="w-1", **options):
    """Do one task in one slot; return the worker and what it sent on."""
    transport = Transport(**options)
    side = worker(writer, 1, transport.send)
    side.run(task)
    return side, transport.sent


class Instant(threading.Event):
    """An event whose waits are noted and take no time."""

    def __init__(self, on_wait=lambda: None) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._on_wait = on_wait

    def wait(self, timeout=None):
        self.waits.append(timeout)
        self._on_wait()
        return self.is_set()


def alone(start, stop):
    """Return the ends of a task's halves."""
    return [(part.start, part.stop) for part in halves(RangeTask("s", "m", 1, start, stop, 1))]


# --- splitting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "parts"), [((0, 0), []), ((4, 5), [(4, 5)]), ((4, 6), [(4, 5), (5, 6)]), ((0, 7), [(0, 3), (3, 7)])]
)
def test_a_range_is_split_in_halves(whole, parts):
    assert alone(*whole) == parts


def test_a_slot_keeps_one_sample_while_it_does_not_know_how_long_they_take(make):
    ensemble = make(samples=9)
    _, sent = work(ensemble.task())

    assert ensemble.runs == {0: 1}
    assert sorted((task.start, task.stop) for task in sent) == [(1, 5), (5, 9)]
    assert ensemble.told(Kind.TAKEN, Kind.PASSED, Kind.RELEASED) == [
        ("TAKEN", 0, 0), ("PASSED", 5, 0), ("PASSED", 1, 0), ("RELEASED", 0, 0),
    ]  # fmt: skip


def test_a_slot_keeps_what_it_can_run_in_its_budget(make):
    ensemble = make(samples=9)
    side = worker("w-1", 1, Transport().send)
    task = ensemble.task()
    assert side.slots.piece_size(task) == 1
    side.slots.record_duration(task, slots.TIME_BUDGET_S / 4)
    assert side.slots.piece_size(task) == 4
    side.slots.record_duration(task, 60.0)
    assert side.slots.piece_size(task) == 1


def test_a_slot_sends_on_what_takes_longer_than_it_thought(make, monkeypatch):
    monkeypatch.setattr(slots, "TIME_BUDGET_S", 0.05)
    ensemble = make(samples=8, cmd=f"{RUN}; sleep 0.06")
    transport = Transport()
    side = worker("w-1", 1, transport.send)
    side.slots.record_duration(ensemble.task(), 0.001)
    side.run(ensemble.task())

    assert len(ensemble.runs) == 2
    assert sorted((task.start, task.stop) for task in transport.sent) == [(2, 5), (5, 8)]


# --- each sample once --------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_any_number_of_slots_runs_each_sample_once(make, slots):
    ensemble = make(samples=23)
    transport = Transport()
    transport.put(ensemble.task())
    drive(transport, (worker("w-1", slots, transport.send), slots))

    assert ensemble.each_once()
    assert ensemble.leases.holders() == set()


@pytest.mark.parametrize("seed", range(2))
def test_messages_may_come_twice_and_in_any_order_to_several_workers(make, seed):
    ensemble = make(samples=12)
    transport = Transport(copies=2, seed=seed)
    transport.put(ensemble.task())
    drive(transport, *((worker(f"w-{n}", 2, transport.send), 2) for n in (1, 2)))

    assert ensemble.each_once()
    assert set(ensemble.told(Kind.ENDED)) == {("ENDED", sample, 0) for sample in range(12)}


@pytest.mark.parametrize("away", [1.0, 0.5])
def test_when_the_broker_is_away_the_samples_stay_and_run_here(make, away):
    ensemble = make(samples=10)
    transport = Transport(away=away, seed=3)
    transport.put(ensemble.task())
    drive(transport, (worker("w-1", 2, transport.send), 2))

    assert ensemble.each_once()
    assert len(transport.sent) == 1 or away < 1.0


def test_only_what_was_sent_is_passed_on(make):
    """The second half goes first; the first cannot be sent, and stays."""
    ensemble = make(samples=9)
    sent = []

    def send(task, task_queue):
        if sent:
            raise ConnectionError("away")
        sent.append(task)

    worker("w-1", 1, send).run(ensemble.task())

    assert [(task.start, task.stop) for task in sent] == [(5, 9)]
    assert ensemble.runs == Counter(range(5))
    assert ensemble.told(Kind.PASSED) == [("PASSED", 5, 0)]


def test_a_record_that_is_not_sampled_runs_once(make):
    ensemble = make(sampled=False, samples=1, table=None, labels=[], cmd="echo 0 >> ../../runs")
    for _ in range(2):
        work(ensemble.task())

    assert ensemble.each_once()


def test_a_single_sample_runs_in_the_workspace_once(make):
    ensemble = make(samples=1, cmd="echo $(MERLIN_SAMPLE_ID) >> ../../runs")
    for _ in range(2):
        work(ensemble.task())

    assert ensemble.each_once()


def test_a_sample_whose_worker_died_before_it_noted_the_start_runs(make):
    ensemble = make(samples=2)
    Path(ensemble.manifest.workspace, "00").mkdir()
    Path(ensemble.manifest.workspace, "00", "sim.sh").touch()
    work(ensemble.task(), away=1.0)

    assert ensemble.each_once()


# --- samples that run again --------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "script"), [(100, "restart"), (104, "cmd"), (7, None), (0, None), (102, None)])
def test_a_sample_that_asked_runs_again_under_the_next_epoch(make, code, script):
    ensemble = make(samples=2, cmd=f"echo cmd; exit {code}", restart="echo restart")
    work(ensemble.task(0, 1))
    work(ensemble.task(0, 1))  # the same message again
    assert ensemble.told() == [("STARTED", 0, 0), ("ENDED", 0, code)]

    work(ensemble.task(0, 1, epoch=2))
    assert ensemble.told(Kind.STARTED)[1:] == ([("STARTED", 0, int(script == "restart"))] if script else [])


def test_a_sample_that_was_lost_runs_restart(make):
    ensemble = make(samples=2, restart=f"{RUN}; echo restart")
    worker = LedgerWriter(ensemble.plan.ledger / f"w-0{SUFFIX}")
    worker.append(Kind.STARTED, 1, 1, 0)
    Path(ensemble.manifest.workspace, "00").mkdir()
    Path(ensemble.manifest.workspace, "00", "sim.sh").touch()
    ensemble.note(Kind.LOST, 0, 0, 1)

    work(ensemble.task(0, 1, epoch=2))

    assert Path(ensemble.manifest.workspace, "00", "sim.out").read_text() == "restart\n"
    assert ensemble.progress.outcome[0] == Outcome.FINISHED


def test_a_range_that_leads_across_finished_samples_leaves_them_alone(make):
    """Also those that have removed their own script, which would tell that they were started."""
    ensemble = make(samples=6, cmd=f"{RUN}; rm -f *; exit $(( $(MERLIN_SAMPLE_ID) % 3 ? 0 : 104 ))")
    transport = Transport()
    transport.put(ensemble.task())
    drive(transport, (worker("w-1", 1, transport.send), 1))
    transport.put(ensemble.task(0, 4, epoch=2))
    drive(transport, (worker("w-2", 1, transport.send), 1))

    assert ensemble.runs == {0: 2, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


# --- void and stopped --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.SENT, Kind.CANCELLED])
def test_what_was_sent_again_or_cancelled_does_not_run(make, kind):
    ensemble = make(samples=4)
    ensemble.note(Kind.SENT, 0, 4, 1)
    ensemble.note(kind, 1, 2, 2)
    for sample in range(4):
        work(ensemble.task(sample, sample + 1))

    assert ensemble.runs == {0: 1, 2: 1, 3: 1}
    assert ensemble.leases.holders() == set()


def test_what_is_sent_again_under_this_epoch_runs(make):
    ensemble = make(samples=2)
    for epoch in (1, 2, 3):
        ensemble.note(Kind.SENT, 0, 2, epoch)
    work(ensemble.task(0, 1, epoch=3))
    work(ensemble.task(1, 2, epoch=2))

    assert ensemble.runs == {0: 1}


def test_a_damaged_entry_of_the_coordinator_makes_nothing_void(make):
    ensemble = make(samples=1)
    entry = np.zeros(1, ENTRY)
    entry["kind"], entry["record"], entry["epoch"], entry["stop"] = Kind.CANCELLED, 1, 9, 1
    ensemble.plan.ledger.mkdir()
    entry.tofile(ensemble.plan.ledger / f"{COORDINATOR}{SUFFIX}")
    work(ensemble.task())

    assert ensemble.progress.is_complete


class Sleeping:
    """A worker with a sample that takes a minute."""

    def __init__(self, ensemble) -> None:
        self.side = worker("w-1", 1, Transport(away=1.0).send)
        self.thread = threading.Thread(target=self.side.run, args=(ensemble.task(),))
        self.thread.start()
        assert wait_until(lambda: ensemble.runs, 5)
        self.side.slots.check_running()
        time.sleep(0.05)
        assert ensemble.told() == [("STARTED", 0, 0)]  # it was let run

    def end(self):
        assert wait_until(lambda: self.side.slots.check_running() or not self.thread.is_alive(), 5)


def test_a_running_sample_is_ended_when_it_becomes_void(make):
    ensemble = make(samples=2, cmd=f"{RUN}; exec sleep 60")
    sleeping = Sleeping(ensemble)
    ensemble.note(Kind.CANCELLED, 0, 2, 1 + 1)
    sleeping.end()

    assert ensemble.told() == [("STARTED", 0, 0), ("STOPPED", 0, -15)]
    assert ensemble.leases.holders() == set()


def test_a_worker_that_stops_ends_its_sample_and_begins_no_other(make):
    ensemble = make(samples=2, cmd=f"{RUN}; exec sleep 60")
    sleeping = Sleeping(ensemble)
    assert sleeping.side.slots.busy == 1
    sleeping.side.slots.stopping.set()
    sleeping.end()

    assert ensemble.told() == [("STARTED", 0, 0), ("STOPPED", 0, -15)]
    assert sleeping.side.slots.busy == 0
    sleeping.side.run(ensemble.task(1, 2))
    assert ensemble.runs == {0: 1}


# --- what cannot run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [{"stop": 4}, {"start": 2, "stop": 2}, {"start": 2, "stop": 1}])
def test_a_range_that_the_record_does_not_have_is_refused(make, task):
    ensemble = make(samples=3)
    work(ensemble.task(**task))

    assert ensemble.runs == {}
    assert ensemble.leases.holders() == set()


def test_a_message_with_the_number_of_another_record_is_refused(make):
    ensemble = make(samples=3)
    work(dataclasses.replace(ensemble.task(), record=2))

    assert ensemble.runs == {}
    assert ensemble.told(*Kind) == [("TAKEN", 0, 0), ("RELEASED", 0, 0)]


def test_a_sample_whose_interpreter_is_not_there_fails_and_the_next_is_tried(make):
    ensemble = make(samples=2, shell="/no/such/shell")
    work(ensemble.task(), away=1.0)

    assert ensemble.told() == [("STARTED", 0, 0), ("ENDED", 0, 127), ("STARTED", 1, 0), ("ENDED", 1, 127)]
    assert (ensemble.progress.outcome == Outcome.FAILED).all()


def test_with_a_full_disk_the_worker_waits_for_a_moment(make):
    ensemble = make(samples=1)
    os.symlink("/dev/full", f"{ensemble.manifest.workspace}/sim.sh")
    side = worker("w-1", 1, Transport().send)
    side.slots.stopping = Instant()
    side.run(ensemble.task())

    assert ensemble.told(Kind.ENDED) == [("ENDED", 0, cannot_run_code(28))]
    assert side.slots.stopping.waits == [1.0]


def test_a_ledger_that_cannot_be_written_is_waited_for(make):
    """There is space for the first entry and for half of the second."""
    ensemble = make(samples=2, table=None, labels=[])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    side = worker("w-1", 1, Transport(away=1.0).send)
    side.slots.stopping = Instant(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(ENTRY.itemsize * 1.5), hard))
    try:
        side.run(ensemble.task())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert side.slots.stopping.waits == [2.0]
    assert ensemble.told(*Kind) == [
        ("TAKEN", 0, 0), ("STARTED", 0, 0), ("ENDED", 0, 0), ("STARTED", 1, 0), ("ENDED", 1, 0), ("RELEASED", 0, 0),
    ]  # fmt: skip


def test_a_sample_table_that_is_gone_fails_the_record(make):
    ensemble = make(samples=3)
    Path(ensemble.manifest.table).unlink()
    work(ensemble.task(1, 3))

    assert ensemble.told() == [("ENDED", 1, UNREADABLE)]
    assert ensemble.progress.outcome.tolist() == [Outcome.OPEN, Outcome.HARD_FAILED, Outcome.OPEN]
    assert ensemble.leases.holders() == set()


def test_a_sample_table_that_changes_fails_the_first_sample_that_needs_it(make):
    ensemble = make(samples=5, cmd=f"{RUN}; test $(V) != v1 || echo more >> ../../../merlin_info/samples.csv")
    work(ensemble.task(), away=1.0)

    outcome = ensemble.progress.outcome.tolist()
    assert outcome == [Outcome.FINISHED, Outcome.FINISHED, Outcome.HARD_FAILED, Outcome.OPEN, Outcome.OPEN]
    assert ensemble.runs == {0: 1, 1: 1}


# --- plugins -----------------------------------------------------------------------------------------


class Listener:
    """A third party's part."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue = queue.SimpleQueue()

    @pluggy.HookimplMarker("maestro_celery")
    def attempt_finished(self, attempt):
        self.heard.put((attempt.record, attempt.sample, attempt.code))
        raise RuntimeError("a mistake of a third party")


def test_a_plugin_hears_of_each_attempt_and_its_mistakes_cost_no_sample(make):
    ensemble, listener = make(samples=2), Listener()
    plugin_manager().register(listener)
    try:
        work(ensemble.task(), away=1.0)
    finally:
        plugin_manager().unregister(listener)

    assert [listener.heard.get_nowait() for _ in range(2)] == [("sim_X.1", 0, 0), ("sim_X.1", 1, 0)]
    assert ensemble.each_once()


# --- nothing is lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("entries_left", [1, 2, 3, 4, 5, 6, 7])
def test_wherever_a_worker_dies_the_rest_runs_and_what_has_ended_does_not(make, entries_left, monkeypatch):
    """The worker's ledger ends at some entry; then a coordinator's steps are taken by hand."""
    monkeypatch.setattr(range_task, "CLAIM_LIMIT_S", 0.01)
    ensemble = make(samples=4)
    ensemble.note(Kind.SENT, 0, 4, 1)
    work(ensemble.task(), "w-1", away=1.0)
    os.truncate(ensemble.plan.ledger / f"w-1{SUFFIX}", entries_left * ENTRY.itemsize + 11)
    ended = {start for _, start, _ in ensemble.told(Kind.ENDED)}
    before = ensemble.runs

    leases, progress = ensemble.leases, ensemble.progress
    (piece,) = leases.revoke("w-1")
    assert (piece.start, piece.stop) == (0, 4)
    for sample in np.flatnonzero(progress.running):
        ensemble.note(Kind.LOST, int(sample), 0, int(progress.started[sample]))
    for start, stop in ranges_of(progress.outcome == Outcome.OPEN, progress.outcome != Outcome.OPEN):
        ensemble.note(Kind.SENT, start, stop, 2)
        work(ensemble.task(start, stop, 2), "w-2", away=1.0)

    assert ensemble.progress.is_complete
    again = ensemble.runs - before
    assert set(again) == set(range(4)) - ended
    assert set(again.values()) <= {1}


class LateNews:
    """Another worker's end of sample 1, which is seen when sample 0 has ended."""

    def __init__(self, ensemble) -> None:
        self._ensemble = ensemble

    @pluggy.HookimplMarker("maestro_celery")
    def attempt_finished(self, attempt):
        writer = LedgerWriter(self._ensemble.plan.ledger / f"w-9{SUFFIX}")
        writer.append(Kind.STARTED, 1, 1, 1)
        writer.append(Kind.ENDED, 1, 1, 1)
        writer.close()


def test_a_sample_whose_end_is_seen_late_does_not_run_again(make):
    ensemble = make(samples=2)
    Path(ensemble.manifest.workspace, "01").mkdir()
    Path(ensemble.manifest.workspace, "01", "sim.sh").touch()
    news = LateNews(ensemble)
    plugin_manager().register(news)
    try:
        work(ensemble.task(epoch=2), away=1.0)
    finally:
        plugin_manager().unregister(news)

    assert ensemble.runs == {0: 1}
    assert ensemble.progress.is_complete


def test_of_many_slots_with_the_same_message_one_runs_a_sample_again(make):
    ensemble = make(samples=6, cmd="exit 100", restart=f"{RUN}; exit 100", max_retries=100)
    work(ensemble.task(), away=1.0)
    side = worker("w-2", 8, Transport(away=1.0).send)
    gate = threading.Barrier(8)

    def run(epoch):
        gate.wait()
        for sample in range(6):
            side.run(ensemble.task(sample, sample + 1, epoch))

    for epoch in (2, 3):
        threads = [threading.Thread(target=run, args=(epoch,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert ensemble.runs == dict.fromkeys(range(6), 2)


# --- the end of an allocation ------------------------------------------------------------------------


def ends_in(seconds, **rules):
    return Deadline(time.time() + seconds, is_in_allocation=True, **{"warn_s": 1.0, **rules})


@pytest.mark.parametrize(("changes", "rules"), [({}, {"drain_s": 200.0}), ({"time_request_s": 200}, {"drain_s": 10.0})])
def test_no_sample_is_started_that_its_allocation_has_no_time_for(make, changes, rules):
    ensemble, transport = make(samples=4, **changes), Transport()
    side = worker("w-1", 1, transport.send, ends_in(100, **rules))

    side.run(ensemble.task())

    assert Kind.STARTED not in ensemble.entries["kind"]
    assert ensemble.entries["kind"][-1] == Kind.RELEASED
    assert side.slots.refused == (1,)


def test_a_worker_learns_how_long_samples_take(make):
    """Given a sample that took half a minute so far, then none is started in the last half minute."""
    ensemble, transport = make(samples=4), Transport()
    side = worker("w-1", 1, transport.send, ends_in(40))
    assert side.slots.has_time_for(ensemble.task(), ensemble.manifest)

    side.slots.record_duration(ensemble.task(), 45.0)

    assert not side.slots.has_time_for(ensemble.task(), ensemble.manifest)


def test_what_runs_is_warned_and_then_killed_and_is_lost_to_the_allocation(make, monkeypatch):
    monkeypatch.setattr(deadline, "EXIT_MARGIN_S", 0.6)
    cmd = "trap 'echo $(MERLIN_SAMPLE_ID) warned >> ../../runs' USR1; sleep 100 & wait; sleep 100"
    ensemble, transport = make(samples=1, cmd=cmd, signal="SIGUSR1"), Transport()
    side = worker("w-1", 1, transport.send, ends_in(2.0, drain_s=0.1))
    thread = threading.Thread(target=side.run, args=(ensemble.task(),))
    thread.start()

    while thread.is_alive():
        side.slots.check_running()
        thread.join(0.05)

    assert (ensemble.root / "runs").read_text() == "0 warned\n"
    last = ensemble.entries[ensemble.entries["kind"] == Kind.STOPPED]
    assert last["code"].tolist() == [-9]


@pytest.mark.parametrize(("told", "kind"), [(True, Kind.STOPPED), (False, Kind.ENDED)])
def test_a_death_by_the_signal_that_ends_the_worker_is_no_failure(make, monkeypatch, told, kind):
    """Given a batch system that sends SIGTERM to all processes, then only a worker that is not meant has a failure."""
    monkeypatch.setattr(slots, "SIGNAL_LIMIT_S", 0.3)
    ensemble, transport = make(samples=1, cmd="kill -TERM $$"), Transport()
    side = worker("w-1", 1, transport.send, ends_in(100, drain_s=1.0))
    if told:
        threading.Timer(0.15, side.slots.stopping.set).start()

    side.run(ensemble.task())

    assert kind in ensemble.entries["kind"]


def test_the_start_of_a_long_sample_is_visible_to_other_nodes_while_it_runs(make, monkeypatch):
    """Given a file system that shows what was written when the file is closed, then the watch sees to that."""
    shown = []
    monkeypatch.setattr(LedgerWriter, "flush", lambda writer: shown.append(writer))
    ensemble, transport = make(samples=1, cmd="sleep 1"), Transport()
    side = worker("w-1", 1, transport.send)
    thread = threading.Thread(target=side.run, args=(ensemble.task(),))
    thread.start()
    assert wait_until(lambda: Kind.STARTED in ensemble.entries["kind"], 10)

    side.flush()

    assert len(shown) == 1
    thread.join()
