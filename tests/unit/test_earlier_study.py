"""The earlier study in a directory that `maestro run --out` overwrites: batch jobs that may be left stop the launch."""

from __future__ import annotations

import pytest
import yaml
from filelock import FileLock

from maestro_celery_plugin.batch.allocation import Allocation, new_directory
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.maestro.earlier_study import end_earlier_study
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.conductor_lock import file_lock
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session


@pytest.fixture
def plan(tmp_path):
    settings = EnsembleSettings(batch=BatchSettings(type="slurm"), resources=ResourceSettings())
    plan = StudyPlan(root=tmp_path / "study", timestamp="t", settings=settings)
    plan.info.mkdir(parents=True)
    (plan.root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    Session.create(plan.session)
    return plan


def allocate(plan, job="7"):
    number, directory = new_directory(plan.allocations, "w")
    Allocation("w", number, directory, job, AllocationState.RUNNING if job else AllocationState.PENDING).store()
    return directory


def refusal(plan):
    with pytest.raises(StudyError) as error:
        end_earlier_study(plan.root)
    assert not Session(plan.session).stop_requested
    assert f"`maestro cancel {plan.root}`" in str(error.value)
    return str(error.value)


def test_a_directory_without_an_ensemble_is_left_to_maestro(tmp_path):
    end_earlier_study(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_jobs_and_workers_is_asked_to_stop(plan, capsys):
    end_earlier_study(plan.root)
    assert Session(plan.session).stop_requested
    assert capsys.readouterr().out == ""


def test_a_live_conductor_stops_the_launch(plan):
    with FileLock(file_lock(plan).lock_file):
        assert "a study is running in" in refusal(plan)


def test_an_open_batch_job_stops_the_launch(plan, recorded):
    allocate(plan)
    recorded.answer("squeue", "7|RUNNING|None\n")
    assert "it has the batch job 7;" in refusal(plan)


def test_a_batch_job_that_has_ended_does_not_stop_the_launch(plan, recorded):
    allocate(plan)
    recorded.answer("squeue", "7|COMPLETED|None\n")
    end_earlier_study(plan.root)
    assert Session(plan.session).stop_requested


@pytest.mark.parametrize("job", ["7", None])
def test_a_batch_system_that_does_not_answer_stops_the_launch(plan, recorded, job):
    allocate(plan, job)
    recorded.answer("squeue", err="Unable to contact slurm controller\n", code=1)
    assert "it has perhaps batch jobs ('squeue' has failed: Unable to contact slurm controller" in refusal(plan)


def test_an_open_job_of_a_native_step_stops_the_launch(plan, recorded):
    NativeStepState(plan.native / "job").write_job("8", plan.root / "job")
    recorded.answer("squeue", "8|PENDING|Priority\n")
    assert "it has the batch job 8;" in refusal(plan)


def test_a_damaged_plan_with_an_allocation_stops_the_launch(plan):
    (plan.root / "batch.info").write_text("")
    end_earlier_study(plan.root)
    Session(plan.session).revoke_stop()
    allocate(plan)
    assert "it has an allocation 'w/1' whose batch system is unknown;" in refusal(plan)


def test_a_job_that_cannot_be_read_may_be_open(plan, monkeypatch):
    NativeStepState(plan.native / "job").write_job("8")

    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(NativeStepState, "read_job", fail)
    assert "it has perhaps a batch job of 'job' ([Errno 5] Input/output error)" in refusal(plan)
