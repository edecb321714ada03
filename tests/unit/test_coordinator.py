"""The coordinator: how often it checks the broker and the workers, and when Maestro polls."""

from __future__ import annotations

import dataclasses
import errno
import math
import os

import numpy as np
import pytest
from ensembles import a_study
from msgspec.structs import replace

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.added_samples import Taking
from maestro_celery_plugin.conductor.coordinator import (
    MAINTENANCE_INTERVAL_S,
    MAINTENANCE_LIMIT_S,
    Coordinator,
    pause_s,
)
from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.worker_pool import WorkerPool
from maestro_celery_plugin.config.settings import ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX, Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.maestro import touchpoints
from maestro_celery_plugin.states import Outcome, RecordState, WorkerState
from maestro_celery_plugin.study import conductor_lock
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import read_stopped, request_start, request_worker_stop
from maestro_celery_plugin.worker.study_context import StudyContext

pytestmark = pytest.mark.usefixtures("no_substitute")

# The heartbeat of a live worker on another machine.
BEAT_ELSEWHERE = Heartbeat(
    name="w-1", group="w", host="elsewhere", node="n", supervisor=(1, 1), process=(1, 1), slots=1, beat=1,
    state=WorkerState.BUSY, machine="another",
)  # fmt: skip


@pytest.mark.parametrize(
    ("duration_s", "expected_s"),
    [(0.0, MAINTENANCE_INTERVAL_S), (0.1, 0.9), (0.6, MAINTENANCE_LIMIT_S), (5.0, MAINTENANCE_LIMIT_S)],
)
def test_the_pause_after_a_check_has_a_limit(duration_s, expected_s):
    """Given a check that took long, because it imported Celery or the process was stopped, the next one is soon."""
    assert pause_s(duration_s) == pytest.approx(expected_s)


def test_a_refresh_comes_when_the_next_delay_passes(tmp_path, monkeypatch):
    """Given a large study, whose refresh takes long, then the next one does not come a second after the end of a delay."""
    plan, manifest = a_study(tmp_path / "study")
    Session.create(plan.session)
    coordinator = Coordinator(plan)
    try:
        coordinator._maintain_at = math.inf  # without a broker
        record = coordinator._records.register(manifest)
        record.begin(cancelled=False)
        begin = clock.monotonic()
        record.delayed[3] = begin + 0.4
        times = iter([0.0, *[1.0] * 100])  # the refresh takes a second
        with monkeypatch.context() as patch:
            patch.setattr(clock, "monotonic", lambda: begin + min(0.2, next(times)))
            coordinator._refresh()
        assert 0.1 <= coordinator._refresh_interval_s <= 0.4
    finally:
        coordinator.close()


def test_a_sample_that_requests_another_run_is_sent_when_its_slot_has_released_its_range(tmp_path, monkeypatch):
    """Given no delay, and a slot that runs more samples of the range, then the request is not forgotten."""
    plan, manifest = a_study(tmp_path / "study", retry_delay_s=0)
    Session.create(plan.session)
    coordinator, sent = Coordinator(plan), []
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    try:
        coordinator._maintain_at = math.inf  # without a broker
        monkeypatch.setattr(
            coordinator._publisher, "send", lambda record, mask: sent.append(np.flatnonzero(mask).tolist())
        )
        coordinator._records.register(manifest).begin(cancelled=False)
        worker.append(Kind.TAKEN, 1, 1, 0, 2)
        worker.append(Kind.STARTED, 1, 1, 0)
        worker.append(Kind.ENDED, 1, 1, 0, 1000, code=104)
        worker.append(Kind.STARTED, 1, 1, 1)
        worker.flush()
        coordinator._refresh()
        assert not sent

        worker.append(Kind.ENDED, 1, 1, 1, 1000)
        worker.append(Kind.RELEASED, 1, 1, 0, 2)
        worker.flush()
        coordinator._refresh()

        assert sent == [[0]]
    finally:
        worker.close()
        coordinator.close()


def test_samples_are_not_sent_while_the_workers_are_stopped(tmp_path, monkeypatch):
    """Given workers that leave, then no message reaches them about a step that Maestro submits now."""
    plan, manifest = a_study(tmp_path / "study")
    resources = ResourceSettings(workers={"w": WorkerGroupSettings(task_queues=(manifest.task_queue,))})
    plan = dataclasses.replace(plan, settings=replace(plan.settings, resources=resources))
    Session.create(plan.session)
    coordinator, sent = Coordinator(plan), []
    try:
        coordinator._maintain_at = math.inf  # without a broker
        monkeypatch.setattr(coordinator._publisher, "send", lambda record, mask: sent.append(mask.sum()))
        coordinator._records.stop_request = "why"
        coordinator._refresh()

        job = coordinator.submit(manifest)

        assert not sent
        assert coordinator.state(job) is RecordState.PENDING
        request_start(plan.session)
        coordinator._scaling.stop_workers()
        assert coordinator._scaling.continues, "the samples without a message are not sent"
    finally:
        coordinator.close()


