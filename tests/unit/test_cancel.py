"""Cancellation without a conductor: `maestro cancel` ends workers and jobs, and reports those that it cannot end."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from maestrowf import maestro

from maestro_celery_plugin import files
from maestro_celery_plugin.batch.allocation import Allocation, new_directory, read_allocations
from maestro_celery_plugin.batch.slurm import Slurm
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.maestro import cancel, native_orphans
from maestro_celery_plugin.maestro.cancel import cancel_all, cancel_orphans
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.conductor_lock import file_lock
from maestro_celery_plugin.study.heartbeats import Heartbeats
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.study_processes import Ended, StudyProcesses

NOTHING = ["This study has no conductor, and none of its workers, samples or jobs is left."]


def sentences(plan):
    return cancel_orphans(plan).sentences


@pytest.fixture
def plan(tmp_path):
    workers = {"w": WorkerGroupSettings(task_queues=("merlin",))}
    settings = EnsembleSettings(batch=BatchSettings(type="slurm", queue="pbatch"), resources=ResourceSettings(workers=workers))
    plan = StudyPlan(root=tmp_path / "study", timestamp="t", settings=settings)
    plan.info.mkdir(parents=True)
    (plan.root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    Session.create(plan.session)
    return plan


def listed(plan, directory=None):
    """Return a `squeue` that lists job 7, which was submitted for the first allocation, or in another directory."""
    directory = directory or plan.allocations / "w" / "1"
    return f"case \"$*\" in *%Z*) echo '7|{directory}';; *) echo '7|RUNNING|None';; esac"


def allocate(plan, job, state=AllocationState.RUNNING):
    number, directory = new_directory(plan.allocations, "w")
    Allocation("w", number, directory, job, state).store()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Install commands with given scripts; each call appends its command line to a file."""
    bin, calls = tmp_path / "bin", tmp_path / "calls"
    bin.mkdir()
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")

    def answer(**commands):
        for command, text in commands.items():
            (bin / command).write_text(f"#!/bin/sh\necho {command} $* >> {calls}\n{text}\n")
            (bin / command).chmod(0o755)
        return lambda: calls.read_text() if calls.exists() else ""

    return answer


def test_the_job_of_an_open_allocation_is_cancelled_and_the_allocation_released(plan, slurm):
    allocate(plan, "7")
    calls = slurm(squeue=listed(plan), scancel="exit 0")

    assert sentences(plan)[1:] == [
        "Job 7 of allocation 'w/1' is cancelled.", f"`maestro-celery resume {plan.root}` would continue it."
    ]  # fmt: skip
    assert "scancel" in calls()
    assert [allocation.released for allocation in read_allocations(plan.allocations)] == [True]
    assert Session(plan.session).stop_requested


def test_a_job_that_has_ended_is_not_cancelled(plan, slurm):
    allocate(plan, "7")
    calls = slurm(squeue="echo '7|COMPLETED|None'", scancel="exit 0")

    assert sentences(plan) == NOTHING
    assert "scancel" not in calls()
    assert [allocation.state for allocation in read_allocations(plan.allocations)] == [AllocationState.COMPLETED]


def test_a_job_that_can_never_start_is_cancelled(plan, slurm):
    """Given a job that counts as failed, but is still in the queue, then it is not left there."""
    allocate(plan, "7")
    calls = slurm(squeue=listed(plan).replace("7|RUNNING|None", "7|PENDING|PartitionTimeLimit"), scancel="exit 0")

    assert "Job 7 of allocation 'w/1' is cancelled." in sentences(plan)
    assert "scancel" in calls()


def test_a_job_whose_submission_was_interrupted_is_found_and_cancelled(plan, slurm):
    """Given a conductor that died before it stored the job, then `maestro cancel` finds the job by its directory."""
    allocate(plan, None, AllocationState.PENDING)
    directory = plan.allocations / "w" / "1"
    find = f"case \"$*\" in *%Z*) echo '9|{directory}';; *) echo '9|PENDING|Resources';; esac"
    slurm(squeue=find, scancel="exit 0")

    assert "Job 9 of allocation 'w/1' is cancelled." in sentences(plan)


