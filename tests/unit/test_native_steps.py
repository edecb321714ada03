"""Native steps: Maestro's own adapter runs them, and their states are stored for a later conductor."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import subprocess
import types

import dill
import maestrowf.specification  # noqa: F401 (imported before this package, as in `maestro`)
import pytest
from ensembles import a_study
from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode
from maestrowf.abstracts.interfaces import ScriptAdapter
from maestrowf.interfaces import ScriptAdapterFactory
from maestrowf.interfaces.script import CancellationRecord, SubmissionRecord
from msgspec.structs import replace
from support import wait_for

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch import ownership
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.config.settings import BatchSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError
from maestro_celery_plugin.maestro import native_adapter, native_jobs, native_steps, postponed, touchpoints
from maestro_celery_plugin.maestro.native_adapter import open_native
from maestro_celery_plugin.maestro.native_jobs import NativeJob
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study import conductor_lock
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.reasons import read_reasons
from maestro_celery_plugin.study.session import Session

pytestmark = pytest.mark.usefixtures("no_host")

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
    monkeypatch.setattr(postponed, "_OF_STUDY", {})
    system = types.SimpleNamespace(
        type="cluster",
        adapter="cluster",
        modules=(),
        unavailable=re.compile("no daemon"),
        adapter_context=contextlib.nullcontext,
        adapter_arguments=lambda batch: {"bank": batch.bank or ""},
        directories=lambda jobs=None: None,
        reports=lambda jobs: dict.fromkeys(jobs, JobReport(AllocationState.GONE)),
    )
    for module in (native_jobs, native_adapter):
        monkeypatch.setattr(module, "batch_system", lambda type: None if type == "local" else system)
    return Cluster


@pytest.fixture
def study(tmp_path):
    plan = a_study(tmp_path / "study")[0]
    Session.create(plan.session)
    yield dataclasses.replace(plan, settings=replace(plan.settings, batch=BatchSettings(type="slurm")))
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
    with open_native(BatchSettings(type="slurm", nodes=2, qos="high", shell="python3")):
        pass
    assert cluster.keywords == {"nodes": 2, "qos": "high", "bank": "", "shell": "/usr/bin/env -S python3"}

    with open_native(BatchSettings(type="slurm", nodes="all"), "/bin/sh"):
        pass
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


def test_a_step_record_that_a_user_has_named_is_cancelled_once(adapter, study, cluster):
    """Given a batch system that reports an ended job as failed, when its step is cancelled, then the state is CANCELLED."""
    job = submit(adapter, study)
    cluster.states = {Id(1): State.RUNNING}
    assert adapter.check_jobs([job])[1] == {job: State.RUNNING}
    CancelledSteps(study.cancelled_steps).add(["plain"])

    cluster.broken = True
    adapter.check_jobs([job])
    cluster.broken = False
    for _ in range(2):
        assert adapter.check_jobs([job])[1] == {job: State.RUNNING}
    assert cluster.cancelled == [Id(1)]
    cluster.states = {Id(1): State.FAILED}
    assert adapter.check_jobs([job])[1] == {job: State.CANCELLED}


def test_a_step_record_that_was_cancelled_before_is_not_submitted(adapter, study, cluster):
    CancelledSteps(study.cancelled_steps).add(["plain"])
    job = submit(adapter, study)
    assert cluster.submitted == []
    assert adapter.check_jobs([job]) == (JobStatusCode.OK, {job: State.CANCELLED})
    assert adapter.cancel_jobs([job]).cancel_status is CancelCode.OK
    assert cluster.cancelled == []
    assert conductor_lock.take_poll_request()

    CancelledSteps(study.cancelled_steps).remove(["plain"])
    submit(adapter, study)
    assert cluster.submitted == ["plain"]


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
    settings = replace(study.settings, resources=ResourceSettings(workers={"w": group}))
    session = Session(study.session)
    lock = conductor_lock.acquire(dataclasses.replace(study, settings=settings))
    assert lock._interval_s == 0.25
    beats = set()

    wait_for(lambda: beats.add(session.conductors.read_all()) or len(beats) >= 4, "heartbeats, while Maestro is blocked")


def test_a_process_has_one_conductor_lock_for_a_study(study):
    assert conductor_lock.acquire(study) is conductor_lock.acquire(study)
    conductor_lock.acquire(study).release()
    with conductor_lock.file_lock(study).acquire(timeout=0):
        pass


# --- jobs that the batch system has not named ---------------------------------------------------------


class Listing:
    """A batch system that lists the directories and the states of jobs, or does not answer."""

    type = adapter = "cluster"
    modules, unavailable = (), re.compile("no daemon")
    adapter_context = staticmethod(contextlib.nullcontext)
    places, ended, answers, problem = {}, {}, True, None

    @staticmethod
    def adapter_arguments(batch):
        return {}

    @classmethod
    def _ask(cls):
        if not cls.answers:
            raise AllocationError("'squeue' does not answer") from cls.problem

    @classmethod
    def directories(cls, jobs=None):
        cls._ask()
        return {job: place for job, place in cls.places.items() if (job not in cls.ended if jobs is None else job in jobs)}

    @classmethod
    def reports(cls, jobs):
        cls._ask()
        running = dict.fromkeys(cls.places, AllocationState.RUNNING)
        return {job: JobReport((running | cls.ended).get(job, AllocationState.GONE)) for job in jobs}


@pytest.fixture
def listing(monkeypatch, cluster):
    for module in (native_jobs, native_adapter):
        monkeypatch.setattr(module, "batch_system", lambda type: Listing)
    monkeypatch.setattr(ownership, "_LOOK_DELAYS_S", (0.0,))
    for name, value in {"places": {}, "ended": {}, "answers": True, "problem": None}.items():
        monkeypatch.setattr(Listing, name, value)
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


def test_a_job_that_was_not_confirmed_and_has_ended_has_the_state_of_its_end(adapter, study, listing):
    """Given a batch system that does not answer after the submission, when the job has ended before it answers again, then
    the step has finished, and does not run twice."""
    listing.answers = False
    job = submit(adapter, study)
    listing.answers, listing.places, listing.ended = True, {"1": str(study.root)}, {"1": AllocationState.COMPLETED}
    Cluster.states = {"1": State.FINISHED}

    assert adapter.check_jobs([job])[1] == {job: State.FINISHED}
    assert stored_job(study)["job"] == "1"


def test_the_printed_number_of_the_job_of_somebody_else_is_not_that_of_the_step(adapter, study, listing):
    listing.answers = False
    job = submit(adapter, study)
    listing.answers, listing.places, listing.ended = True, {"1": "/home/ada"}, {"1": AllocationState.COMPLETED}
    Cluster.states = {"1": State.FINISHED}

    assert adapter.check_jobs([job])[1] == {job: State.FAILED}


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


def test_a_job_whose_owner_is_unknown_now_is_not_counted_as_cancelled(adapter, study, listing):
    listing.places = {"1": str(study.root)}
    job = submit(adapter, study)
    listing.answers = False

    assert adapter.cancel_jobs([job]).cancel_status is CancelCode.ERROR
    assert Cluster.cancelled == []


def test_a_job_without_a_name_does_not_keep_others_from_being_cancelled(adapter, study, listing, monkeypatch):
    listing.places = {"1": str(study.root)}
    job = submit(adapter, study)
    monkeypatch.setattr(native_jobs.NativeJobs, "known", lambda self, job: unavailable() if job.id == "unknown" else job)

    assert adapter.cancel_jobs([NativeJob("other", "unknown"), job]).cancel_status is CancelCode.ERROR
    assert Cluster.cancelled == ["1"]


def unavailable():
    raise BatchSystemUnavailableError


# --- submissions while the batch system does not answer -----------------------------------------------


def number_from(first, study):
    """Let each submission list a new job, with numbers from `first`."""

    def submitted(count):
        Listing.places[str(first + count - 1)] = str(study.root)
        return str(first + count - 1)

    Cluster.make_id = submitted


@pytest.fixture
def earlier(adapter, study, listing):
    """A study that is resumed: an earlier conductor has submitted job 1, or its submission was interrupted."""

    def store(id):
        NativeStepState(study.native / "plain").write_job(id, study.root)
        listing.places = {"1": str(study.root)}
        Cluster.states = {"1": State.RUNNING}

    return store


@pytest.mark.parametrize("id", ["1", None], ids=["a job", "an interrupted submission"])
def test_a_job_that_nobody_can_see_now_is_not_submitted_again(adapter, study, listing, earlier, id):
    """Given a batch system that answers a minute after `resume`, then the job of the earlier conductor continues."""
    earlier(id)
    listing.answers = False
    job = submit(adapter, study)
    assert adapter.check_jobs([job])[1] == {}
    assert Cluster.submitted == []

    listing.answers = True

    assert adapter.check_jobs([job])[1] == {job: State.RUNNING}
    assert adapter.check_jobs([job])[1] == {job: State.RUNNING}
    assert Cluster.submitted == []
    assert stored_job(study) == {"job": "1", "directory": str(study.root)}


@pytest.mark.parametrize("id", ["1", None], ids=["a job", "an interrupted submission"])
def test_a_step_whose_earlier_job_has_ended_meanwhile_is_submitted_when_this_is_known(adapter, study, listing, earlier, id):
    earlier(id)
    listing.answers = False
    job = submit(adapter, study)
    adapter.check_jobs([job])

    listing.answers, listing.ended, Cluster.states = True, {"1": AllocationState.TIMED_OUT}, {"1": State.TIMEDOUT, "2": State.PENDING}
    number_from(2, study)

    assert adapter.check_jobs([job])[1] == {job: State.PENDING}
    adapter.check_jobs([job])
    assert Cluster.submitted == ["plain"]
    assert stored_job(study)["job"] == "2"


def test_a_query_that_fails_is_no_end_of_a_job(adapter, study, listing, earlier):
    """Given an adapter that reports an error of `squeue` as the end of the job, then the job continues."""
    earlier("1")
    Cluster.states = {"1": None}

    assert submit(adapter, study) == NativeJob("plain", "1")
    assert Cluster.submitted == []


def refuse(monkeypatch):
    monkeypatch.setattr(Cluster, "submit", lambda self, *args, **options: SubmissionRecord(SubmissionCode.ERROR, 1))


def test_a_step_that_is_refused_later_has_failed_and_explains_it(adapter, study, listing, earlier, monkeypatch):
    earlier("1")
    listing.answers = False
    job = submit(adapter, study)
    listing.answers, listing.ended = True, {"1": AllocationState.TIMED_OUT}
    Cluster.states = {"1": State.TIMEDOUT}
    refuse(monkeypatch)

    assert adapter.check_jobs([job])[1] == {job: State.FAILED}
    assert "It could not be submitted: the batch system refuses 'plain.sh': it gives no reason" in read_reasons(study.refusals)["plain"].text
    assert stored_job(study)["job"] == "1"


def test_a_postponed_step_that_was_cancelled_is_not_submitted(adapter, study, listing, earlier):
    earlier("1")
    listing.answers = False
    job = submit(adapter, study)
    assert adapter.cancel_jobs([job]).cancel_status is CancelCode.ERROR  # its job may run

    listing.answers = True
    assert adapter.check_jobs([job])[1] == {job: State.RUNNING}
    assert adapter.cancel_jobs([job]).cancel_status is CancelCode.OK
    listing.ended, Cluster.states = {"1": AllocationState.TIMED_OUT}, {"1": State.TIMEDOUT}

    assert adapter.check_jobs([job])[1] == {job: State.CANCELLED}
    assert Cluster.submitted == []
    assert Cluster.cancelled == ["1"]


def test_a_batch_system_that_does_not_answer_blocks_maestro_once(adapter, study, listing, earlier, monkeypatch):
    """Given several steps with earlier jobs, then one question waits for the batch system in each round."""
    questions = []
    monkeypatch.setattr(Listing, "_ask", classmethod(lambda cls: (questions.append(1), unavailable())))
    steps = [a_step(f"step{number}") for number in range(3)]
    for step in steps:
        NativeStepState(study.native / step.name).write_job("1", study.root)

    jobs = [submit(adapter, study, step) for step in steps]
    assert len(questions) == 1
    assert adapter.check_jobs(jobs)[1] == {}
    assert len(questions) == 2


# --- commands that fail although they have submitted ---------------------------------------------------


def test_a_command_that_fails_may_have_submitted_the_job(adapter, study, listing, monkeypatch):
    """Given an `sbatch` whose connection has timed out after the controller took the job, then this job is watched."""
    refuse(monkeypatch)
    listing.places = {"41": str(study.root)}
    assert submit(adapter, study).id == "41"


def test_a_step_waits_for_a_batch_system_that_accepts_no_jobs_now(adapter, study, listing, monkeypatch):
    listing.answers = False
    with monkeypatch.context() as context:
        refuse(context)
        job = submit(adapter, study)
        assert adapter.check_jobs([job])[1] == {}

    listing.answers, Cluster.states = True, {"1": State.RUNNING}
    number_from(1, study)
    assert adapter.check_jobs([job])[1] == {job: State.RUNNING}
    assert Cluster.submitted == ["plain"]


def test_the_job_before_a_refused_submission_is_not_forgotten(adapter, study, listing, earlier, monkeypatch):
    earlier("1")
    listing.ended, Cluster.states = {"1": AllocationState.TIMED_OUT}, {"1": State.TIMEDOUT}
    refuse(monkeypatch)

    assert adapter.submit(a_step(), "plain.sh", str(study.root)).submission_code is SubmissionCode.ERROR

    assert stored_job(study) == {"job": "1", "directory": str(study.root)}


def test_a_refused_submission_leaves_nothing(adapter, study, listing, monkeypatch):
    refuse(monkeypatch)
    assert adapter.submit(a_step(), "plain.sh", str(study.root)).submission_code is SubmissionCode.ERROR
    assert not NativeStepState(study.native / "plain").has_job


def test_a_machine_without_the_commands_of_the_batch_system_fails_the_step(adapter, study, listing, monkeypatch):
    listing.answers, listing.problem = False, FileNotFoundError("squeue")
    refuse(monkeypatch)
    assert adapter.submit(a_step(), "plain.sh", str(study.root)).submission_code is SubmissionCode.ERROR


def stored_job(study):
    return json.loads((study.native / "plain" / "job.json").read_text())


def test_the_job_that_release_0_1_has_stored_is_read(tmp_path):
    """Release 0.1 stores the identifier alone, without the directory of the submission."""
    (tmp_path / "job.json").write_text("8")
    state = NativeStepState(tmp_path)
    assert (state.read_job(), state.directory, state.is_interrupted) == (8, None, False)
    (tmp_path / "job.json").write_text("null")
    assert (state.read_job(), state.directory, state.is_interrupted) == (None, None, True)


# --- refusals, and jobs that the batch system does not list -------------------------------------------


def refuse_with(monkeypatch, words):
    """Let Maestro's adapter refuse a submission, and log why in another module, as its interface to Flux does."""

    def submit(self, *arguments, **options):
        try:
            raise PermissionError(1, words)
        except PermissionError as error:
            logging.getLogger("maestrowf.interfaces.script._flux.flux0_49_0").error(
                "Submission failed -- Message (%s).", error, exc_info=True
            )
        return SubmissionRecord(SubmissionCode.ERROR, -1)

    monkeypatch.setattr(Cluster, "submit", submit)