def test_a_request_to_stop_workers_before_the_first_step_of_the_workers_holds(tmp_path, monkeypatch):
    """Given a conductor that runs a native step first, when its workers are stopped, then none starts after this step."""
    plan, manifest = a_study(tmp_path / "study")
    resources = ResourceSettings(workers={"w": WorkerGroupSettings(task_queues=(manifest.task_queue,))})
    plan = dataclasses.replace(plan, settings=replace(plan.settings, resources=resources))
    Session.create(plan.session)
    request_worker_stop(plan.session, None, "a request to an earlier conductor")
    lock = conductor_lock.acquire(plan)  # as the native step does
    assert read_stopped(plan.session) is None
    request_worker_stop(plan.session, ["w"], "a user")
    ensured, sent = [], []
    monkeypatch.setattr(WorkerPool, "ensure", lambda self, group: ensured.append(group))
    monkeypatch.setattr(Publisher, "send", lambda self, record, mask: sent.append(mask.sum()))
    monkeypatch.setattr(Publisher, "maintain", lambda self: None)  # without a broker

    coordinator = Coordinator(plan)
    try:
        job = coordinator.submit(manifest)

        assert read_stopped(plan.session).reason == "a user"
        assert not ensured
        assert not sent
        assert coordinator.state(job) is RecordState.PENDING
    finally:
        coordinator.close()
        lock.release()
    assert read_stopped(plan.session) is None


class SleepError(Exception):
    """The coordinator has waited."""


@pytest.mark.parametrize("has_work", [False, True], ids=["no work", "work"])
def test_a_poll_is_delayed_only_while_there_is_work(tmp_path, monkeypatch, has_work):
    """Given a study whose last poll took long, when there is news, then Maestro polls at once if nothing else can happen."""
    plan, manifest = a_study(tmp_path / "study")
    Session.create(plan.session)
    coordinator = Coordinator(plan)
    try:
        coordinator._maintain_at = math.inf  # without a broker
        coordinator._poll_end -= 100
        plan.update_request.touch()
        if has_work:
            coordinator._records.register(manifest).begin(cancelled=False)
        with monkeypatch.context() as patch:
            patch.setattr(clock, "sleep", lambda seconds: (_ for _ in ()).throw(SleepError))
            if has_work:
                with pytest.raises(SleepError):
                    coordinator.wait(60)
            else:
                coordinator.wait(60)
    finally:
        coordinator.close()


def test_an_error_of_the_file_system_while_it_waits_does_not_end_the_conductor(tmp_path, monkeypatch):
    """Given a file server that does not answer once, when the conductor looks for requests, then it looks again later."""
    plan, _ = a_study(tmp_path / "study")
    Session.create(plan.session)
    coordinator = Coordinator(plan)
    try:
        coordinator._maintain_at = math.inf  # without a broker
        plan.update_request.touch()
        stat, errors = os.stat, [errno.ESTALE, errno.EIO]

        def failing_stat(path, *args, **options):
            if str(path) == str(plan.cancel_request) and errors:
                raise OSError(errors.pop(), "the file server does not answer")
            return stat(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", failing_stat)
            coordinator.wait(60)

        assert not errors
    finally:
        coordinator.close()


def test_a_sample_that_still_runs_on_another_machine_is_not_lost_when_the_conductor_ends(tmp_path, monkeypatch):
    """Given a worker of a user that has not seen yet that it must end, then the end of its sample counts."""
    plan, manifest = a_study(tmp_path / "study")
    group = WorkerGroupSettings(task_queues=(manifest.task_queue,), machines=("elsewhere",))
    plan = dataclasses.replace(plan, settings=replace(plan.settings, resources=ResourceSettings(workers={"w": group})))
    session = Session.create(plan.session)
    monkeypatch.setattr(Publisher, "send", lambda self, record, mask: None)
    coordinator = Coordinator(plan)
    coordinator._maintain_at = math.inf  # without a broker
    coordinator.submit(manifest)
    session.heartbeats.write(BEAT_ELSEWHERE)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.TAKEN, 1, 1, 0, 10)
    worker.append(Kind.STARTED, 1, 1, 0)

    coordinator.close()
    worker.append(Kind.ENDED, 1, 1, 0, 1000)
    worker.close()

    states = SampleStates(manifest.samples, 0)
    states.apply(read_ledger(plan.ledger))
    assert states.outcome[0] == Outcome.FINISHED


def a_conductor_after_a_cancellation(plan):
    """Return a coordinator that begins when an earlier one has sent samples under epoch 1, and a user has cancelled the study."""
    earlier = LedgerWriter(plan.ledger / f"{COORDINATOR}{SUFFIX}", plan.number)
    earlier.append(Kind.SENT, 1, 1, 0, 10)
    earlier.close()
    plan.cancel_request.touch()
    return Coordinator(plan)


