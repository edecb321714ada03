"""`maestro-celery wait`: an exit code for each way in which a study can end, or cannot go on."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from ensembles import SETTINGS
from filelock import FileLock

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.report.exit_codes import StudyCode, WaitCode, wait_code_of
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.report.monitor import MonitoredStudy, growing_pause_s
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

HEADING = (
    "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params"
)


@pytest.fixture
def study(tmp_path):
    """Write a study whose conductor has begun, with these states of its step records."""

    def study(*states, name="study", session=True):
        plan = StudyPlan(root=tmp_path / name, timestamp="t", settings=SETTINGS, specification=tmp_path / "study.yaml")
        plan.info.mkdir(parents=True)
        (plan.root / "batch.info").write_text(json.dumps(plan.to_batch()))
        if session:
            Session.create(plan.session).conductors.write(1)
        rows = [f"{n},1,,{state},--:--:--,--:--:--,--,--,--,0," for n, state in enumerate(states)]
        (plan.root / "status.csv").write_text("\n".join([HEADING, *rows]) + "\n")
        return plan

    return study


def wait(*words):
    return CliRunner().invoke(main, ["wait", *map(str, words)])


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["FINISHED"], 0),
        (["FINISHED", "FAILED"], 1),
        (["FINISHED", "CANCELLED"], 2),
        (["FINISHED", "RUNNING"], 3),
    ],
)
def test_the_exit_code_tells_how_a_study_has_ended(study, states, code):
    """Given an ended study and no terminal, then nothing is printed, unless nobody conducts a study that has not ended."""
    plan = study(*states)

    answer = wait(plan.root)

    assert answer.exit_code == code
    expected = f"{plan.root}: No conductor runs the study; `maestro-celery resume {plan.root}` continues it.\n"
    assert answer.output == (expected if code == 3 else "")


def test_a_study_that_still_runs_has_the_exit_code_of_timeout(study):
    plan = study("RUNNING")
    with FileLock(plan.conductor_lock):
        answer = wait("--timeout", "0.3", plan.root)
    assert (answer.exit_code, answer.output) == (124, f"{plan.root}: it still runs after 0.3 s.\n")


def test_one_look_is_enough_without_time(study):
    plan = study("RUNNING")
    with FileLock(plan.conductor_lock):
        assert wait("--timeout", "0", plan.root).exit_code == 124
    assert wait("--timeout", "0", study("FINISHED", name="other").root).exit_code == 0


def test_several_studies_have_the_highest_code_and_json_has_each(study):
    first, second = study("FINISHED"), study("CANCELLED", name="other")

    answer = wait("--json", first.root, second.root)

    assert answer.exit_code == 2
    assert [(one["outcome"], one["code"], one["state"]) for one in json.loads(answer.stdout)] == [
        ("finished", 0, "FINISHED"),
        ("cancelled", 2, "CANCELLED"),
    ]


def test_a_dry_run_has_not_finished(study):
    """Given scripts only, then a script that waits must not take them for results."""
    plan = study("DRYRUN", session=False)
    answer = wait(plan.root)
    assert (answer.exit_code, answer.output) == (3, f"{plan.root}: It was a dry run: nothing runs.\n")


def test_a_directory_that_does_not_exist_is_an_error_of_the_command(tmp_path):
    answer = wait(tmp_path / "none")
    assert answer.exit_code == 1
    assert (
        answer.output
        == f"maestro-celery: error: '{tmp_path}/none' is neither the directory of a study nor a specification.\n"
    )


@pytest.mark.parametrize("code", [None, *StudyCode])
@pytest.mark.parametrize("state", StudyState)
def test_each_state_has_a_code_and_only_a_good_end_is_zero(code, state):
    found = wait_code_of(code, state)
    assert isinstance(found, WaitCode)
    assert (found == 0) == (code is StudyCode.WELL and state not in (StudyState.DRYRUN, StudyState.CANCELLED))


def test_a_killed_conductor_is_awaited_while_the_host_may_start_another_one(study, advance_clock):
    """Given a conductor that was killed, then the wait goes on while the session has a host, for half a minute."""
    plan = study("RUNNING")
    member = Member(id=plan.id, number=1, root=str(plan.root), state=MemberState.RUNNING, started_at=1.0)
    Members(plan.session).write(member)
    monitored = MonitoredStudy(plan.root, 600)
    with FileLock(plan.session / "host.lock"):
        monitored.look()
        assert monitored.code is None
        advance_clock(31.0)
        monitored.look()
        assert monitored.code is StudyCode.UNCONDUCTED
    without_host = MonitoredStudy(plan.root, 600)
    without_host.look()
    assert without_host.code is StudyCode.UNCONDUCTED


def test_pauses_grow_with_the_time_and_with_the_cost_of_a_look():
    """Given a short study, then its end shows within a second; looks at a long or a large one stay rare."""
    assert growing_pause_s(0.0, 0.01) == 0.2
    assert growing_pause_s(20.0, 0.01) == 1.0
    assert growing_pause_s(10_000.0, 0.01) == 5.0
    assert growing_pause_s(10_000.0, 3.0) == 12.0
