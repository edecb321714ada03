"""Native steps: Maestro's own adapter runs them, and their states are stored for a later conductor."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
import types

import dill
import maestrowf.specification  # noqa: F401 (imported before this package, as in `maestro`)
import pytest
from ensembles import a_study
from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode
from maestrowf.abstracts.interfaces import ScriptAdapter
from maestrowf.interfaces import ScriptAdapterFactory
from maestrowf.interfaces.script import CancellationRecord, SubmissionRecord

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch import ownership
from maestro_celery_plugin.config.settings import BatchSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.maestro import native_steps, touchpoints
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.maestro.native_steps import NativeJob, adapter_of
from maestro_celery_plugin.study import conductor_lock
from maestro_celery_plugin.study.session import Session

WORKERS_JOB = "sim#1"


@dataclasses.dataclass(frozen=True)
class Id:
    """A job identifier that is neither text nor number."""

    number: int


class Cluster(ScriptAdapter):
    """An adapter of another package; its class attributes simulate the batch system."""

    key = "cluster"
    extension = ".sh"
    submitted, cancelled = [], []
    states, code, broken = {}, JobStatusCode.OK, False
    make_id = Id

    def __init__(self, **keywords):
        super().__init__(**keywords)
        Cluster.keywords = keywords

    def _write_script(self, ws_path, step):
        path = os.path.join(ws_path, f"{step.name}.sh")
        with open(path, "w") as file:
            file.write(f"#!{self._exec}\n{step.run['cmd']}\n")
        return bool(step.run.get("nodes")), path, None

    def submit(self, step, path, cwd, job_map=None, env=None):
        self.submitted.append(step.name)
        return SubmissionRecord(SubmissionCode.OK, 0, Cluster.make_id(len(self.submitted)))

    def check_jobs(self, joblist):
        if self.broken:
            raise RuntimeError("no such daemon")
        assert not any(isinstance(job, NativeJob) for job in joblist)
        return self.code, {job: self.states.get(job) for job in joblist}

    def cancel_jobs(self, joblist):
        if self.broken:
            raise RuntimeError("no such daemon")
        self.cancelled.extend(joblist)
        return CancellationRecord(CancelCode.OK, 0)


@pytest.fixture
def cluster(monkeypatch):
    for name, value in {
        "submitted": [],
        "cancelled": [],
        "states": {},
        "code": JobStatusCode.OK,
        "broken": False,
    }.items():
        monkeypatch.setattr(Cluster, name, value)
    monkeypatch.setattr(Cluster, "make_id", Id)
    monkeypatch.setitem(ScriptAdapterFactory.factories, "cluster", Cluster)
    system = types.SimpleNamespace(
        adapter="cluster", adapter_arguments=lambda batch: {"bank": batch.bank or ""}, directories=lambda jobs=None: None
    )
    monkeypatch.setattr(native_steps, "batch_system", lambda type: None if type == "local" else system)
    return Cluster


@pytest.fixture
def study(tmp_path):
    plan = a_study(tmp_path / "study")[0]
    Session.create(plan.session)
    yield dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, batch=BatchSettings(type="slurm")))
    for lock in list(conductor_lock._LOCKS.values()):
        lock.release()


@pytest.fixture
def adapter(study, cluster):
    batch = study.to_batch()
    return ScriptAdapterFactory.get_adapter(batch.pop("type"))(**batch)


@pytest.fixture
def coordinated(monkeypatch):
    """Report the step record of `WORKERS_JOB`, which workers run, as running, without a coordinator."""
    monkeypatch.setattr(
        "maestro_celery_plugin.maestro.study_adapter.StudyAdapter._states",
        lambda self, jobs: dict.fromkeys(jobs, State.RUNNING),
    )


def a_step(name="plain", **run):
    return types.SimpleNamespace(name=name, real_name=name, run={"cmd": "echo", "restart": "", "nodes": 1, **run})


def submit(adapter, study, step=None):
    return adapter.submit(step or a_step(), "plain.sh", str(study.root)).job_identifier


def test_maestros_adapter_writes_the_script(adapter, study):
    step = a_step(cmd="cat $(MERLIN_GLOB_PATH)x > $(MERLIN_INFO)/y $(LAUNCHER)", shell="/usr/bin/perl -w")

    scheduled, script, restart = adapter.write_script(str(study.root), step)

    assert (scheduled, script, restart) == (True, str(study.root / "plain.sh"), None)
    assert (study.root / "plain.sh").read_text() == f"#!/usr/bin/perl -w\ncat x > {study.info}/y $(LAUNCHER)\n"
    assert step.run["cmd"].startswith("cat $(MERLIN_GLOB_PATH)")  # Maestro's own step is not changed


def test_maestros_adapter_gets_the_keys_of_the_user(cluster):
    adapter_of(BatchSettings(type="slurm", nodes=2, qos="high", shell="python3"))
    assert cluster.keywords == {"nodes": 2, "qos": "high", "bank": "", "shell": "/usr/bin/env -S python3"}

    adapter_of(BatchSettings(type="slurm", nodes="all"), "/bin/sh")
    assert cluster.keywords == {"bank": "", "shell": "/bin/sh"}


def test_jobs_are_distinguished_and_their_identifiers_reach_the_adapter_unchanged(adapter, study, cluster, coordinated):
    job = submit(adapter, study)
    cluster.states = {Id(1): State.RUNNING}

    assert job == NativeJob("plain", Id(1))
    assert adapter.check_jobs([WORKERS_JOB, job]) == (
        JobStatusCode.OK,
        {WORKERS_JOB: State.RUNNING, job: State.RUNNING},
    )
    assert adapter.cancel_jobs([job]).lookup_status(CancelCode.OK) == {job}
    assert cluster.cancelled == [Id(1)]
    assert dill.loads(dill.dumps(job)) == job
    assert str(NativeJob("plain", 7)) == "7"


@pytest.mark.parametrize("failure", [{"code": JobStatusCode.ERROR}, {"code": JobStatusCode.NOJOBS}, {"broken": True}])
def test_a_failure_of_the_batch_system_does_not_hide_the_states_of_the_workers(
    adapter, study, cluster, coordinated, monkeypatch, caplog, failure
):
    job = submit(adapter, study)
    for name, value in failure.items():
        monkeypatch.setattr(cluster, name, value)

    assert adapter.check_jobs([WORKERS_JOB, job]) == (JobStatusCode.OK, {WORKERS_JOB: State.RUNNING})
    assert adapter.check_jobs([job]) == (JobStatusCode.NOJOBS, {})  # ERROR would end the conductor
    assert "The batch system" in caplog.text


def test_missing_states_of_the_workers_do_not_hide_the_states_of_batch_jobs(adapter, study, cluster, monkeypatch):
    monkeypatch.setattr("maestro_celery_plugin.maestro.study_adapter.StudyAdapter._states", lambda self, jobs: {})
    job = submit(adapter, study)

    assert adapter.check_jobs([WORKERS_JOB, job]) == (
        JobStatusCode.OK,
        {job: None},
    )  # None: the batch system no longer lists the job


def test_a_cancellation_that_fails_is_reported(adapter, study, cluster):
    job = submit(adapter, study)
    cluster.broken = True

    record = adapter.cancel_jobs([job])

    assert record.cancel_status is CancelCode.ERROR
    assert record.lookup_status(CancelCode.ERROR) == {job}


def test_a_finished_job_is_not_submitted_again(adapter, study, cluster):
    job = submit(adapter, study)
    cluster.states = {Id(1): State.FINISHED}
    adapter.check_jobs([job])
    cluster.states = {}

    again = submit(adapter, study)

    assert cluster.submitted == ["plain"]
    assert adapter.check_jobs([again]) == (JobStatusCode.OK, {again: State.FINISHED})
    assert str(again) == "--"
    assert adapter.cancel_jobs([again]).cancel_status is CancelCode.OK
    assert not cluster.cancelled
    assert conductor_lock.take_poll_request()


@pytest.mark.parametrize(
    ("state", "submissions"),
    [(State.RUNNING, 1), (State.PENDING, 1), (State.FINISHED, 1), (State.TIMEDOUT, 2), (State.CANCELLED, 2),
     (State.FAILED, 2), (State.UNKNOWN, 2), (State.HWFAILURE, 2), (None, 2)],
)  # fmt: skip
def test_an_open_or_finished_job_of_an_earlier_conductor_continues(
    adapter, study, cluster, monkeypatch, state, submissions
):
    monkeypatch.setattr(cluster, "make_id", int)
    submit(adapter, study)
    cluster.states = {1: state}

    job = submit(adapter, study)

    assert len(cluster.submitted) == submissions
    assert job == NativeJob("plain", submissions)


def test_a_job_whose_identifier_cannot_be_stored_is_submitted_again(adapter, study, cluster):
    submit(adapter, study)
    cluster.states = {Id(1): State.RUNNING}
    assert submit(adapter, study) == NativeJob("plain", Id(2))


# --- in the conductor --------------------------------------------------------------------------------


def local_script(adapter, study, cmd):
    scheduled, script, _ = adapter.write_script(str(study.root), a_step(name="a/b c", cmd=cmd, nodes=""))
    assert not scheduled
    return script


@pytest.fixture
def in_conductor(adapter, study):
    (study.root / "a").mkdir()
    return lambda cmd: subprocess.run([local_script(adapter, study, cmd)], capture_output=True, text=True, check=False)


def test_a_script_that_has_finished_is_not_run_again(in_conductor, adapter, study):
    first, second = in_conductor("echo out; exit 3"), in_conductor("echo out")

    assert (first.returncode, first.stdout) == (3, "out\n")
    assert (second.returncode, second.stdout) == (0, "out\n")
    assert adapter.write_script(str(study.root), a_step(name="a/b c", nodes=""))[0]  # Maestro submits it instead


def test_a_missing_shell_fails_the_step_and_does_not_end_the_conductor(adapter, study):
    _, script, _ = adapter.write_script(str(study.root), a_step(nodes="", shell="/no/such/shell"))
    assert subprocess.run([script], check=False, stderr=subprocess.DEVNULL).returncode == 127


def test_maestro_polls_immediately_after_a_script_in_the_conductor(in_conductor, monkeypatch):
    slept = []
    monkeypatch.setattr(clock, "sleep", slept.append)
    in_conductor("true")

    touchpoints._wait(60)
    assert slept == []
    touchpoints._wait(60)
    assert slept == [60]


# --- the lock of the conductor ------------------------------------------------------------------------


def test_the_conductor_writes_heartbeats_while_maestro_runs_a_native_step(study):
    group = WorkerGroupSettings(idle_limit=1)
    settings = dataclasses.replace(study.settings, resources=ResourceSettings(workers={"w": group}))
    session = Session(study.session)
    conductor_lock.acquire(dataclasses.replace(study, settings=settings))
    beats = set()
    end = time.monotonic() + 1.1  # Maestro is blocked for this time by a native step

    while time.monotonic() < end:
        beats.add(session.heartbeats.read_conductor())
        time.sleep(0.05)

    assert len(beats) >= 4


def test_a_process_has_one_conductor_lock_for_a_study(study):
    assert conductor_lock.acquire(study) is conductor_lock.acquire(study)
    conductor_lock.acquire(study).release()
    with conductor_lock.file_lock(study).acquire(timeout=0):
        pass


# --- jobs that the batch system has not named ---------------------------------------------------------


class Listing:
    """A batch system that lists the directories of jobs, or does not answer."""

    adapter = "cluster"
    places, answers = {}, True

    @staticmethod
    def adapter_arguments(batch):
        return {}

    @classmethod
    def directories(cls, jobs=None):
        if not cls.answers:
            raise AllocationError("'squeue' does not answer")
        return {job: place for job, place in cls.places.items() if jobs is None or job in jobs}


@pytest.fixture
def listing(monkeypatch, cluster):
    monkeypatch.setattr(native_steps, "batch_system", lambda type: Listing)
    monkeypatch.setattr(ownership, "_LOOK_DELAYS_S", (0.0,))
    monkeypatch.setattr(Listing, "places", {})
    monkeypatch.setattr(Listing, "answers", True)
    monkeypatch.setattr(Cluster, "make_id", str)
    return Listing


def test_the_number_of_a_banner_is_replaced_by_that_of_the_job(adapter, study, listing):
    listing.places = {"41": str(study.root)}

    job = submit(adapter, study)

    assert job.id == "41"
    assert stored_job(study) == {"job": "41", "directory": str(study.root)}


def test_a_job_that_was_not_confirmed_is_found_at_a_later_poll(adapter, study, listing):
    """Given a batch system that does not answer after the submission, then no wrong number is stored."""
    listing.answers = False
    job = submit(adapter, study)
    assert stored_job(study)["job"] is None
    assert adapter.check_jobs([job])[1] == {}

    listing.answers, listing.places = True, {"41": str(study.root)}
    Cluster.states = {"41": State.RUNNING}

    assert adapter.check_jobs([job])[1] == {job: State.RUNNING}
    assert stored_job(study)["job"] == "41"
    assert adapter.cancel_jobs([job]).cancel_status is CancelCode.OK
    assert Cluster.cancelled == ["41"]


def test_a_job_that_does_not_exist_has_failed(adapter, study, listing):
    listing.answers = False
    job = submit(adapter, study)
    listing.answers = True

    assert adapter.check_jobs([job])[1] == {job: State.FAILED}


def test_a_job_of_another_study_is_not_cancelled(adapter, study, listing, caplog):
    listing.places = {"1": str(study.root)}
    job = submit(adapter, study)
    listing.places = {"1": "/home/ada"}

    assert adapter.cancel_jobs([job]).cancel_status is CancelCode.OK

    assert Cluster.cancelled == []
    assert "is not a job of this study" in caplog.text


def test_an_adapter_that_finds_no_number_has_submitted_a_job_nevertheless(adapter, study, listing, monkeypatch):
    def fail(self, *arguments, **options):
        raise AttributeError("'NoneType' object has no attribute 'group'")

    monkeypatch.setattr(Cluster, "submit", fail)
    assert adapter.submit(a_step(), "plain.sh", str(study.root)).submission_code is SubmissionCode.ERROR

    listing.places = {"41": str(study.root)}
    assert submit(adapter, study).id == "41"


def stored_job(study):
    return json.loads((study.native / "plain" / "job.json").read_text())


def test_the_job_that_release_0_1_has_stored_is_read(tmp_path):
    """Release 0.1 stores the identifier alone, without the directory of the submission."""
    (tmp_path / "job.json").write_text("8")
    state = NativeStepState(tmp_path)
    assert (state.read_job(), state.directory, state.is_interrupted) == (8, None, False)
    (tmp_path / "job.json").write_text("null")
    assert (state.read_job(), state.directory, state.is_interrupted) == (None, None, True)
