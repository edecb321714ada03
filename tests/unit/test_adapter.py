"""The adapter: it obeys the contract of Maestro, whose conductor ends when an adapter raises an exception."""

from __future__ import annotations

import dataclasses
import os
import re
import types

import maestrowf.specification  # noqa: F401 (imported before this package, as in `maestro`)
import pytest
import yaml
from ensembles import a_study
from filelock import FileLock
from maestrowf.abstracts.enums import CancelCode, JobStatusCode, SubmissionCode
from maestrowf.interfaces import ScriptAdapterFactory
from msgspec.structs import replace

from maestro_celery_plugin.conductor import coordinator
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro import study_adapter
from maestro_celery_plugin.report.explain import explain
from maestro_celery_plugin.study.manifest_builder import build_manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.reasons import read_reasons
from maestro_celery_plugin.study.session import Session

pytestmark = pytest.mark.usefixtures("no_host")


def adapter_of(plan):
    batch = plan.to_batch()
    return ScriptAdapterFactory.get_adapter(batch.pop("type"))(**batch)


@pytest.fixture
def study(tmp_path):
    return a_study(tmp_path / "study")[0]


@pytest.fixture
def workspace(study):
    return study.root / "sim"


def a_step(cmd="echo $(V)", restart=None, sampled=False):
    run = {
        "cmd": cmd,
        "restart": cmd if restart is None else restart,
        "celery": {"step": "sim", "sampled": sampled, "settings": {}},
    }
    return types.SimpleNamespace(name="sim", real_name="sim", run=run)


def test_maestro_finds_the_adapter():
    assert "celery" in ScriptAdapterFactory.get_valid_adapters()
    adapter = ScriptAdapterFactory.get_adapter("celery")
    assert adapter.__name__ == "CeleryScriptAdapter"
    assert adapter.key == "celery"


def test_the_adapter_is_built_from_the_batch_block_that_maestro_stores(study):
    adapter = adapter_of(study)
    assert adapter.extension == ".sh"
    assert StudyPlan.from_batch(study.to_batch()) == study


def test_the_scripts_are_written_and_executable(study, workspace):
    scheduled, script, restart = adapter_of(study).write_script(str(workspace), a_step(restart="echo again"))

    assert scheduled is True
    assert os.path.basename(script) == "sim.sh"
    assert os.path.basename(restart) == "sim.restart.sh"
    for path, line in ((script, "echo $(V)"), (restart, "echo again")):
        assert os.access(path, os.X_OK)
        with open(path) as file:
            assert file.read() == f"#!/bin/bash\n\n{line}\n"


def test_a_script_that_may_run_is_not_written_again(study, workspace):
    """The sample of a live worker goes on when its conductor dies, and its shell reads the script line by line."""
    step = a_step(restart="echo again")
    for path in adapter_of(study).write_script(str(workspace), step)[1:]:
        with open(path, "w") as file:
            file.write("it runs")
    for path in adapter_of(study).write_script(str(workspace), step)[1:]:
        with open(path) as file:
            assert file.read() == "it runs"


def test_every_step_has_a_restart_script(study, workspace):
    """Maestro restarts a step that timed out only if the step has a restart script."""
    _, script, restart = adapter_of(study).write_script(str(workspace), a_step())
    assert restart == script


def test_the_launcher_is_removed_from_the_script_of_a_local_study(study, workspace):
    _, script, _ = adapter_of(study).write_script(str(workspace), a_step(cmd="$(LAUNCHER) sim"))
    with open(script) as file:
        assert file.read().endswith("\nsim\n")


@pytest.fixture
def slurm_study(study):
    return dataclasses.replace(study, settings=replace(study.settings, batch=BatchSettings(type="slurm")))


def test_the_command_of_the_batch_system_replaces_the_launcher(slurm_study, workspace):
    step = a_step(cmd="$(LAUNCHER)[1n,2p] sim", restart="$(LAUNCHER) sim")
    step.run |= {"nodes": 2, "procs": "4"}
    _, script, restart = adapter_of(slurm_study).write_script(str(workspace), step)
    with open(script) as cmd, open(restart) as again:
        assert cmd.read().endswith('\nsrun -Q --exact --mem=0 -J "$MAESTRO_CELERY_LAUNCH" -n 2 -N 1 sim\n')
        assert again.read().endswith('\nsrun -Q --exact --mem=0 -J "$MAESTRO_CELERY_LAUNCH" -n 4 -N 2 sim\n')
    manifest = build_manifest(slurm_study, step, str(workspace))
    assert (manifest.needs, manifest.launches) == (StepNeeds(nodes=2, procs=4), True)


def test_the_manifest_of_a_local_study_has_no_resources_and_no_launcher(study, workspace):
    manifest = build_manifest(study, a_step(cmd="$(LAUNCHER)[1n] sim"), str(workspace))
    assert (manifest.cmd, manifest.needs, manifest.launches) == ("sim", StepNeeds(), False)


