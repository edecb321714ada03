"""The parts of the commands that control a study: stopped workers, task queues, the monitor, and the small `merlin`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ensembles import SETTINGS, a_study, entries, span, states_of
from filelock import FileLock
from msgspec.structs import replace

from maestro_celery_plugin.batch.allocation import Allocation, new_directory
from maestro_celery_plugin.cli.merlin import translated
from maestro_celery_plugin.cli.workers import study_of
from maestro_celery_plugin.conductor.stopped_workers import StoppedWorkers
from maestro_celery_plugin.config.settings import ResourceSettings, StepFacts, WorkerGroupSettings
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.maestro.purge import Purge
from maestro_celery_plugin.maestro.stop_workers import StopRequest, stop_workers
from maestro_celery_plugin.report import monitor
from maestro_celery_plugin.report.exit_codes import StudyCode
from maestro_celery_plugin.report.monitor import MonitoredStudy
from maestro_celery_plugin.report.task_queues import _valid
from maestro_celery_plugin.report.unserved_steps import unserved_steps
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study import stopped_workers as study_stopped_workers
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.merlin_command import add_to_path, write_merlin_command
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import (
    StoppedGroups,
    WorkerStop,
    read_stopped,
    request_start,
    request_worker_stop,
)
from maestro_celery_plugin.study.worker_identity import claim_name

TWO_GROUPS = replace(
    SETTINGS,
    resources=ResourceSettings(
        workers={"sims": WorkerGroupSettings(task_queues=("q",)), "posts": WorkerGroupSettings(task_queues=("p", "r"))}
    ),
    steps={"sim": StepFacts(queues=("q",)), "post": StepFacts(queues=("p",)), "plain": StepFacts(queues=())},
)


@pytest.fixture
def session(tmp_path):
    return Session.create(tmp_path / "session")


@pytest.fixture
def root(tmp_path):
    """The directory of a study with two worker groups."""
    plan = StudyPlan(root=tmp_path / "study", timestamp="t", settings=TWO_GROUPS)
    plan.root.mkdir()
    (plan.root / "batch.info").write_text(json.dumps(plan.to_batch()))
    Session.create(plan.session)
    return plan.root


# --- stopped workers ---------------------------------------------------------------------------------


def test_requests_to_stop_groups_add_up(session):
    request_worker_stop(session.path, ["b"], "first")
    request_worker_stop(session.path, ["a"], "second", now=True)

    stopped = read_stopped(session.path)

    assert (stopped.groups, stopped.reason) == (("a", "b"), "second")
    assert stopped.include("a") and not stopped.include("c")
    assert [stopped.end_now(group) for group in ("a", "b", "c")] == [True, False, False]
    assert request_worker_stop(session.path, None, "all").include("c")
    assert request_worker_stop(session.path, ["a"], "one").groups is None, "all are stopped already"
    request_start(session.path)
    assert read_stopped(session.path) is None


def test_a_resume_waits_for_a_request_that_is_being_written(session, monkeypatch):
    """Otherwise, the request would restore the earlier ones that the resume has removed."""
    request_worker_stop(session.path, None, "why")
    monkeypatch.setattr(study_stopped_workers, "_LOCK_LIMIT_S", 0.01)

    with FileLock(session.path / "workers_stopped.lock"), pytest.raises(TimeoutError):
        request_start(session.path)

    assert read_stopped(session.path) is not None
    request_start(session.path)
    request_start(session.path)
    assert read_stopped(session.path) is None


def test_a_request_replaces_those_that_ask_for_nothing_more(session):
    """Given many samples with exit code 105, then the file does not grow with each of them."""
    request_worker_stop(session.path, ["a"], "first", now=True)
    for number in range(3):
        request_worker_stop(session.path, None, f"sample {number}")

    requests = read_stopped(session.path).requests

    assert [(request.groups, request.reason, request.now) for request in requests] == [
        (("a",), "first", True),
        (None, "sample 2", False),
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"requests": []}', '{"requests": [{"groups": 3}]}'])
def test_a_damaged_request_stops_nothing(session, text):
    (session.path / "workers_stopped").write_text(text)

    assert read_stopped(session.path) is None


def beat(name, group="sims", allocation=""):
    return Heartbeat(
        name=name, group=group, host=host_name(), node="n", supervisor=(1, 1), process=(1, 1), slots=1, beat=1,
        state=WorkerState.BUSY, allocation=allocation,
    )  # fmt: skip


def asked(session):
    return {path.name for path in (session.path / "workers").iterdir()}


def start_by_user(session, group):
    """Claim the name of a worker in another process than the conductor."""
    return claim_name(Session(session.path), group)


def test_workers_that_a_user_starts_after_the_request_stay(session):
    """Given a request, then the present workers of its groups are asked once, and later ones of the conductor."""
    claim_name(session, "sims")
    claim_name(session, "posts")
    request_worker_stop(session.path, ["sims"], "why")
    assert start_by_user(session, "sims") == "sims-2", "before the conductor has seen the request"
    stopped = StoppedWorkers(session)
    stopped.refresh()
    assert start_by_user(session, "sims") == "sims-3"
    beats = [
        *(beat(name) for name in ("sims-1", "sims-1.99", "sims-2", "sims-3")),
        *(beat("posts-1", "posts"), beat("sims-2-1", allocation="sims/2")),
    ]

    stopped.ask(beats)

    assert asked(session) == {"sims-1.leave", "sims-2-1.leave"}
    assert stopped.includes("sims") and not stopped.includes("posts")

    request_worker_stop(session.path, ["posts"], "another group")
    stopped.refresh()
    stopped.ask(beats)

    assert asked(session) == {"sims-1.leave", "sims-2-1.leave", "posts-1.leave"}

    request_worker_stop(session.path, ["sims"], "again", now=True)
    stopped.refresh()
    stopped.ask(beats)

    stops = {"sims-1.stop", "sims-2.stop", "sims-3.stop", "sims-2-1.stop"}
    assert asked(session) == {"posts-1.leave"} | stops

    request_start(session.path)
    stopped.refresh()
    assert not list((session.path / "workers").glob("*.leave")), "workers that have not left continue"
    assert not stopped.includes("sims")


def test_the_running_samples_of_a_group_end_only_if_a_request_about_this_group_says_so(session):
    claim_name(session, "sims")
    claim_name(session, "posts")
    request_worker_stop(session.path, ["sims"], "after the running samples")
    request_worker_stop(session.path, ["posts"], "now", now=True)
    stopped = StoppedWorkers(session)
    stopped.refresh()

    stopped.ask([beat("sims-1"), beat("posts-1", "posts")])

    assert asked(session) == {"sims-1.leave", "posts-1.stop"}


def test_a_resume_and_another_request_between_two_looks_of_the_conductor(session):
    """Given workers of one group that leave, when the next request is about another group, then they continue."""
    claim_name(session, "sims")
    claim_name(session, "posts")
    request_worker_stop(session.path, ["sims"], "first")
    stopped, beats = StoppedWorkers(session), [beat("sims-1"), beat("posts-1", "posts")]
    stopped.refresh()
    stopped.ask(beats)
    request_start(session.path)
    request_worker_stop(session.path, ["posts"], "second")

    stopped.refresh()
    stopped.ask(beats)

    assert asked(session) == {"posts-1.leave"}


def test_a_worker_that_the_conductor_has_started_before_it_sees_the_request_is_asked(session):
    request_worker_stop(session.path, ["sims"], "why")
    claim_name(session, "sims")
    stopped = StoppedWorkers(session)
    stopped.refresh()

    stopped.ask([beat("sims-1")])

    assert asked(session) == {"sims-1.leave"}


def test_steps_wait_when_no_other_group_serves_them():
    stopped = StoppedGroups(requests=(WorkerStop(groups=("sims",)),))

    assert unserved_steps(TWO_GROUPS, stopped, set()) == {"sim"}
    assert unserved_steps(TWO_GROUPS, stopped, {"sims"}) == set()
    assert unserved_steps(TWO_GROUPS, StoppedGroups(requests=(WorkerStop(groups=None),)), {"posts"}) == {"sim"}
    assert unserved_steps(TWO_GROUPS, None, set()) == set()


SHARED = {"batch": {"type": "slurm"}, "allocation": "both"}


@pytest.mark.parametrize(
    ("workers", "groups", "sentence"),
    [
        ({}, (), "The samples that wait will not run until a resume."),
        ({}, ("posts",), "The samples of post that wait will not run until a resume."),
        ({"more": {"task_queues": ("q",)}}, ("sims",), "Other worker groups go on with the samples that wait."),
        (
            {"sims": {"task_queues": ("q",), **SHARED}, "posts": {"task_queues": ("p",), **SHARED}},
            ("sims",),
            "The samples of sim that wait will not run until a resume. The allocation 'both' stays open for posts; the "
            "stopped workers start again in the next one.",
        ),
    ],
    ids=["all groups", "one group", "a shared task queue", "a shared allocation"],
)
def test_a_user_reads_which_samples_wait(tmp_path, workers, groups, sentence):
    every = {**TWO_GROUPS.resources.workers, **{name: WorkerGroupSettings(**keys) for name, keys in workers.items()}}
    settings = replace(TWO_GROUPS, resources=replace(TWO_GROUPS.resources, workers=every))
    plan = StudyPlan(root=tmp_path / "study", timestamp="t", settings=settings)
    plan.root.mkdir()
    (plan.root / "batch.info").write_text(json.dumps(plan.to_batch()))
    Session.create(plan.session)

    request = StopRequest(plan.root, groups, now=False)

    assert request.question.endswith(f" {sentence}")
    with FileLock(plan.conductor_lock):
        answer = stop_workers(StopRequest(plan.root, groups, now=False))
    assert answer[1] == f"{sentence} `maestro-celery resume {plan.root}` starts the workers again."


def test_a_group_that_does_not_exist_is_not_stopped(root):
    with pytest.raises(StudyError, match=r"--group: the study has no worker group 'sim'; did you mean 'sims'\?"):
        StopRequest(root, ("sim",), now=False)


def test_a_study_without_a_conductor_has_nothing_to_purge(root):
    with pytest.raises(StudyError, match="has no conductor, so that no samples wait; `maestro-celery resume"):
        Purge(root, ())


# --- task queues -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "valid"),
    [
        ([span(Kind.SENT, 0, 10)], 1),
        ([span(Kind.SENT, 0, 10), span(Kind.TAKEN, 0, 10), span(Kind.PASSED, 2, 6), span(Kind.PASSED, 6, 10)], 2),
        ([span(Kind.SENT, 0, 10), span(Kind.SENT, 0, 10, epoch=2)], 1),
        ([span(Kind.SENT, 0, 10), span(Kind.SENT, 0, 5, epoch=2)], 2),
        ([span(Kind.SENT, 0, 10), span(Kind.CANCELLED, 0, 10, epoch=2)], 0),
        ([span(Kind.SENT, 0, 1), (Kind.STARTED, 0, 1), (Kind.ENDED, 0, 1)], 0),
    ],
    ids=["sent", "passed on", "sent again", "half sent again", "cancelled", "ended by another worker"],
)
def test_only_messages_with_an_open_sample_wait(tmp_path, rows, valid):
    _, manifest = a_study(tmp_path / "study")
    states, waiting, applied = states_of(manifest), WaitingMessages(), entries(*rows)
    states.apply(applied)
    waiting.apply(applied)

    assert _valid(states, waiting.of_record(1)) == valid


# --- the study of a specification --------------------------------------------------------------------


def test_a_specification_stands_for_its_own_studies_only(tmp_path):
    """Given a newer study of another specification whose name begins in the same way, then it is not meant."""
    specification = tmp_path / "s.yaml"
    specification.write_text(
        f"""
        description: {{name: sim a, description: d}}
        env: {{variables: {{OUTPUT_PATH: {tmp_path}}}}}
        study: [{{name: s, description: d, run: {{cmd: echo}}}}]
        merlin: {{resources: {{workers: {{w: {{steps: [s]}}}}}}}}
        """
    )
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(["sim_a_20260101-000000", "sim_a_b_20260102-000000"]):
            lock = tmp_path / name / "merlin_info" / "conductor.lock"
            lock.parent.mkdir(parents=True)
            stack.enter_context(FileLock(lock))
            (tmp_path / name / "batch.info").touch()
            for file in (lock, tmp_path / name / "batch.info"):
                os.utime(file, (number, number))

        assert study_of(specification) == tmp_path / "sim_a_20260101-000000"
        assert study_of(specification, may_have_ended=True) == tmp_path / "sim_a_20260101-000000"


# --- the monitor -------------------------------------------------------------------------------------


def test_a_study_that_no_conductor_begins_is_not_awaited_for_ever(root, monkeypatch):
    study = MonitoredStudy(root, 600)
    study.look()
    assert study.code is None
    monkeypatch.setattr(monitor, "START_LIMIT_S", -1.0)

    study.look()

    assert study.code is StudyCode.UNCONDUCTED
    assert "PENDING" in study.line


@pytest.mark.parametrize(
    ("steps", "job", "code"),
    [
        (["sim"], None, StudyCode.STALLED),
        (["sim", "plain"], None, None),
        ([], None, None),
        (["sim"], "7", None),
    ],
    ids=["no worker", "a native step runs", "nothing is submitted", "a job waits in the queue"],
)
def test_a_study_that_waits_for_workers_has_stalled(root, steps, job, code):
    header = "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params"
    states = {step: "RUNNING" if step in steps else "INITIALIZED" for step in TWO_GROUPS.steps}
    rows = [f"{step},1,{step},{state},--:--:--,--:--:--,--,--,--,0," for step, state in states.items()]
    (root / "status.csv").write_text("\n".join([header, *rows]))
    plan = StudyPlan.read(root)
    if job:
        number, directory = new_directory(plan.allocations, "sims")
        Allocation("sims", number, directory, job=job).store()
    study = MonitoredStudy(root, 0.0)

    with FileLock(plan.conductor_lock):
        study.look()
        assert study.code is None, "it may have begun just now"
        study.look()

    assert study.code is code


# --- the small merlin --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("run s.yaml", "maestro run -y s.yaml"),
        (
            "run s.yaml --vars A=1 B=x --samplesfile t.npy --dry --no-errors --local --pgen p.py --pargs a b",
            "maestro run -y --dry --no-errors -fg s.yaml --vars A=1 --vars B=x --samplesfile t.npy --pgen p.py --pargs a --pargs b",
        ),
        ("run s.yaml --pgen p.py --pargs a --pargs b", "maestro run -y s.yaml --pgen p.py --pargs a --pargs b"),
        ("-lvl DEBUG restart out/s", "maestro-celery resume --failed out/s"),
        ("restart --local out/s", "maestro-celery resume --failed -fg out/s"),
        ("purge s.yaml", "maestro-celery purge s.yaml"),
        ("purge -f s.yaml --steps all", "maestro-celery purge -f s.yaml"),
        ("purge s.yaml -f --steps a b", "maestro-celery purge -f --step a --step b s.yaml"),
        ("stop-workers", "maestro-celery stop-workers -f STUDY"),
        ("stop-workers --queues r", "maestro-celery stop-workers -f --group posts STUDY"),
        ("query-workers --workers sim.*", "maestro-celery workers --list --group sims STUDY"),
        ("status", "maestro-celery status STUDY"),
        ("detailed-status", "maestro-celery status STUDY"),
        ("monitor --sleep 5", "maestro-celery monitor --sleep 5 STUDY"),
        ("monitor --steps a b --sleep 5 --task_server celery -n --disable-gc", "maestro-celery monitor --sleep 5 STUDY"),
        ("cancel", "maestro cancel -y STUDY"),
        ("queue-info", "maestro-celery queues STUDY"),
        ("info", "maestro-celery doctor"),
        ("run-workers s.yaml --steps all --echo", ""),
    ],
)
def test_the_words_of_merlin_are_translated(root, words, command):
    assert translated(words.split(), root) == command.replace("STUDY", str(root)).split()


def test_the_small_merlin_has_a_version(root, capsys):
    with pytest.raises(SystemExit) as end:
        translated(["-v"], root)

    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("maestro-celery-plugin ")


def test_a_worker_name_that_is_no_regular_expression_is_an_error(root):
    with pytest.raises(SystemExit, match=r"merlin: error: --workers: '\*sims' is no regular expression \(nothing to repeat"):
        translated(["stop-workers", "--workers", "*sims"], root)


@pytest.mark.parametrize("words", ["server start", "run", "stop-workers --workers nobody"])
def test_what_the_small_merlin_does_not_know_is_an_error(root, words, capsys):
    with pytest.raises(SystemExit) as end:
        translated(words.split(), root)

    assert end.value.code
    assert "pip install merlin" in capsys.readouterr().err or "worker groups are sims, posts" in str(end.value.code)


def test_a_real_merlin_comes_first(session, tmp_path, monkeypatch):
    """The command is written only if the launch finds no Merlin, and is the last one on the PATH of samples."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "merlin").write_text("#!/bin/sh\n")
    (tools / "merlin").chmod(0o755)
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{tools}")
    write_merlin_command(session.path, tmp_path)
    assert not (session.path / "bin" / "merlin").exists()

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    write_merlin_command(session.path, tmp_path)
    add_to_path(session.path)
    add_to_path(session.path)

    assert os.environ["PATH"] == f"/usr/bin:/bin:{session.path}/bin"
    (tmp_path / "random.py").write_text("raise SystemExit('the directory of a sample')")
    answer = subprocess.run(["merlin", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "merlin.common.util_sampling" in answer.stdout
    assert Path(session.path / "bin" / "merlin").stat().st_mode & 0o777 == 0o700


def test_a_study_that_a_sample_launches_has_its_own_merlin(session, tmp_path, monkeypatch):
    """Given a sample that launches a study, then the samples of this study do not control that of the first sample."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    write_merlin_command(session.path, tmp_path / "outer")
    add_to_path(session.path)
    inner = Session.create(tmp_path / "inner" / "session")

    write_merlin_command(inner.path, tmp_path / "inner")
    add_to_path(inner.path)

    assert shutil.which("merlin") == str(inner.path / "bin" / "merlin")
    assert str(tmp_path / "inner") in Path(inner.path / "bin" / "merlin").read_text()