def test_a_refusal_has_the_words_of_the_batch_system(adapter, study, listing, monkeypatch):
    refuse_with(monkeypatch, "Invalid queue 'nosuch' specified")

    assert adapter.submit(a_step(), "plain.sh", str(study.root)).submission_code is SubmissionCode.ERROR

    assert read_reasons(study.refusals)["plain"].text == (
        "It could not be submitted: the batch system refuses 'plain.sh': [Errno 1] Invalid queue 'nosuch' specified"
    )
    assert not (study.native / "plain" / "job.json").exists()


def test_a_batch_system_that_is_away_at_the_submission_is_no_refusal(adapter, study, listing, monkeypatch):
    """Given a batch system that is away, then the submission is repeated at a later poll."""
    submit_it = Cluster.submit
    refuse_with(monkeypatch, "no daemon")
    job = submit(adapter, study)
    assert adapter.check_jobs([job])[1] == {}

    monkeypatch.setattr(Cluster, "submit", submit_it)
    listing.places = {"1": str(study.root)}
    Cluster.states = {"1": State.PENDING}
    listing.ended = {"1": AllocationState.GONE}  # the open jobs do not include it before its submission

    assert adapter.check_jobs([job])[1] == {job: State.PENDING}
    assert Cluster.submitted == ["plain"]


