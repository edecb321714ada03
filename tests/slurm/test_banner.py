"""A submission command that prints a number before that of the job: the study watches and cancels its own job only."""

from __future__ import annotations

import pytest
from slurm_studies import allocations, assert_each_sample_once, ensemble, job_of
from support import wait_for

# Much longer than a worker needs to start: one allocation is enough.
LONG = "type: slurm, nodes: 1, procs: 1, walltime: 600"
SPEC = """
description: {name: native, description: d}
batch: {type: slurm, nodes: 1}
study:
  - name: job
    description: d
    run: {cmd: "echo ran >> runs", nodes: 1, procs: 1, walltime: "00:05:00"}
  - name: next
    description: d
    run: {cmd: "echo ran >> runs", nodes: 1, procs: 1, walltime: "00:05:00", depends: [job]}
merlin:
  resources: {unassigned: maestro}
"""


@pytest.fixture
def foreign(slurm, tmp_path):
    """The job of another project of the same user, whose number the banner prints."""
    job = slurm.run("sbatch", "--parsable", "-D", str(tmp_path), "-o", "/dev/null", "--wrap", "sleep 600").strip()
    wait_for(lambda: slurm.state(job) == "RUNNING", "the job of the other project")
    yield job
    slurm.run("scancel", job)


@pytest.fixture
def environment(foreign, tmp_path):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "Notice {foreign}: /scratch is down"\nexec /usr/bin/sbatch "$@"\n')
    sbatch.chmod(0o755)
    return {"PATH": f"{sbatch.parent}:/usr/local/bin:/usr/bin:/bin"}


def test_an_allocation_has_the_number_of_its_own_job(launch, slurm, foreign, environment):
    study = launch(ensemble("echo $(A)", count=4, batch=LONG), "-s", "1", name="banner", environment=environment)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}, study.log()
    assert_each_sample_once(study, 4)
    (allocation,) = allocations(study)
    assert allocation["job"] != foreign
    assert f"is {allocation['job']}; its submission has printed another number first, {foreign}." in study.log()
    assert slurm.state(foreign) == "RUNNING"


def test_the_cancellation_of_a_study_spares_the_job_of_the_banner(launch, slurm, foreign, environment):
    study = launch(ensemble("sleep 300", count=2, batch=LONG), "-s", "1", name="banner_cancel", environment=environment)
    job = job_of(study, slurm, "RUNNING")

    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    study.await_end()

    assert job != foreign
    assert slurm.state(foreign) == "RUNNING"
    wait_for(lambda: slurm.state(job) != "RUNNING", "the end of the job")


def test_native_steps_have_the_numbers_of_their_own_jobs(launch, slurm, foreign, environment):
    study = launch(SPEC, "-s", "1", name="banner_native", environment=environment)
    study.await_end()

    assert study.states() == {"job": "FINISHED", "next": "FINISHED"}, study.log()
    assert study.outputs("*/runs") == ["ran\n", "ran\n"]
    assert slurm.state(foreign) == "RUNNING"
