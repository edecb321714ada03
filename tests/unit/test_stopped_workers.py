"""The workers of a study are stopped, by exit code 105: which ones leave, and what starts again when."""

from __future__ import annotations

import pytest
from ensembles import a_manifest

from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.conductor import scaling, stopped_workers
from maestro_celery_plugin.conductor.coordinator import Coordinator
from maestro_celery_plugin.conductor.scaling import Scaling
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import AllocationState, RecordState, WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import read_stopped, request_start, request_worker_stop
from maestro_celery_plugin.study.worker_identity import claim_name

REASON = "Sample 3 of 'sim_X.1' has requested that all workers stop (exit code 105)."


class Study:
    """A study with a group `w` in allocations, and a step record with 10 samples."""

    def __init__(self, root, monkeypatch) -> None:
        workers = {"w": WorkerGroupSettings(task_queues=("merlin",), batch={"type": "slurm"})}
        settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=workers))
        self.plan = StudyPlan(root=root, timestamp="t", settings=settings)
        self.session = Session.create(self.plan.session)
        self.records = StepRecords(self.plan, workers)
        self.scaling = Scaling(self.plan, self.session, self.records, workers)
        self.pool = self.scaling._pool
        (self.source,) = self.pool.allocation_sources
        self.record = self.records.register(a_manifest(root))
        self.record.begin(cancelled=False)
        self.worker = LedgerWriter(self.plan.ledger / f"w-1-1{SUFFIX}")
        self.opened, self.cancelled = [], []
        self.job = AllocationState.RUNNING
        monkeypatch.setattr(self.source, "ensure", lambda: self.opened.append(1))
        monkeypatch.setattr(self.source._jobs, "report", lambda job: JobReport(self.job))
        monkeypatch.setattr(self.source._jobs, "cancel", lambda job, directory: self.cancelled.append(job))

    @property
    def reason(self) -> str:
        """Why the workers are stopped; empty if they are not."""
        stopped = read_stopped(self.session.path)
        return stopped.reason if stopped else ""

    def open_allocation(self, state=AllocationState.RUNNING, slots=2) -> None:
        directory = self.plan.allocations / "w" / "1"
        directory.mkdir(parents=True)
        self.source.current = Allocation("w", 1, directory, job="7", state=state)
        self.source.current.record_slots(slots)

    def beat(self, name="w-1-1", allocation="w/1", state=WorkerState.BUSY) -> None:
        """Write the heartbeat of a worker on another machine."""
        self.session.heartbeats.write(
            Heartbeat(
                name=name, group="w", host="elsewhere", node="n", supervisor=(1, 1), process=(1, 1), slots=2, beat=1,
                state=state, allocation=allocation,
            )
        )  # fmt: skip
        self.pool.refresh()

    def run(self, *codes) -> None:
        """Let a worker run the first samples."""
        self.worker.append(Kind.TAKEN, 1, 1, 0, len(codes))
        for sample, code in enumerate(codes):
            self.worker.append(Kind.STARTED, 1, 1, sample)
            self.worker.append(Kind.ENDED, 1, 1, sample, 1000, code=code)
        self.worker.append(Kind.RELEASED, 1, 1, 0, len(codes))
        self.records.follow()

    def leave(self, name="w-1-1") -> None:
        self.session.heartbeats.remove(name)
        self.pool.alive.clear()


@pytest.fixture
def study(tmp_path, monkeypatch, still_clock) -> Study:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return Study(tmp_path, monkeypatch)


def test_the_workers_of_an_allocation_leave_and_the_study_waits(study):
    """Given exit code 105, then workers leave, the allocation ends by itself, and only a user opens another one."""
    study.open_allocation()
    study.beat()
    study.run(0, 0, 0, 105)
    assert study.records.stop_request == REASON

    study.scaling.stop_workers()

    assert study.session.worker_leave_requested("w-1-1")
    assert not study.session.worker_stop_requested("w-1-1")
    assert study.reason == REASON
    assert study.source.current.released
    assert not study.cancelled

    study.beat(state=WorkerState.STOPPING)
    study.scaling.stop_workers()
    assert study.records.state(study.record) is RecordState.PENDING

    study.leave()
    study.job = AllocationState.COMPLETED
    for _ in range(2):
        study.source._queried_at = float("-inf")
        study.scaling.maintain()
    assert study.source.current.state is AllocationState.COMPLETED
    assert study.records.state(study.record) is RecordState.PENDING, "the restart of a time-out would open an allocation"
    study.scaling.start_workers(study.record)
    assert not study.opened

    request_start(study.session.path)
    study.scaling.maintain()
    assert study.scaling.continues, "the samples without a message are not sent again"
    study.scaling.continues = False
    study.scaling.maintain()
    assert not study.scaling.continues
    assert study.opened
    assert study.records.state(study.record) is RecordState.RUNNING


def test_workers_that_have_not_left_continue_after_the_pause(study):
    study.open_allocation()
    study.beat()
    study.run(105)
    study.scaling.stop_workers()

    request_start(study.session.path)
    study.scaling.stop_workers()

    assert not study.session.worker_leave_requested("w-1-1")
    assert not study.record.waits


