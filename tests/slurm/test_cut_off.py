"""A conductor that dies between the submission of a job and its note of it: the next one finds that job."""

from __future__ import annotations

import pytest
from slurm_studies import allocations, assert_each_sample_once, assert_nothing_left, ensemble
from support import Study, wait_for

COUNT = 6
# Submits as the real one does, and kills the conductor before it can read what was submitted.
SBATCH = """#!/bin/bash
/usr/bin/sbatch "$@"
if mkdir "$CUT_OFF" 2>/dev/null; then
    kill -9 "$(tr -dc 0-9 <<< "$(grep -o '"pid": [0-9]*' "$STUDY/merlin_info/session/conductor.json")")"
fi
"""


@pytest.fixture
def cut_off(launch, tmp_path):
    """Run a specification whose conductor dies at its first submission."""

    def run(spec: str, name: str) -> Study:
        sbatch = tmp_path / "bin" / "sbatch"
        sbatch.parent.mkdir()
        sbatch.write_text(SBATCH)
        sbatch.chmod(0o755)
        environment = {
            "PATH": f"{sbatch.parent}:/usr/local/bin:/usr/bin:/bin",
            "CUT_OFF": str(tmp_path / "cut_off"),
            "STUDY": str(launch._directory / name),
        }
        study = launch(spec, name=name, environment=environment)
        wait_for((tmp_path / "cut_off").exists, "the submission")
        wait_for(lambda: not study.processes("bin/conductor"), "the conductor's end")
        return study

    return run


def resume(study: Study) -> None:
    answer = study.command("maestro-celery", "resume", str(study.path))
    assert answer.returncode == 0, answer.stderr


def jobs_of(study: Study, slurm) -> list[str]:
    lines = slurm.run("squeue", "--noheader", "--states=all", "--format=%i|%Z").splitlines()
    return [line.partition("|")[0] for line in lines if line.partition("|")[2].startswith(f"{study.path}/")]


def test_the_job_of_an_allocation_is_adopted(cut_off, slurm):
    batch = "type: slurm, nodes: 1, procs: 1, walltime: 600"
    study = cut_off(ensemble("echo $(A)", count=COUNT, batch=batch), "cut_off_allocation")
    assert [one["job"] for one in allocations(study)] == [None]
    (job,) = jobs_of(study, slurm)

    resume(study)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, COUNT)
    assert [one["job"] for one in allocations(study)] == [job]
    assert jobs_of(study, slurm) == [job]
    assert_nothing_left(study, slurm)


def test_the_job_of_a_plain_step_is_adopted(cut_off, slurm):
    spec = """
description: {name: plain, description: d}
batch: {type: slurm, nodes: 1}
study:
  - name: job
    description: d
    run: {cmd: "echo ran >> runs; sleep 8", nodes: 1, procs: 1, walltime: "00:05:00"}
merlin:
  resources: {unassigned: maestro}
"""
    study = cut_off(spec, "cut_off_plain")
    (job,) = jobs_of(study, slurm)

    resume(study)
    study.await_end()

    assert study.states() == {"job": "FINISHED"}
    assert study.outputs("job/runs") == ["ran\n"]
    assert jobs_of(study, slurm) == [job]