def test_an_invalid_launch_fails_the_step_and_does_not_end_the_conductor(slurm_study, workspace):
    """The value of a parameter may be too large. Maestro ends when an adapter raises an exception in `write_script`."""
    step = a_step(cmd="$(LAUNCHER)[8p] sim")
    step.run["procs"] = 4
    message = "study.sim.run.cmd: found '$(LAUNCHER)[8p]'; the step has procs: 4; a launch cannot have more."
    _, script, restart = adapter_of(slurm_study).write_script(str(workspace), step)
    assert not restart
    with open(script) as file:
        assert file.read() == f"# {message}\n"
    with pytest.raises(SpecificationError, match=f"^{re.escape(message)}$"):
        build_manifest(slurm_study, step, str(workspace))


@pytest.fixture
def no_coordinator(monkeypatch):
    monkeypatch.setattr(study_adapter, "for_study", lambda plan: types.SimpleNamespace(watchers=[], submit=lambda manifest: "job"))


@pytest.mark.usefixtures("no_coordinator")
def test_a_step_record_that_cannot_be_submitted_is_explained(slurm_study, workspace):
    """Given the reason of a refusal, when a later conductor submits the step record, then the reason is removed."""
    (slurm_study.root / "batch.info").write_text(yaml.safe_dump(slurm_study.to_batch()))
    Session.create(slurm_study.session)
    header = "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params"
    row = "sim,--,sim,FAILED,--:--:--,--:--:--,--,--,--,0,"
    (slurm_study.root / "status.csv").write_text(f"{header}\n{row}")
    step = a_step(cmd="$(LAUNCHER)[8p] sim")
    step.run["procs"] = 4

    record = adapter_of(slurm_study).submit(step, "sim.sh", str(workspace))

    assert record.submission_code is SubmissionCode.ERROR
    explained = dict(explain(slurm_study.root))["sim  FAILED"]
    assert explained[0] == (
        "It could not be submitted: study.sim.run.cmd: found '$(LAUNCHER)[8p]'; the step has procs: 4; a launch cannot "
        "have more."
    )

    StepRecords(slurm_study, {}).store_reasons()  # the coordinator writes the reasons that it knows
    assert dict(explain(slurm_study.root))["sim  FAILED"] == explained

    adapter_of(slurm_study).submit(a_step(), "sim.sh", str(workspace))
    assert read_reasons(slurm_study.refusals) == {}


@pytest.mark.usefixtures("no_coordinator")
def test_a_full_disk_does_not_hide_the_error_of_a_submission(slurm_study, workspace, monkeypatch, caplog):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study_adapter, "store_refusal", fail)
    step = a_step(cmd="$(LAUNCHER)[8p] sim")
    step.run["procs"] = 4

    record = adapter_of(slurm_study).submit(step, "sim.sh", str(workspace))

    assert record.submission_code is SubmissionCode.ERROR
    assert "'sim' cannot be submitted: study.sim.run.cmd" in caplog.text
    assert "No space left on device" in caplog.text


def test_without_jobs_no_coordinator_starts(study):
    adapter = adapter_of(study)

    assert adapter.check_jobs([]) == (JobStatusCode.OK, {})
    assert adapter.cancel_jobs([]).cancel_status is CancelCode.OK
    assert coordinator.active() == []


def test_a_second_conductor_of_a_study_ends_at_its_first_submission(study, monkeypatch, caplog):
    monkeypatch.setattr("maestro_celery_plugin.study.conductor_lock.LOCK_LIMIT_S", 0.02)
    adapter = adapter_of(study)
    with FileLock(study.info / "conductor.lock"):
        with pytest.raises(SystemExit, match=r"Another conductor runs the study"):
            adapter.submit(a_step(), "sim.sh", str(study.root / "sim"))
        checked = adapter.check_jobs(["sim#1"])
        cancelled = adapter.cancel_jobs(["sim#1"])

    assert checked == (JobStatusCode.NOJOBS, {})  # ERROR would end the conductor
    assert cancelled.cancel_status is CancelCode.ERROR
    assert f"Another conductor runs the study '{study.root}'; wait for its end" in caplog.text
    assert coordinator.active() == []


def test_the_manifest_of_a_step_record_is_built_once(study, workspace, monkeypatch):
    """Maestro calls the same adapter object to write the scripts of a step record and to submit it."""
    built, submitted = [], []
    monkeypatch.setattr(study_adapter, "build_manifest", lambda *args: built.append(args) or build_manifest(*args))
    monkeypatch.setattr(
        study_adapter, "for_study", lambda plan: types.SimpleNamespace(watchers=[], submit=lambda m: submitted.append(m) or "job")
    )
    adapter = adapter_of(study)
    adapter.write_script(str(workspace), a_step())
    record = adapter.submit(a_step(), "sim.sh", "/other/workspace")

    assert record.job_identifier == "job"
    assert len(built) == 1
    assert [manifest.workspace for manifest in submitted] == ["/other/workspace"]
