"""Dead workers: what the conductor concludes, and does not conclude, from a heartbeat that is missing or unreadable."""

from __future__ import annotations

import errno
import os

import pytest
from ensembles import a_study

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.dead_workers import DeadWorkers
from maestro_celery_plugin.conductor.local_workers import LocalWorkers
from maestro_celery_plugin.conductor.relatives import Relatives
from maestro_celery_plugin.conductor.scaling import Scaling
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study import heartbeats
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S, Heartbeat, Heartbeats
from maestro_celery_plugin.study.session import Session

GROUPS = {"w": WorkerGroupSettings(task_queues=("merlin",))}


class Study:
    """A study with local groups only; a user may start workers of such a group on another machine."""

    def __init__(self, root) -> None:
        self.plan, self.manifest = a_study(root)
        self.session = Session.create(self.plan.session)
        self.start()
        self.record = self.records.register(self.manifest)
        self.record.begin(cancelled=False)

    def start(self):
        """Start a conductor."""
        self.records = StepRecords(self.plan, GROUPS)
        self.source = LocalWorkers("w", self.session, self.plan.ledger)
        self.pool = WorkerPool(self.session, GROUPS, {"w": self.source}, Relatives(self.session, self.plan.id))
        self.dead_workers = DeadWorkers(self.pool, self.records, has_other_hosts=False)

    def beat(self, name, beat=1, host="elsewhere", allocation=""):
        self.session.heartbeats.write(
            Heartbeat(
                name=name, group="w", host=host, node="n", supervisor=(1, 1), process=(1, 1), slots=1, beat=beat,
                state=WorkerState.BUSY, machine="another", allocation=allocation,
            )
        )  # fmt: skip

    def take_sample(self, name, epoch=1):
        """Let a worker start a sample that does not end."""
        writer = LedgerWriter(self.plan.ledger / f"{name}{SUFFIX}", self.plan.number)
        writer.append(Kind.TAKEN, 1, epoch, 0, 10)
        writer.append(Kind.STARTED, 1, epoch, 0)
        writer.close()
        self.records.follow()

    @property
    def holders(self):
        self.dead_workers.detect()
        return self.records.leases.holders()

    def losses(self):
        """Return whether each lost attempt counts against its sample."""
        entries = read_ledger(self.plan.ledger)
        return (entries["code"][entries["kind"] == Kind.LOST] == 0).tolist()


@pytest.fixture
def study(tmp_path, wait):
    return Study(tmp_path / "study")


@pytest.fixture
def wait(monkeypatch):
    """Move the clock, which otherwise stands still."""
    now = [clock.monotonic()]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


class CachedNames:
    """The names of the heartbeats as NFS caches them in this node, until the node changes the directory."""

    def __init__(self, monkeypatch, *hidden) -> None:
        self.hidden, self.refreshed = set(hidden), 0
        names, refresh = Heartbeats._names, Heartbeats.refresh

        def refresh_names(heartbeats):
            self.refreshed += 1
            self.hidden.clear()
            refresh(heartbeats)

        monkeypatch.setattr(Heartbeats, "refresh", refresh_names)
        monkeypatch.setattr(Heartbeats, "_names", lambda *a: [name for name in names(*a) if name not in self.hidden])


# --- heartbeats that are not visible -----------------------------------------------------------------


def test_the_names_of_the_heartbeats_are_refreshed_before_a_worker_counts_as_dead(study, wait, monkeypatch):
    """Given NFS that shows the ledger of a new worker, but caches the names of the heartbeats for longer than 30 s."""
    study.beat("w-1")
    names = CachedNames(monkeypatch, "w-1")
    study.take_sample("w-1")
    assert study.holders == {"w-1"}
    assert names.refreshed == 0

    wait(SILENCE_LIMIT_S + 1)
    assert study.holders == {"w-1"}
    assert study.holders == {"w-1"}
    assert names.refreshed == 1
    assert "w-1" in study.pool.alive


def test_the_owner_of_a_claim_is_not_dead_before_the_names_are_refreshed(study, wait, monkeypatch):
    study.beat("w-1")
    CachedNames(monkeypatch, "w-1")
    assert not study.dead_workers.is_dead("w-1")
    wait(SILENCE_LIMIT_S + 1)

    assert not study.dead_workers.is_dead("w-1")


def test_a_worker_that_no_conductor_has_seen_counts_as_dead_after_the_silence_limit(study, wait, monkeypatch):
    """Given a study with local groups, then its workers may run on other machines, whose heartbeats appear late."""
    names = CachedNames(monkeypatch)
    study.take_sample("w-1")
    assert study.holders == {"w-1"}
    wait(SILENCE_LIMIT_S + 1)

    assert study.holders == set()
    assert study.dead_workers.is_dead("w-1")
    assert names.refreshed == 1
    assert study.losses() == [True]