def test_a_job_may_still_run_when_the_batch_system_does_not_answer(plan, slurm):
    allocate(plan, "7")
    slurm(squeue="echo 'Unable to contact slurm controller' >&2; exit 1", scancel="exit 1")

    report = cancel_orphans(plan)

    assert not report.is_complete
    assert report.sentences[1].startswith("Job 7 of allocation 'w/1' may still run: 'squeue' has failed: Unable to contact")


def test_a_live_conductor_cancels_its_study_itself(plan, slurm):
    allocate(plan, "7")
    with FileLock(file_lock(plan).lock_file):
        assert sentences(plan) == []
    assert not Session(plan.session).stop_requested


def test_a_study_without_workers_and_jobs_has_nothing_to_cancel(plan):
    assert sentences(plan) == NOTHING


def test_the_job_of_somebody_else_is_not_cancelled(plan, slurm):
    """Given a stored number that belongs to another job of the user, then this job continues, and the report says so."""
    allocate(plan, "7")
    calls = slurm(squeue=listed(plan, "/home/ada"), scancel="exit 0")

    report = cancel_orphans(plan)

    assert "scancel" not in calls()
    assert "job 7 was submitted in '/home/ada' and is not a job of this study; it is not cancelled" in report.sentences[1]
    assert not report.is_complete


# --- native steps ------------------------------------------------------------------------------------


def test_a_batch_job_of_a_native_step_is_cancelled(plan, slurm):
    NativeStepState(plan.native / "job_A.1").write_job("8")
    calls = slurm(squeue="echo '8|RUNNING|None'", scancel="exit 0")

    assert "Job 8 of 'job_A.1' is cancelled." in sentences(plan)
    assert "scancel" in calls()


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED by 0"])
def test_a_batch_job_of_a_native_step_that_has_ended_is_not_cancelled(plan, slurm, state):
    NativeStepState(plan.native / "job").write_job("8")
    calls = slurm(squeue=f"echo '8|{state}|None'", scancel="exit 0")

    assert sentences(plan) == NOTHING
    assert "scancel" not in calls()


def test_the_job_of_a_native_step_that_has_finished_is_not_cancelled(plan):
    state = NativeStepState(plan.native / "job")
    state.write_job("8")
    state.record_finished()
    assert sentences(plan) == NOTHING


def test_an_interrupted_submission_of_a_native_step_is_reported(plan):
    NativeStepState(plan.native / "job").write_job(None)
    assert "The submission of 'job' was interrupted; look for its job in the queue, and cancel it." in sentences(plan)


def test_a_script_of_a_native_step_that_still_runs_is_reported(plan):
    directory = plan.native / "job"
    directory.mkdir(parents=True)
    with FileLock(directory / "lock"):
        assert (
            f"The script of 'job' still runs; `pgrep -f {directory}/run.sh` shows its process."
            in sentences(plan)
        )


# --- the command -------------------------------------------------------------------------------------


def request_cancellation(plan):
    plan.cancel_request.touch()
    return 0


def test_without_the_confirmation_of_the_user_no_study_is_cancelled(plan, capsys):
    plan.cancel_request.touch()  # from an earlier `maestro cancel`

    assert cancel_all(lambda: 0, [plan.root]) == 0

    assert capsys.readouterr().out == ""
    assert not Session(plan.session).stop_requested


def test_the_report_is_printed(plan, capsys):
    assert cancel_all(lambda: request_cancellation(plan), [plan.root]) == 0

    assert capsys.readouterr().out.splitlines() == NOTHING
    assert Session(plan.session).stop_requested


@pytest.mark.parametrize(("scancel", "code"), [("exit 0", 0), ("echo 'Access denied' >&2; exit 1", 1)])
def test_the_exit_code_tells_whether_something_may_still_run(plan, slurm, capsys, scancel, code):
    allocate(plan, "7")
    slurm(squeue=listed(plan), scancel=scancel)

    assert cancel_all(lambda: request_cancellation(plan), [plan.root]) == code

    assert ("may still run" in capsys.readouterr().out) == bool(code)