def test_an_allocation_whose_workers_continue_after_a_resume_counts_again(study, monkeypatch):
    """Given workers that had not left, when a user cancels their job later, then the step is cancelled.

    The study must not open another allocation, as it does after the end of one that it has released.
    """
    monkeypatch.setattr(stopped_workers, "CONTINUE_DELAY_S", 0.0)
    study.open_allocation()
    study.beat()
    study.run(0)
    request_worker_stop(study.session.path, None, "A user ...")
    study.scaling.stop_workers()
    assert study.source.current.released
    request_start(study.session.path)

    study.beat(state=WorkerState.STOPPING)
    study.scaling.stop_workers()
    assert study.source.current.released, "the worker has not seen the resume"

    study.beat()
    study.scaling.stop_workers()
    assert not study.source.current.released
    study.leave()
    study.job = AllocationState.CANCELLED
    study.source._queried_at = float("-inf")
    study.scaling.maintain()
    assert study.records.state(study.record) is RecordState.CANCELLED
    assert not study.opened


def test_a_heartbeat_from_before_a_resume_does_not_keep_an_allocation(study):
    study.open_allocation()
    study.beat()
    request_worker_stop(study.session.path, None, "A user ...")
    study.scaling.stop_workers()
    request_start(study.session.path)

    study.scaling.stop_workers()

    assert study.source.current.released


@pytest.mark.parametrize(
    ("state", "writer", "is_cancelled"),
    [
        (AllocationState.PENDING, "v-1", True),
        (AllocationState.PENDING, "w-1-1", False),
        (AllocationState.RUNNING, "v-1", False),
    ],
    ids=["has not begun", "has begun since its last report", "no heartbeat is visible yet"],
)
def test_an_allocation_that_has_not_begun_is_cancelled(study, state, writer, is_cancelled):
    """Given an allocation without visible workers, then it is cancelled unless it has begun."""
    study.open_allocation(state, slots=0)
    study.worker = LedgerWriter(study.plan.ledger / f"{writer}{SUFFIX}")
    study.run(105)

    study.scaling.stop_workers()

    assert study.cancelled == ["7"] * is_cancelled
    assert study.source.current.released


def test_a_step_record_waits_only_if_all_its_groups_are_stopped(study):
    """Given the request of a user about groups, then those step records wait that no other group serves."""
    request_worker_stop(study.session.path, ["v"], "A user ...")
    study.scaling.maintain()
    assert (study.record.waits, study.opened) == (False, [1])

    request_worker_stop(study.session.path, ["w"], "A user ...")
    study.scaling.maintain()
    assert (study.record.waits, study.opened) == (True, [1])


def test_a_worker_that_a_user_starts_stays_until_the_next_request(study):
    """Given a request, then workers that the conductor had started leave when they appear, and those of a user stay."""
    study.run(105)
    study.scaling.stop_workers()
    assert study.record.waits
    study.beat("w-1-1", "w/1")
    assert [claim_name(Session(study.session.path), "w", 2) for _ in range(2)] == ["w-2", "w-3"]
    study.beat("w-2", "")
    study.beat("w-3", "w/")
    study.scaling.stop_workers()
    assert study.scaling.continues, "the samples without a message are not sent again"

    asked = [name for name in ("w-1-1", "w-2", "w-3") if study.session.worker_leave_requested(name)]
    assert asked == ["w-1-1"]
    assert not study.record.waits

    study.records.stop_request = "Sample 4 of 'sim' ..."
    study.scaling.stop_workers()
    assert all(study.session.worker_leave_requested(name) for name in ("w-2", "w-3"))
    assert study.reason == "Sample 4 of 'sim' ..."
    assert study.record.waits


def test_a_study_without_further_work_does_not_wait(study, caplog):
    """Given exit code 105 of the last sample, then the study waits only if another step record needs workers."""
    study.beat()
    study.run(*[0] * 9, 105)

    study.scaling.stop_workers()
    assert study.session.worker_leave_requested("w-1-1")
    assert "The study waits" not in caplog.text

    later = study.records.register(a_manifest(study.plan.root, name="later", workspace=str(study.plan.root / "later")))
    later.begin(cancelled=False)
    study.scaling.stop_workers()
    study.scaling.stop_workers()
    assert caplog.text.count("The study waits") == 1
    assert study.reason.startswith("Sample 9 of ")
    assert later.waits


def test_a_full_disk_only_delays_the_request(study, monkeypatch):
    study.beat()
    study.run(105)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scaling, "request_worker_stop", fail)
        with pytest.raises(OSError, match="space"):
            study.scaling.stop_workers()
        study.scaling.start_workers(study.record)
        assert not study.opened
    study.scaling.stop_workers()
    assert study.reason
    assert study.session.worker_leave_requested("w-1-1")


def test_a_new_conductor_starts_workers_again(study, no_substitute):
    study.run(105)
    study.scaling.stop_workers()
    study.session.request_worker_leave("w-9")

    coordinator = Coordinator(study.plan)
    coordinator.close()

    assert not study.reason
    assert not study.session.worker_leave_requested("w-9")
