"""The parts of the commands that control a study: stopped workers, task queues, the monitor, and the small `merlin`."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from ensembles import SETTINGS, a_study, entries, span, states_of
from filelock import FileLock
from msgspec.structs import replace

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation, new_directory
from maestro_celery_plugin.cli import main
from maestro_celery_plugin.cli.merlin import translated
from maestro_celery_plugin.cli.workers import start_workers
from maestro_celery_plugin.conductor.stopped_workers import StoppedWorkers
from maestro_celery_plugin.config.settings import ResourceSettings, StepFacts, WorkerGroupSettings
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.maestro.purge import Purge
from maestro_celery_plugin.maestro.stop_workers import StopRequest, stop_workers
from maestro_celery_plugin.report import monitor
from maestro_celery_plugin.report.exit_codes import StudyCode
from maestro_celery_plugin.report.model import StepStatus, StudyState, WorkerStatus
from maestro_celery_plugin.report.monitor import MonitoredStudy
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.task_queues import TaskQueue, _valid, print_queues
from maestro_celery_plugin.report.unserved_steps import unserved_steps
from maestro_celery_plugin.report.worker_list import ListedWorker, print_workers
from maestro_celery_plugin.report.worker_status import workers
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study import stopped_workers as study_stopped_workers
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.sample_commands import add_to_path, write_commands
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
    plan = StudyPlan(
        root=tmp_path / "study", timestamp="t", settings=TWO_GROUPS, specification=tmp_path / "study.yaml"
    )
    plan.root.mkdir()
    (plan.root / "batch.info").write_text(json.dumps(plan.to_batch()))
    Session.create(plan.session)
    return plan.root


@pytest.fixture
def rows(root):
    """Let the conductor begin and end, and Maestro store these states of the step records."""

    def rows(*states):
        Session(StudyPlan.read(root).session).conductors.write(1)
        lines = [f"{n},{n},,{state},0:00:00,0:00:00,--,--,--,0,0,0," for n, state in enumerate(states)]
        heading = "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,a,b,Params"
        (root / "status.csv").write_text("\n".join([heading, *lines]) + "\n")

    return rows


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
    Session.create(plan.session).conductors.write(1)

    request = StopRequest(plan.root, groups, now=False)

    assert request.question.endswith(f" {sentence}")
    with FileLock(plan.conductor_lock):
        answer = stop_workers(StopRequest(plan.root, groups, now=False))
    assert answer[1] == f"{sentence} `maestro-celery resume {plan.root}` starts the workers again."


def test_a_group_that_does_not_exist_is_not_stopped(root):
    with pytest.raises(StudyError, match=r"--group: the study has no worker group 'sim'; did you mean 'sims'\?"):
        StopRequest(root, ("sim",), now=False)


@pytest.mark.parametrize("request_of", [lambda root: StopRequest(root, (), now=False).has_conductor, lambda root: not Purge(root, ()).waiting])
def test_the_conductor_of_a_new_study_is_awaited(root, request_of, monkeypatch, still_clock):
    """Given a command right after `maestro run`, then it waits for the conductor, which is about to begin."""
    plan = StudyPlan.read(root)
    lock = FileLock(plan.conductor_lock)

    def begin(seconds):
        lock.acquire()
        Session(plan.session).conductors.write(1)

    monkeypatch.setattr(clock, "sleep", begin)
    try:
        assert request_of(root)
    finally:
        lock.release(force=True)


def test_the_words_of_a_request_fit_its_numbers(root, rows, monkeypatch):
    rows("RUNNING", "RUNNING")
    request = StopRequest(root, ("sims",), now=False)
    assert request.is_empty
    request.workers = [ListedWorker(name="sims-1", group="sims", node="n", state=WorkerState.BUSY, slots=1, running=0, task_queues=("q",), since=None, allocation="")]  # fmt: skip
    assert request.question.startswith(f"1 worker of group sims of '{root}' ends now. The samples of sim")
    request.now = True
    request.workers = [dataclasses.replace(request.workers[0], running=1)]
    assert f"of '{root}' ends now, with 1 running sample, which runs again later." in request.question
    assert not request.is_empty

    monkeypatch.setenv("MAESTRO_CELERY_WORKER", "x")
    request.has_conductor = True
    stop_workers(request)
    stopped = request_worker_stop(request.plan.session, ["posts"], "B.")
    assert [one.reason for one in stopped.requests] == ["A sample has called `maestro-celery stop-workers`.", "B."]
    assert stopped.sentence == "The workers of groups 'posts', 'sims' are stopped. B."


def test_an_ended_study_asks_nothing_before_a_stop(root, rows):
    rows("FINISHED", "FINISHED")

    answer = CliRunner().invoke(main, ["stop-workers", str(root)])

    assert answer.output == "This study has no conductor and no live workers; nothing is stopped.\n"


def test_a_study_without_a_conductor_has_nothing_to_purge(root, rows):
    rows("RUNNING")
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


# --- what is no study ---


@pytest.mark.parametrize(("command", "text"), [("queues", "it has no task queues."), ("purge", "it has no samples.")])
def test_a_dry_run_has_nothing_to_control(root, command, text):
    shutil.rmtree(StudyPlan.read(root).session)

    answer = CliRunner().invoke(main, [command, str(root)])

    assert (answer.exit_code, answer.output) == (1, f"maestro-celery: error: The study '{root}' was a dry run; {text}\n")


def test_a_table_is_no_specification(tmp_path):
    (tmp_path / "v.csv").write_text("1,2\n3,4\n")

    answer = CliRunner().invoke(main, ["queues", str(tmp_path / "v.csv")])

    assert answer.output == (
        "maestro-celery: error: v.csv: the file has no blocks such as 'description' and 'study'; give the YAML file of a study.\n"
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "f"), "'f' cannot be read or written (Permission denied); its owner can, or use another path."),
        (OSError(28, "No space left on device", "f"), "'f' cannot be used (No space left on device); correct this, or use another path."),
        (OSError("odd"), "odd"),
    ],
)
def test_an_error_of_a_file_is_a_sentence(root, monkeypatch, error, text):
    def fail(*words, **options):
        raise error

    monkeypatch.setattr("maestro_celery_plugin.cli.example.write_example", fail)

    answer = CliRunner().invoke(main, ["example", "x"])

    assert (answer.exit_code, answer.output) == (1, f"maestro-celery: error: {text}\n")


# --- workers of a user ---


@pytest.mark.parametrize("words", [[], ["--echo"]])
def test_an_ended_study_has_no_work_for_workers(root, rows, words):
    rows("FINISHED", "FINISHED")

    answer = CliRunner().invoke(main, ["workers", *words, str(root)])

    assert answer.exit_code == 1
    assert f"The study '{root}' has ended (FINISHED); there is no work. `maestro-celery resume {root}` runs" in answer.output


def test_a_worker_that_ends_early_has_a_reason(root, rows, capfd):
    """Given a study without a conductor, then the command says what continues it, and why its workers have ended."""
    rows("FINISHED", "INITIALIZED")
    answer = CliRunner().invoke(main, ["workers", "--echo", str(root)])
    assert answer.exit_code == 0
    assert "No conductor runs the study" in answer.output

    assert start_workers({"sims": "exit 69", "posts": "exit 0"}, root) == 69

    said = capfd.readouterr().err
    assert said == f"Worker group 'sims' has ended with exit code 69: it has not reached the broker of the study ('{root}/merlin_info/workers').\n"


def test_the_files_of_another_user_are_named_as_such(root, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("maestro_celery_plugin.study.session.read_text", refuse)
    with pytest.raises(StudyError, match=r"'.*sims.json' cannot be read: only the user who has launched the study may\."):
        Session(StudyPlan.read(root).session).read_group("sims")
    monkeypatch.setattr("maestro_celery_plugin.report.reader.read_rows", refuse)
    with pytest.raises(StudyError, match=r"cannot be read: '.*' is only for the user who has launched it; `maestro status`"):
        StatusReader(root).read()


# --- the monitor -------------------------------------------------------------------------------------


def test_a_study_that_no_conductor_begins_is_not_awaited_for_ever(root, monkeypatch):
    study = MonitoredStudy(root, 600)
    study.look()
    assert study.code is None
    monkeypatch.setattr(monitor, "START_LIMIT_S", -1.0)

    study.look()

    assert study.code is StudyCode.UNCONDUCTED
    assert "PENDING" in study.line
    assert study.advice == f"No conductor runs the study; `maestro-celery resume {root}` continues it."


def test_a_line_of_the_monitor_fits_into_a_terminal(root, rows):
    """Given long names and failures, then the middle of the name is left out; zeros are left out, and one is singular."""
    rows("FINISHED", "FAILED")
    study = MonitoredStudy(root, 600)
    study.look()
    assert study.line == "study  FAILED: 2/2 steps"

    one = dict(step="a", params={}, state="RUNNING", restarts=0, find_rate=lambda: None)
    steps = [StepStatus(name="a", samples=Counts(total=98, finished=78, failed=2, running=4, pending=14), **one)]
    path = Path("/x/a_study_with_a_long_name_20260101-000000")
    beats = [WorkerStatus(name="w-1", group="w", node="n", state=WorkerState.BUSY)]
    study.status = dataclasses.replace(study.status, path=path, steps=steps, workers=beats, state=StudyState.RUNNING)
    study.code = StudyCode.STALLED
    assert study.line == "a_stud…1-000000  STALLED: 0/1 step, 78/98 samples, 2 failed, 4 running, 1 worker"
    assert len(study.line) == 80
    assert study.advice.endswith("no allocation is open. `maestro-celery explain` says why.")
    stop = request_worker_stop(StudyPlan.read(root).session, None, "A user.")
    study.status = dataclasses.replace(study.status, workers_stopped=stop)
    assert "The workers of all groups are stopped. A user. `maestro-celery resume /x/" in study.advice


def test_tables_fit_into_a_terminal(monkeypatch, capsys):
    """Given names that are too long, then they are folded; a column without text is left out."""
    monkeypatch.setenv("COLUMNS", "80")
    worker = ListedWorker(name="simulations-1", group="simulations", node="quartz1234", state=WorkerState.BUSY, slots=36, running=36, task_queues=("sim_queue_of_a_long_name",), since=1.0, allocation="")  # fmt: skip
    print_workers([worker, dataclasses.replace(worker, name="n" * 40)])
    print_queues([TaskQueue(name="q" * 40, broker_name="b", steps=tuple("abcdefgh"), groups=(), workers=("w" * 30,) * 9, messages=10**6, waiting=10**7, running=3, broker_messages=None)])  # fmt: skip

    lines = capsys.readouterr().out.splitlines()

    assert max(map(len, lines)) <= 80
    assert "ALLOCATION" not in lines[0]
    assert all(line == line.rstrip() for line in lines)
    text = "".join("".join(lines).split())
    assert text.count("n" * 5) >= 4
    assert "and3more" in text


def test_a_worker_with_running_samples_is_busy_whatever_its_heartbeat_says():
    """Given a heartbeat that is older than the ledger, then a worker that runs samples is not starting."""
    starting = dataclasses.replace(beat("sims-1"), state=WorkerState.STARTING)
    leaving = dataclasses.replace(beat("sims-2"), state=WorkerState.STOPPING)

    states = [one.state for one in workers([starting, leaving], {"sims-1": True, "sims-2": True}, ["sims-1.5", "sims-2"])]

    assert states == [WorkerState.BUSY, WorkerState.STOPPING]


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
        ("run-workers s.yaml --steps all", ""),
        ("run-workers --worker-args=--concurrency=2 --disable-logs s.yaml", ""),
        ("run-workers --echo SPEC", "maestro-celery workers --echo STUDY"),
        ("run-workers SPEC --steps post --echo", "maestro-celery workers --echo --group posts STUDY"),
        ("run s.yaml --pgen g.py --pargs A:1 --pargs B:2", "maestro run -y s.yaml --pgen g.py --pargs A:1 --pargs B:2"),
        ("-lvl DEBUG status --no-prompts --task_server celery --cb-help SPEC", "maestro-celery status STUDY"),
        ("status SPEC -o elsewhere", "maestro-celery status STUDY"),
        ("detailed-status SPEC --task-status RUNNING", "maestro-celery status STUDY"),
        ("detailed-status SPEC --task-status FAILED --max-tasks 3", "maestro-celery status --failed --limit 3 STUDY"),
        ("detailed-status SPEC --return-code hard_fail --layout table", "maestro-celery status --failed STUDY"),
        ("detailed-status --disable-pager --disable-theme --no-prompts --workers w --task-queues q", "maestro-celery status STUDY"),
        ("monitor SPEC --steps sim --no-restart --disable-gc", "maestro-celery monitor --sleep 60 STUDY"),
        ("queue-info --spec SPEC --steps sim post", "maestro-celery queues --queue q --queue p STUDY"),
        ("queue-info --specific-queues r --vars A=1", "maestro-celery queues --queue r STUDY"),
        ("query-workers --format json -l", "maestro-celery workers --list --json STUDY"),
        ("stop-workers --spec SPEC --task_server celery", "maestro-celery stop-workers -f STUDY"),
        ("purge SPEC -f", "maestro-celery purge -f STUDY"),
        ("purge TEMPLATE -f", "maestro-celery purge -f STUDY"),
        ("purge EXECUTED -f", "maestro-celery purge -f STUDY"),
        ("cancel SPEC", "maestro cancel -y STUDY"),
        ("cancel SPEC --no-purge", "maestro-celery stop-workers -f STUDY"),
        ("cancel SPEC --no-stop-workers --no-mark-cancelled", "maestro-celery purge -f STUDY"),
        ("cancel SPEC --no-stop-workers --no-purge", ""),
        ("database info", ""),
        ("db get study --all", ""),
    ],
)
def test_the_words_of_merlin_are_translated(root, words, command):
    """The specification of the study whose sample calls `merlin`, or a version of it, stands for this study.

    It needs no OUTPUT_PATH, which would be resolved from the directory of the sample.
    """
    template, executed, _ = StudyPlan.read(root).specification_files.values()
    files = {"SPEC": root.parent / "study.yaml", "TEMPLATE": template, "EXECUTED": executed}
    words = [str(files.get(word, word)) for word in words.split()]
    assert translated(words, root) == command.replace("STUDY", str(root)).split()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("status --no-prompts", "merlin status: --no-prompts has no effect: the command asks nothing."),
        ("monitor --steps a", "merlin monitor: --steps has no effect: the command waits for the whole study."),
        ("detailed-status --task-status RUNNING", "merlin detailed-status: --task-status has an effect for failed samples only."),
        ("run-workers --worker-args=x s.yaml", "merlin run-workers: --worker-args has no effect: the specification has the arguments of workers."),
    ],
)  # fmt: skip
def test_an_option_of_merlin_without_effect_has_a_line(root, words, line, capsys):
    translated(words.split(), root)

    assert capsys.readouterr().err.splitlines() == [line]


def test_the_dumps_of_merlin_have_its_keys(root, tmp_path):
    """Given `--dump`, then each look at the task queues adds to the file, and the status is that of the study."""
    for name in ("q.csv", "q.json"):
        for _ in range(2):
            assert translated(["queue-info", "--steps", "post", "--dump", str(tmp_path / name)], root) == []
    heading, *rows = (tmp_path / "q.csv").read_text().splitlines()
    assert (heading, len(rows)) == ("time,p:tasks,p:consumers", 2)
    assert next(iter(json.loads((tmp_path / "q.json").read_text()).values())) == {"p": {"tasks": 0, "consumers": 0}}

    assert translated(["status", "--dump", str(tmp_path / "s.json")], root) == []
    assert json.loads((tmp_path / "s.json").read_text())["path"] == str(root)
    with pytest.raises(StudyError, match=r"--dump: found 's.txt'; the name of the file ends in '.csv' or '.json'"):
        translated(["status", "--dump", "s.txt"], root)


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
    write_commands(session.path)
    assert not (session.path / "bin" / "merlin").exists()

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    write_commands(session.path)
    add_to_path(session.path)
    add_to_path(session.path)

    assert os.environ["PATH"] == f"/usr/bin:/bin:{session.path}/bin"
    (tmp_path / "random.py").write_text("raise SystemExit('the directory of a sample')")
    answer = subprocess.run(["merlin", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "merlin.common.util_sampling" in answer.stdout
    assert Path(session.path / "bin" / "merlin").stat().st_mode & 0o777 == 0o700


def test_a_session_that_begins_in_a_sample_has_commands_of_its_own(session, tmp_path, monkeypatch):
    """Given a sample that launches a study outside of its session, then the samples of that one have its commands."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    write_commands(session.path)
    add_to_path(session.path)
    inner = Session.create(tmp_path / "inner" / "session")

    write_commands(inner.path)
    add_to_path(inner.path)

    assert shutil.which("merlin") == str(inner.path / "bin" / "merlin")