def test_a_study_that_cannot_be_read_does_not_prevent_the_cancellation_of_others(plan, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "batch.info").write_text("{type: celery, study: elsewhere}")

    def both():
        (other / ".cancel.lock").touch()
        return request_cancellation(plan)

    assert cancel_all(both, [other, plan.root]) == 1

    printed = capsys.readouterr()
    assert printed.err == (
        f"maestro: error: '{other}' was created by another version of maestro-celery-plugin; use that version, or launch "
        "the study again (batch.info has no key 'timestamp').\n"
    )
    assert printed.out.splitlines() == NOTHING


def test_a_session_that_cannot_be_written_does_not_stop_the_cancellation(plan, slurm, capsys, monkeypatch):
    monkeypatch.setattr(Session, "request_stop", lambda self: (plan.root / "no" / "such" / "directory").touch())
    allocate(plan, "7")
    slurm(squeue=listed(plan), scancel="exit 0")

    assert cancel_all(lambda: request_cancellation(plan), [plan.root]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("Workers on other machines cannot be asked to end: [Errno 2] No such file or directory")
    assert "Job 7 of allocation 'w/1' is cancelled." in lines


# --- a disk that is full or broken -------------------------------------------------------------------


def failing(number=errno.ENOSPC):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


def not_written():
    """Return what Maestro's part returns if the user has agreed, but no file can be created."""
    return -1


@pytest.fixture
def full_disk(monkeypatch):
    monkeypatch.setattr(Path, "touch", failing())
    monkeypatch.setattr(files, "replaced", failing())


def test_a_request_that_cannot_be_written_is_not_taken_for_the_answer_no(plan, slurm, capsys, full_disk):
    """Given a disk without inodes and no conductor, then everything ends, and the exit code tells of the problem."""
    allocate_before_the_disk_is_full(plan, slurm)

    assert cancel_all(not_written, [plan.root]) == 1

    printed = capsys.readouterr()
    assert printed.err == (
        f"maestro: error: The request to cancel '{plan.root}' cannot be written (No space left on device); this study has "
        "no conductor that would read it.\n"
    )
    assert "Job 7 of allocation 'w/1' is cancelled.\n" in printed.out


def allocate_before_the_disk_is_full(plan, slurm):
    place = plan.allocations / "w" / "1"
    place.mkdir(parents=True)
    state = {"job": "7", "state": "RUNNING"}
    (place / "allocation.json").write_text(json.dumps(state))
    return slurm(squeue=listed(plan), scancel="exit 0")


@pytest.mark.parametrize(("numbers", "how"), [([4711], "`kill 4711`,"), ([], "`kill PID` on its machine,")])
def test_a_live_conductor_that_cannot_be_asked_is_named(plan, capsys, monkeypatch, full_disk, numbers, how):
    monkeypatch.setattr(StudyProcesses, "conductors", lambda self: numbers)
    with FileLock(file_lock(plan).lock_file):
        assert cancel_all(not_written, [plan.root]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"maestro: error: The request to cancel '{plan.root}' cannot be written (No space left on device), and its conductor "
        f"continues. Make room there or correct the permissions, and run `maestro cancel {plan.root}` again; or end the "
        f"conductor with {how} which ends its workers, and then run `maestro cancel` again.\n"
    )


def test_maestro_returns_minus_one_only_after_the_user_has_agreed(plan, monkeypatch):
    """The plugin relies on it."""
    monkeypatch.setattr(maestro.Conductor, "mark_cancelled", failing())
    for answer, code in (("y", -1), ("n", 0)):
        monkeypatch.setattr(maestro.six.moves, "input", lambda question, answer=answer: answer)
        assert maestro.cancel_study(argparse.Namespace(directory=[str(plan.root)], autoyes=False)) == code


def test_maestro_stops_at_the_first_request_but_the_others_are_written(plan, tmp_path, capsys):
    """Given a first study on a full disk, then the conductor of the second study receives its request."""
    missing = tmp_path / "gone"
    with FileLock(file_lock(plan).lock_file):
        assert cancel_all(not_written, [missing, plan.root]) == 1
    assert plan.cancel_request.exists()


def test_a_request_that_cannot_be_read_is_one_line(plan, capsys, monkeypatch):
    monkeypatch.setattr(Path, "stat", failing(errno.EIO))
    assert cancel_all(lambda: 0, [plan.root]) == 1
    assert capsys.readouterr().err == "maestro: error: [Errno 5] Input/output error\n"


def test_a_full_disk_does_not_keep_a_job_running(plan, slurm, monkeypatch):
    calls = allocate_before_the_disk_is_full(plan, slurm)
    monkeypatch.setattr(Allocation, "store", failing())

    report = cancel_orphans(plan)

    assert "scancel" in calls()
    assert report.sentences[1:3] == [
        "Job 7 of allocation 'w/1' is cancelled.",
        "The end of allocation 'w/1' cannot be stored ([Errno 28] No space left on device); correct this, and run `maestro "
        "cancel` again before you resume the study, because its steps would be cancelled as well.",
    ]
    assert not report.is_complete


@pytest.mark.parametrize(
    ("owner", "name", "sentence", "jobs"),
    [
        (Heartbeats, "live_elsewhere", "Workers on other machines cannot be listed: [Errno 5]", "789"),
        (cancel, "allocation_files", "The batch jobs of allocations cannot be listed: [Errno 5]", "89"),
        (cancel, "read_allocation", "The batch job of allocation 'w/1' may still run: [Errno 5]", "89"),
        (cancel, "batch_system", "The batch job of allocation 'w/1' may still run: [Errno 5]", "89"),
        (native_orphans, "batch_system", "The batch jobs of native steps cannot be listed: [Errno 5]", "7"),
        (NativeStepState, "read_job", "The script or the batch job of 'job' may still run: [Errno 5]", "79"),
        (Heartbeats, "all", "The heartbeats of the workers that have ended cannot be removed: [Errno 5]", "789"),
    ],
)
def test_an_error_of_one_part_does_not_stop_the_others(plan, slurm, monkeypatch, owner, name, sentence, jobs):
    """Given a file that cannot be read, then the jobs and the processes that can be found are ended."""
    allocate(plan, "7")
    for number, step in enumerate(("job", "other"), 8):
        NativeStepState(plan.native / step).write_job(str(number))
    states = "; ".join(f"echo '{job}|RUNNING|None'" for job in (7, 8, 9))
    slurm(squeue=f"case \"$*\" in *%Z*) echo '7|{plan.allocations}/w/1';; *) {states};; esac", scancel="exit 0")
    ended = []
    monkeypatch.setattr(StudyProcesses, "end_all", lambda self: ended.append(1) or Ended(0, 0, 0, ()))
    original = getattr(owner, name)

    def fail_once(*arguments, **options):
        if name != "read_job" or arguments[0].path.name == "job":
            failing(errno.EIO)()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, fail_once)

    report = cancel_orphans(plan)

    assert any(one.startswith(sentence) for one in report.sentences), report.sentences
    assert not report.is_complete
    assert ended == [1]
    assert "".join(re.findall(r"^Job (\d) of .* is cancelled\.$", "\n".join(report.sentences), re.MULTILINE)) == jobs


def test_a_job_is_cancelled_with_the_batch_settings_of_its_group(plan, slurm, monkeypatch):
    """Given an adapter that needs the settings of the batch block, such as the address of a Flux instance, then it has them."""
    used = []
    monkeypatch.setattr(Slurm, "adapter_arguments", lambda self, settings: used.append(settings) or {"host": "", "bank": "", "queue": ""})
    allocate(plan, "7")
    slurm(squeue=listed(plan), scancel="exit 0")

    cancel_orphans(plan)

    assert [settings.queue for settings in used] == ["pbatch"]


def test_while_the_other_studies_cannot_be_listed_their_workers_go_on(plan, monkeypatch):
    """Given a session whose other studies are unknown now, then a cancelled study does not end the workers of all of them."""
    ended = []
    monkeypatch.setattr(StudyProcesses, "end_all", lambda self: ended.append(1) or Ended(0, 0, 0, ()))
    monkeypatch.setattr(Members, "living", failing(errno.ESTALE))

    report = cancel_orphans(plan)

    assert not report.is_complete
    assert any(one.startswith("The other studies of the session cannot be listed: ") for one in report.sentences)
    assert not ended
    assert not Session(plan.session).stop_requested
