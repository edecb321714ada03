"""Claims on a network file system: what other nodes have done is visible late, and any operation may stall.

The real coordinator and real worker processes share a file server in memory (`fakes/network_store.py`). A message may
be lost, delivered twice or late, and the coordinator sends samples again at once, without the delays that it has in a
conductor. So each rule that protects a sample is needed, and none of them can be a time limit.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ensembles import a_study
from fakes.network_store import FileServer, NodeDiedError
from support import PATIENCE_S

from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.ledger.claims import Claims, MessageName, owner_text
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.worker import fences, range_task
from maestro_celery_plugin.worker.launch_env import LaunchEnvironment
from maestro_celery_plugin.worker.range_task import RangeTasks
from maestro_celery_plugin.worker.slots import Slots

SAMPLES = 16
# Two attempts at once find the directory `busy` of each other. The sample deletes its script, which is no claim.
CMD = """\
place=../../../places/$(MERLIN_SAMPLE_ID)
mkdir $place.busy || echo $(MERLIN_SAMPLE_ID) >> ../../../overlaps
echo run >> $place.runs
rm -f sim.sh
sleep 0.0$(( RANDOM % 4 ))
rmdir $place.busy
"""


class Broker:
    """A broker that loses messages, delivers them twice, and in any order."""

    def __init__(self, seed, loss_rate, copy_rate) -> None:
        self._random, self._condition = random.Random(seed), threading.Condition()
        self._loss_rate, self._copy_rate = loss_rate, copy_rate
        self._messages: list = []
        self.ended = False

    def send(self, task, task_queue, level):
        with self._condition:
            kind = self._random.random()
            copies = 0 if kind < self._loss_rate else 2 if kind < self._loss_rate + self._copy_rate else 1
            self._messages += [task] * copies
            self._random.shuffle(self._messages)
            self._condition.notify_all()

    def receive(self, store):
        """Wait for a message; return None when the node of a store has died, or at the end."""
        with self._condition:
            while not (self.ended or store.is_dead):
                if self._messages:
                    return self._messages.pop()
                self._condition.wait(0.05)
        return None

    def end(self):
        with self._condition:
            self.ended = True
            self._condition.notify_all()


class Node:
    """A node with one worker process and two slots."""

    def __init__(self, number, server, broker) -> None:
        self.name, self.store, self._broker = f"w-{number}", server.node(number), broker
        slots = Slots(2, Deadline(), LaunchEnvironment(self.name))
        self.tasks = RangeTasks(self.name, slots, broker.send, self.store)
        self.threads = [threading.Thread(target=self._consume, daemon=True) for _ in range(2)]
        self.threads.append(threading.Thread(target=self._flush, daemon=True))
        for thread in self.threads:
            thread.start()

    def _consume(self):
        try:
            while (task := self._broker.receive(self.store)) is not None:
                self.tasks.run(task)
        except NodeDiedError:
            return

    def _flush(self):
        try:
            while not (self._broker.ended or self.store.is_dead):
                self.tasks.flush()
                time.sleep(0.05)
        except NodeDiedError:
            return

    def die(self):
        """End the node between two operations, and wait for its samples: a dead node runs none."""
        self.store.is_dead = True
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


class Cluster:
    def __init__(self, root, seed, **server) -> None:
        self.plan, manifest = a_study(root, cmd=CMD, restart=CMD, samples=SAMPLES)
        (root / "places").mkdir()
        self.server, self.broker = FileServer(seed=seed, **server), Broker(seed, 0.1, 0.2)
        self.server.directories.update(map(str, (self.plan.claims, self.plan.claims / f"{0:016x}")))
        self.dead: set[str] = set()
        groups = {"w": WorkerGroupSettings(task_queues=("merlin",))}
        self.records = StepRecords(self.plan, groups, self.server.node("conductor"))
        self.server.directories.add(str(self.plan.claims / f"{0:016x}" / "1"))
        self.publisher = Publisher(self.plan, None, self.records, {"merlin"}, self.dead.__contains__, self.dead.add)
        self.publisher._sender = self.broker
        self.record = self.records.register(manifest)
        self.record.begin(cancelled=False)
        self.nodes = [Node(number, self.server, self.broker) for number in range(3)]

    def conduct(self, *, kill):
        """Send all samples without a visible lease, again and again, until all have an outcome."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.record.samples.is_complete:
            assert time.monotonic() < deadline, self.record.samples.counts()
            self.publisher.send(self.record, self.record.unassigned(self.records.leased(self.record)))
            time.sleep(0.03)
            self.records.follow()
            if kill and self.record.samples.counts().finished > 3:
                kill = False
                self._replace(self.nodes[0])
        self.broker.end()

    def _replace(self, node):
        node.die()
        self.records.follow(fresh=True)
        self.dead.add(node.name)
        self.records.mark_lost([node.name])
        self.nodes.append(Node(3, self.server, self.broker))

    def ledger(self):
        """Return the entries of all writers."""
        reader = LedgerReader(self.plan.ledger, store=self.server.node("reader"))
        return np.concatenate([entries for _, entries in reader.poll(fresh=True)])


@pytest.fixture(autouse=True)
def no_delays(monkeypatch):
    monkeypatch.setattr(range_task, "FAULT_DELAY_S", 0.0)
    monkeypatch.setattr(fences, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr("maestro_celery_plugin.worker.slots.TIME_BUDGET_S", 0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kill", [False, True], ids=["all nodes live", "a node dies"])
def test_no_two_attempts_at_a_sample_run_at_once_and_no_finished_sample_runs_again(tmp_path, seed, kill):
    cluster = Cluster(tmp_path / "study", seed, listing_s=1.0, stall_s=0.1, stall_rate=0.05)
    cluster.conduct(kill=kill)

    assert not Path(cluster.plan.root, "overlaps").exists()
    entries = cluster.ledger()
    starts = Counter(entries["start"][entries["kind"] == Kind.STARTED].tolist())
    lost = Counter(entries["start"][entries["kind"] == Kind.LOST].tolist())
    assert starts - lost == Counter(range(SAMPLES))
    assert lost.total() <= (2 if kill else 0)  # the dead node has two slots


def test_a_message_is_claimed_once_on_all_nodes(tmp_path):
    """Given many nodes that claim a message at the same moment, then one of them owns it, and all see the same owner."""
    server = FileServer(stall_s=0.01, stall_rate=0.5)
    directory = tmp_path / "claims"
    server.directories.update({str(directory / f"{7:016x}" / "1")})
    name = MessageName(1, 1, 0, 4)
    nodes = [Claims(directory, 7, server.node(number)) for number in range(8)]
    gate, claimed = threading.Barrier(8), []

    def claim(number):
        gate.wait()
        if nodes[number].claim(name, owner_text(f"w-{number}")):
            claimed.append(f"w-{number}")

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(claimed) == 1
    assert {node.owner(name) for node in nodes} == set(claimed)