def test_a_study_that_is_cancelled_at_its_submission_leaves_no_valid_message_of_an_earlier_conductor(tmp_path):
    """Given messages that no worker has taken, and a user who cancels before Maestro submits the step record again, then no
    worker of the session runs their samples."""
    plan, manifest = a_study(tmp_path / "study")
    Session.create(plan.session)
    coordinator = a_conductor_after_a_cancellation(plan)
    try:
        coordinator._maintain_at = math.inf  # without a broker

        job = coordinator.submit(replace(manifest, number=0))

        assert coordinator.state(job) is RecordState.CANCELLED
        assert StudyContext(plan.root, plan.id, "w-2").fences.is_invalid(1, 1, 1)
    finally:
        coordinator.close()


def test_a_step_record_that_is_cancelled_at_its_submission_ends_after_the_samples_of_live_workers(tmp_path):
    """Given workers of an earlier conductor that run on, and a user who cancels before Maestro submits the step record again,
    then no sample starts any more, and the step record ends when the samples have ended."""
    plan, manifest = a_study(tmp_path / "study")
    group = WorkerGroupSettings(task_queues=(manifest.task_queue,), machines=("elsewhere",))
    plan = dataclasses.replace(plan, settings=replace(plan.settings, resources=ResourceSettings(workers={"w": group})))
    session = Session.create(plan.session)
    session.heartbeats.write(BEAT_ELSEWHERE)
    worker = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number)
    worker.append(Kind.TAKEN, 1, 1, 0, 2)
    worker.append(Kind.STARTED, 1, 1, 0)
    coordinator = a_conductor_after_a_cancellation(plan)
    try:
        coordinator._maintain_at = math.inf  # without a broker

        job = coordinator.submit(replace(manifest, number=0))

        assert coordinator.state(job) is not RecordState.CANCELLED
        assert StudyContext(plan.root, plan.id, "w-2").fences.is_invalid(1, 1, 1)

        worker.append(Kind.STOPPED, 1, 1, 0)
        worker.append(Kind.RELEASED, 1, 1, 0, 2)
        coordinator._records.follow(fresh=True)
        assert coordinator.state(job) is RecordState.CANCELLED
    finally:
        worker.close()
        coordinator.close()


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """A coordinator without a broker, and a manifest of its study."""
    plan, manifest = a_study(tmp_path / "study")
    Session.create(plan.session)
    monkeypatch.setattr(Publisher, "maintain", lambda self: None)
    coordinator = Coordinator(plan)
    coordinator._maintain_at = math.inf
    yield coordinator, manifest
    coordinator.close()


class NotedLock:
    """A lock that counts how often it was acquired."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self):
        self.count += 1

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    "question",
    [
        lambda coordinator, job: coordinator.run_times(job),
        lambda coordinator, job: coordinator.failed_samples,
        lambda coordinator, job: coordinator.ended_samples,
        lambda coordinator, job: coordinator.failed_records(),
        lambda coordinator, job: coordinator.further_allocations(),
    ],
)
def test_no_question_is_answered_while_another_thread_applies_entries(quiet, monkeypatch, question):
    """Given the thread that watches while Maestro is away, then Maestro's thread reads no states that are half changed."""
    coordinator, manifest = quiet
    job = coordinator.submit(manifest)
    lock = NotedLock()
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "_access", lock)
        question(coordinator, job)

    assert lock.count == 1


def test_the_time_of_a_native_step_does_not_delay_the_polls_after_it(quiet, monkeypatch):
    """Given Maestro's poll after a native step that took two hours, then the next one does not come as late as it may."""
    coordinator, _ = quiet
    monkeypatch.setattr(touchpoints, "coordinators_here", lambda: [coordinator])
    monkeypatch.setattr(conductor_lock, "take_poll_request", lambda: True)
    coordinator._poll_end -= 7200

    touchpoints._wait(60)

    assert clock.monotonic() - coordinator._poll_end < 3600


def test_an_error_in_the_look_for_work_does_not_end_the_conductor(quiet, monkeypatch):
    """Given a full disk when a step record has failed, which cannot be recorded, then the conductor waits."""
    coordinator, _ = quiet

    def fail():
        raise LedgerError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(coordinator._records, "with_work", fail)
        assert coordinator._has_work()


def test_added_samples_that_one_step_record_cannot_take_now_no_step_record_takes(quiet, monkeypatch):
    """Given a full disk while two step records take the samples that were added, then both take them at the next poll."""
    coordinator, manifest = quiet
    names = ("a", "b")
    made = {name: replace(manifest, name=name, workspace=str(coordinator.plan.root / name)) for name in names}
    for one in made.values():
        coordinator.submit(one)
    taking = Taking(again=(), grown={n: replace(one, samples=12) for n, one in made.items()}, running=names)
    write, errors = Manifest.write, [OSError(28, "No space left on device")]

    def fail_once(one, path):
        if errors and one.name == "b":
            raise errors.pop()
        write(one, path)

    monkeypatch.setattr(Manifest, "write", fail_once)
    with pytest.raises(OSError, match="No space"):
        coordinator.take(taking)
    records = [record for record in coordinator._records if record.manifest.name in names]
    assert [record.manifest.samples for record in records] == [manifest.samples] * 2
    coordinator.take(taking)

    assert [record.manifest.samples for record in records] == [12, 12]
    assert [len(record.samples) for record in records] == [12, 12]
