"""Leftovers: what `maestro cancel` ends when the conductor is dead, and what it says where it cannot."""

from __future__ import annotations

import pytest
import yaml
from filelock import FileLock

from maestro_celery_plugin.batch.allocation import Allocation, new_directory, read_allocations
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.maestro.cancel import cancel_all, cancel_orphans
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.conductor_lock import file_lock
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session

NOTHING = ["No conductor holds this study now, and nothing of it is left to be ended."]


@pytest.fixture
def plan(tmp_path):
    workers = {"w": WorkerGroupSettings(task_queues=("merlin",))}
    settings = EnsembleSettings(batch=BatchSettings(type="slurm"), resources=ResourceSettings(workers=workers))
    plan = StudyPlan(root=tmp_path / "study", timestamp="t", settings=settings)
    plan.info.mkdir(parents=True)
    (plan.root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    Session.create(plan.session)
    return plan


def allocate(plan, job, state=AllocationState.RUNNING):
    number, directory = new_directory(plan.allocations, "w")
    Allocation("w", number, directory, job, state).store()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands that answer what they are told to, and note how they were called."""
    bin, calls = tmp_path / "bin", tmp_path / "calls"
    bin.mkdir()
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")

    def answer(**commands):
        for command, text in commands.items():
            (bin / command).write_text(f"#!/bin/sh\necho {command} $* >> {calls}\n{text}\n")
            (bin / command).chmod(0o755)
        return lambda: calls.read_text() if calls.exists() else ""

    return answer


def test_a_job_that_runs_is_cancelled_and_marked_as_not_needed(plan, slurm):
    allocate(plan, "7")
    calls = slurm(squeue="echo '7|RUNNING|None'", scancel="exit 0")

    assert cancel_orphans(plan)[1:] == [
        "Job 7 of allocation 'w/1' is cancelled.", f"`maestro-celery resume {plan.root}` would go on with it."
    ]  # fmt: skip
    assert "scancel" in calls()
    assert [one.released for one in read_allocations(plan.allocations)] == [True]
    assert Session(plan.session).stop_requested


def test_a_job_that_has_ended_is_left_alone(plan, slurm):
    allocate(plan, "7")
    calls = slurm(squeue="echo '7|COMPLETED|None'", scancel="exit 0")

    assert cancel_orphans(plan) == NOTHING
    assert "scancel" not in calls()
    assert [one.state for one in read_allocations(plan.allocations)] == [AllocationState.COMPLETED]


def test_a_job_of_which_only_the_batch_system_knows(plan, slurm):
    """Given a conductor that died before it knew its job, then the job is looked for by its directory."""
    allocate(plan, None, AllocationState.PENDING)
    directory = plan.allocations / "w" / "1"
    find = f"case \"$*\" in *%Z*) echo '9|{directory}';; *) echo '9|PENDING|Resources';; esac"
    slurm(squeue=find, scancel="exit 0")

    assert "Job 9 of allocation 'w/1' is cancelled." in cancel_orphans(plan)


def test_a_batch_system_that_does_not_answer(plan, slurm):
    allocate(plan, "7")
    slurm(squeue="echo 'Unable to contact slurm controller' >&2; exit 1", scancel="exit 1")

    (_, sentence, _) = cancel_orphans(plan)

    assert sentence.startswith("Job 7 of allocation 'w/1' may go on: 'squeue' has failed: Unable to contact")


def test_a_conductor_that_lives_is_left_to_it(plan, slurm):
    allocate(plan, "7")
    with FileLock(file_lock(plan).lock_file):
        assert cancel_orphans(plan) == []
    assert not Session(plan.session).stop_requested


def test_nothing_is_left(plan):
    assert cancel_orphans(plan) == NOTHING


# --- plain steps -------------------------------------------------------------------------------------


def test_a_batch_job_of_a_plain_step(plan, slurm):
    NativeStepState(plan.native / "job_A.1").write_job("8")
    calls = slurm(squeue="echo '8|RUNNING|None'", scancel="exit 0")

    assert "Job 8 of 'job_A.1' is cancelled." in cancel_orphans(plan)
    assert "scancel" in calls()


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED by 0"])
def test_a_batch_job_of_a_plain_step_that_has_ended(plan, slurm, state):
    NativeStepState(plan.native / "job").write_job("8")
    calls = slurm(squeue=f"echo '8|{state}|None'", scancel="exit 0")

    assert cancel_orphans(plan) == NOTHING
    assert "scancel" not in calls()


def test_a_plain_step_that_has_finished(plan):
    trace = NativeStepState(plan.native / "job")
    trace.write_job("8")
    trace.record_finished()
    assert cancel_orphans(plan) == NOTHING


def test_a_plain_step_whose_submission_was_cut_off(plan):
    NativeStepState(plan.native / "job").write_job(None)
    assert "Whether 'job' was submitted is not known; look for its job in the queue, and cancel it." in cancel_orphans(plan)


def test_a_script_that_the_conductor_had_started(plan):
    directory = plan.native / "job"
    directory.mkdir(parents=True)
    with FileLock(directory / "lock"):
        assert (
            f"The script of 'job' goes on on its own; `pgrep -f {directory}/run.sh` names its process."
            in cancel_orphans(plan)
        )


# --- the command -------------------------------------------------------------------------------------


def note(plan):
    plan.cancel_request.touch()
    return 0


def test_what_the_user_does_not_confirm_ends_nothing(plan, capsys):
    plan.cancel_request.touch()  # of an earlier time

    assert cancel_all(lambda: 0, [plan.root]) == 0

    assert capsys.readouterr().out == ""
    assert not Session(plan.session).stop_requested


def test_what_was_done_is_told(plan, capsys):
    assert cancel_all(lambda: note(plan), [plan.root]) == 0

    assert capsys.readouterr().out.splitlines() == NOTHING
    assert Session(plan.session).stop_requested


def test_a_study_that_cannot_be_read_does_not_keep_others_from_their_end(plan, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "batch.info").write_text("{type: celery, study: elsewhere}")

    def both():
        (other / ".cancel.lock").touch()
        return note(plan)

    assert cancel_all(both, [other, plan.root]) == 1

    said = capsys.readouterr()
    assert said.err == (
        f"maestro: error: '{other}' was made by another version of maestro-celery-plugin; use that one, or launch the "
        "study anew.\n"
    )
    assert said.out.splitlines() == NOTHING


def test_a_session_that_cannot_be_written_is_one_line(plan, capsys, monkeypatch):
    monkeypatch.setattr(Session, "request_stop", lambda self: (plan.root / "is" / "not" / "there").touch())

    assert cancel_all(lambda: note(plan), [plan.root]) == 1

    assert capsys.readouterr().err.startswith("maestro: error: [Errno 2] No such file or directory")
