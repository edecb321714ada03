"""The parts of the commands that control a study: stopped workers, task queues, the monitor, and the small `merlin`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from ensembles import SETTINGS, a_study, entries, span, states_of
from msgspec.structs import replace

from maestro_celery_plugin.cli.merlin import translated
from maestro_celery_plugin.conductor.stopped_workers import StoppedWorkers
from maestro_celery_plugin.config.settings import ResourceSettings, StepFacts, WorkerGroupSettings
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.maestro.purge import Purge
from maestro_celery_plugin.maestro.stop_workers import StopRequest
from maestro_celery_plugin.report import monitor
from maestro_celery_plugin.report.exit_codes import StudyCode
from maestro_celery_plugin.report.monitor import MonitoredStudy
from maestro_celery_plugin.report.task_queues import _valid
from maestro_celery_plugin.report.unserved_steps import unserved_steps
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.merlin_command import add_to_path, write_merlin_command
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import (
    StoppedGroups,
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

    assert (stopped.groups, stopped.reason, stopped.now) == (("a", "b"), "second", True)
    assert stopped.include("a") and not stopped.include("c")
    assert request_worker_stop(session.path, None, "all").include("c")
    assert request_worker_stop(session.path, ["a"], "one").groups is None, "all are stopped already"
    request_start(session.path)
    assert read_stopped(session.path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"groups": 3}', '{"groups": null, "now": "x"}'])
def test_a_damaged_request_stops_nothing(session, text):
    (session.path / "workers_stopped").write_text(text)

    assert read_stopped(session.path) is None


def beat(name, group="sims", allocation=""):
    return Heartbeat(
        name=name, group=group, host=host_name(), node="n", supervisor=(1, 1), process=(1, 1), slots=1, beat=1,
        state=WorkerState.BUSY, allocation=allocation,
    )  # fmt: skip


def test_workers_that_a_user_starts_after_the_request_stay(session):
    """Given a request, then the present workers of its groups are asked once, and later ones of the conductor."""
    claim_name(session, "sims")
    claim_name(session, "posts")
    request_worker_stop(session.path, ["sims"], "why")
    stopped = StoppedWorkers(session)
    stopped.refresh()
    claim_name(session, "sims")
    beats = [beat("sims-1"), beat("sims-1.99"), beat("sims-2"), beat("posts-1", "posts"), beat("sims-2-1", allocation="sims/2")]

    stopped.ask(beats)

    asked = {path.name for path in (session.path / "workers").iterdir()}
    assert asked == {"sims-1.leave", "sims-2-1.leave"}
    assert stopped.includes("sims") and not stopped.includes("posts")

    request_worker_stop(session.path, ["sims"], "again", now=True)
    stopped.refresh()
    stopped.ask(beats)

    asked = {path.name for path in (session.path / "workers").iterdir()}
    assert asked == {"sims-1.leave", "sims-2-1.leave", "sims-1.stop", "sims-2.stop", "sims-2-1.stop"}

    request_start(session.path)
    stopped.refresh()
    assert not list((session.path / "workers").glob("*.leave")), "workers that have not left continue"
    assert not stopped.includes("sims")


def test_steps_wait_when_no_other_group_serves_them():
    stopped = StoppedGroups(groups=("sims",))

    assert unserved_steps(TWO_GROUPS, stopped, set()) == {"sim"}
    assert unserved_steps(TWO_GROUPS, stopped, {"sims"}) == set()
    assert unserved_steps(TWO_GROUPS, StoppedGroups(groups=None), {"posts"}) == {"sim"}
    assert unserved_steps(TWO_GROUPS, None, set()) == set()


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


# --- the monitor -------------------------------------------------------------------------------------


def test_a_study_that_no_conductor_begins_is_not_awaited_for_ever(root, monkeypatch):
    study = MonitoredStudy(root, 600)
    study.look()
    assert study.code is None
    monkeypatch.setattr(monitor, "START_LIMIT_S", -1.0)

    study.look()

    assert study.code is StudyCode.UNCONDUCTED
    assert "PENDING" in study.line


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
