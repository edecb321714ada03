"""Leftovers: what `maestro cancel` ends when the conductor is dead, and what it says where it cannot."""

from __future__ import annotations

import pytest
import yaml
from filelock import FileLock

from maestro_celery_plugin.allocations import Allocation, new_directory, read_allocations
from maestro_celery_plugin.conductorship import conductor_lock
from maestro_celery_plugin.leftovers import end_leftovers
from maestro_celery_plugin.session import Session
from maestro_celery_plugin.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study import StudyPlan

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

    assert end_leftovers(plan)[1:] == [
        "Job 7 of allocation 'w/1' is cancelled.", f"`maestro-celery resume {plan.root}` would go on with it."
    ]  # fmt: skip
    assert "scancel" in calls()
    assert [one.released for one in read_allocations(plan.allocations)] == [True]
    assert Session(plan.session).stop_requested


def test_a_job_that_has_ended_is_left_alone(plan, slurm):
    allocate(plan, "7")
    calls = slurm(squeue="echo '7|COMPLETED|None'", scancel="exit 0")

    assert end_leftovers(plan) == NOTHING
    assert "scancel" not in calls()
    assert [one.state for one in read_allocations(plan.allocations)] == [AllocationState.COMPLETED]


def test_a_job_of_which_only_the_batch_system_knows(plan, slurm):
    """Given a conductor that died before it knew its job, then the job is looked for by its directory."""
    allocate(plan, None, AllocationState.PENDING)
    directory = plan.allocations / "w" / "1"
    find = f"case \"$*\" in *%Z*) echo '9|{directory}';; *) echo '9|PENDING|Resources';; esac"
    slurm(squeue=find, scancel="exit 0")

    assert "Job 9 of allocation 'w/1' is cancelled." in end_leftovers(plan)


def test_a_batch_system_that_does_not_answer(plan, slurm):
    allocate(plan, "7")
    slurm(squeue="echo 'Unable to contact slurm controller' >&2; exit 1", scancel="exit 1")

    (_, sentence, _) = end_leftovers(plan)

    assert sentence.startswith("Job 7 of allocation 'w/1' may go on: 'squeue' has failed: Unable to contact")


def test_a_conductor_that_lives_is_left_to_it(plan, slurm):
    allocate(plan, "7")
    with FileLock(conductor_lock(plan).lock_file):
        assert end_leftovers(plan) == []
    assert not Session(plan.session).stop_requested


def test_nothing_is_left(plan):
    assert end_leftovers(plan) == NOTHING