def fail_to_connect(monkeypatch, times):
    """Let the creation of Maestro's adapter fail so many times, because it cannot connect."""
    create, left = Cluster.__init__, [times]

    def init(self, **keywords):
        if left[0]:
            left[0] -= 1
            raise FileNotFoundError(2, "Unable to connect to Flux: broker socket /run/flux/local was not found")
        create(self, **keywords)

    monkeypatch.setattr(Cluster, "__init__", init)


def test_scripts_wait_for_a_batch_system_that_is_away(adapter, study, monkeypatch):
    monkeypatch.setattr(native_steps, "SCRIPT_DELAY_S", 0.0)
    fail_to_connect(monkeypatch, 3)
    assert adapter.write_script(str(study.root), a_step())[1] == str(study.root / "plain.sh")


def test_the_conductor_ends_with_one_line_if_the_batch_system_stays_away(adapter, study, monkeypatch):
    monkeypatch.setattr(native_steps, "SCRIPT_LIMIT_S", 0.0)
    fail_to_connect(monkeypatch, 9)
    with pytest.raises(SystemExit, match=r"^error: The scripts of 'plain' cannot be written. The batch system 'cluster' does"):
        adapter.write_script(str(study.root), a_step())


def test_a_job_that_is_not_listed_any_more_has_failed_after_three_polls(adapter, study, listing):
    """Given a batch system that was started anew and has lost its jobs, then the step ends, and says why."""
    listing.places = {"1": str(study.root)}
    job = submit(adapter, study)
    listing.places = {}

    assert [adapter.check_jobs([job])[1][job] for _ in range(3)] == [None, None, State.FAILED]
    assert read_reasons(study.refusals)["plain"].text.startswith("The batch system does not list its job any more")