def test_without_the_present_names_no_worker_counts_as_dead(study, wait, monkeypatch):
    def fail(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    study.take_sample("w-1")
    assert study.holders == {"w-1"}
    wait(SILENCE_LIMIT_S + 1)
    monkeypatch.setattr(Heartbeats, "refresh", fail)

    assert study.holders == {"w-1"}


@pytest.mark.parametrize(("name", "is_known"), [("w-1", True), ("w-1.4194305", True), ("w-2", False)])
def test_a_worker_that_the_conductor_has_started_here_needs_no_heartbeat_to_count_as_dead(study, name, is_known):
    """Given a worker that has died before its first heartbeat was read, then its samples are lost at once."""
    study.session.claimed_names.append("w-1")
    study.take_sample(name)

    assert study.holders == (set() if is_known else {name})


def test_a_worker_that_still_runs_here_without_a_heartbeat_is_not_dead(study, monkeypatch):
    study.session.claimed_names += ["w-1", "w-2"]
    monkeypatch.setattr(study.source, "has_ended", lambda: False)
    for name in ("w-1", "w-2", f"w-2.{os.getpid()}"):
        study.take_sample(name)

    assert study.holders == {"w-2", f"w-2.{os.getpid()}"}


# --- heartbeats that cannot be read ------------------------------------------------------------------


@pytest.fixture
def unreadable(monkeypatch):
    """Names of the workers whose heartbeats cannot be read."""
    names = set()
    read = heartbeats.read_text

    def read_text(path):
        if path.stem in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(heartbeats, "read_text", read_text)
    return names


def test_one_unreadable_heartbeat_hides_no_other(study, unreadable, caplog):
    for name in ("w-1", "w-2", "w-3"):
        study.beat(name)
    study.pool.refresh()
    unreadable.add("w-2")

    assert [beat.name for beat in study.session.heartbeats.all()] == ["w-1", "w-3"]
    for _ in range(2):
        assert study.pool.refresh() == []
    assert set(study.pool.alive) == {"w-1", "w-2", "w-3"}
    assert caplog.text.count("The heartbeat of worker 'w-2' cannot be read now: [Errno 5]") == 1


@pytest.mark.parametrize("was_seen", [True, False])
def test_a_worker_whose_heartbeat_cannot_be_read_lives_while_the_file_changes(
    study, wait, unreadable, was_seen, monkeypatch
):
    names = CachedNames(monkeypatch)
    study.beat("w-1")
    if was_seen:
        study.pool.refresh()
    unreadable.add("w-1")
    study.take_sample("w-1")
    for beat in (2, 3, 4):
        assert study.holders == {"w-1"}
        wait(SILENCE_LIMIT_S - 1)
        study.beat("w-1", beat)
    assert not study.dead_workers.is_dead("w-1")
    assert names.refreshed == 0

    for _ in range(3):
        study.dead_workers.detect()
        wait(SILENCE_LIMIT_S + 1)
    assert study.holders == set()
    assert study.dead_workers.is_dead("w-1")


def test_a_file_that_cannot_be_found_out_about_is_no_missing_heartbeat(study, wait):
    """Given a heartbeat whose directory entry is damaged (here: a symbolic link to itself)."""
    study.beat("w-1")
    study.pool.refresh()
    path = study.session.heartbeats.path_of("w-1")
    path.unlink()
    path.symlink_to(path)
    study.take_sample("w-1")
    for _ in range(3):
        assert study.holders == {"w-1"}
        wait(SILENCE_LIMIT_S + 1)


def test_a_resumed_conductor_takes_no_sample_from_a_worker_whose_heartbeat_cannot_be_read(study, unreadable):
    study.beat("w-1")
    study.take_sample("w-1")
    unreadable.add("w-1")
    study.start()

    Scaling(study.plan, study.session, study.records, {})

    assert study.records.leases.holders() == {"w-1"}
    assert study.losses() == []


def test_workers_elsewhere_are_not_reported_as_ended_while_a_heartbeat_cannot_be_read(study, unreadable):
    study.beat("w-1")
    assert [beat.name for beat in study.session.heartbeats.live_elsewhere()] == ["w-1"]
    unreadable.add("w-1")

    with pytest.raises(OSError, match="Input/output error"):
        study.session.heartbeats.live_elsewhere()


# --- processes of a pool -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_reported", [True, False])
def test_a_process_of_a_pool_that_was_only_silent_is_no_fault_of_its_sample(study, wait, is_reported):
    """Given a process on another machine: its supervisor removes its heartbeat if it has crashed."""
    study.beat("w-1.77")
    study.beat("w-1")
    study.take_sample("w-1.77")
    assert study.holders == {"w-1.77"}
    if is_reported:
        study.session.heartbeats.remove("w-1.77")
    else:
        wait(SILENCE_LIMIT_S + 1)
        study.beat("w-1", 2)

    assert study.holders == set()
    assert study.losses() == [is_reported]


# --- workers that live although their allocation has ended -------------------------------------------


def test_a_worker_that_outlives_its_allocation_is_asked_to_leave_and_is_no_fault_of_its_samples(study):
    """Given a node on which a worker survives the end of its allocation, and goes on to take messages."""
    study.pool._ended.add("w/1")
    for beat in (1, 2, 3):
        study.beat("w-1", beat, allocation="w/1")
        study.take_sample("w-1", epoch=beat)
        study.dead_workers.detect()  # it has just written a heartbeat
        study.take_sample("w-1", epoch=beat + 10)
        study.dead_workers.detect()  # its heartbeat was removed

    assert study.losses() == [False] * len(study.losses())
    assert len(study.losses()) >= 3
    assert study.session.worker_stop_requested("w-1")