def test_a_job_whose_end_is_unknown_now_stays_open(adapter, study, listing):
    listing.places = {"1": str(study.root)}
    job = submit(adapter, study)
    listing.answers = False
    for _ in range(4):
        assert adapter.check_jobs([job])[1] == {job: None}


def test_the_state_of_a_job_does_not_depend_on_another_that_is_not_listed(adapter, study, listing, monkeypatch):
    """Given an adapter that returns ERROR because of an unknown job, then the states of the other jobs count."""
    listing.places = {"1": str(study.root)}
    job = submit(adapter, study)
    monkeypatch.setattr(Cluster, "check_jobs", lambda self, jobs: (JobStatusCode.ERROR, {"1": State.FINISHED}))

    assert adapter.check_jobs([job, NativeJob("other", "7")])[1] == {job: State.FINISHED}


@pytest.mark.parametrize("is_open", [True, False])
def test_only_an_open_job_that_is_not_cancelled_is_an_error(adapter, study, listing, monkeypatch, is_open):
    listing.places = {"1": str(study.root)}
    job = submit(adapter, study)
    monkeypatch.setattr(Cluster, "cancel_jobs", lambda self, jobs: CancellationRecord(CancelCode.ERROR, 1))
    listing.ended = {} if is_open else {"1": AllocationState.COMPLETED}

    code = adapter.cancel_jobs([job]).cancel_status
    assert code is (CancelCode.ERROR if is_open else CancelCode.OK)


def test_an_error_of_one_file_does_not_end_the_conductor_when_a_job_has_finished(adapter, study, cluster, coordinated, monkeypatch):
    """Given a full disk when a job has finished, then it counts as finished when this can be recorded."""
    job = submit(adapter, study)
    cluster.states = {Id(1): State.FINISHED}
    record, errors = NativeStepState.record_finished, [OSError(28, "No space left on device")]

    def fail_once(state):
        if errors:
            raise errors.pop()
        record(state)

    monkeypatch.setattr(NativeStepState, "record_finished", fail_once)
    first = adapter.check_jobs([job])[1]
    second = adapter.check_jobs([job])[1]

    assert (first, second) == ({}, {job: State.FINISHED})
