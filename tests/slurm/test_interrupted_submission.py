"""A conductor that dies after the submission of a job, before it stores the job: the next conductor finds the job."""

from __future__ import annotations

import pytest
from slurm_studies import allocations, assert_each_sample_once, assert_nothing_left, ensemble
from support import Study, wait_for

COUNT = 6
# Submits with the real sbatch; the first time, it does not end before the test has killed the conductor, which waits for
# its end to read the number of the job.
SBATCH = """#!/bin/bash
/usr/bin/sbatch "$@"
if mkdir "$INTERRUPTED" 2>/dev/null; then
    until test -e "$INTERRUPTED/go"; do sleep 0.1; done
fi
"""


@pytest.fixture
def interrupted(launch, tmp_path):
    """Run a specification whose conductor dies during its first submission."""

    def run(spec: str, name: str) -> Study:
        sbatch = tmp_path / "bin" / "sbatch"
        sbatch.parent.mkdir()
        sbatch.write_text(SBATCH)
        sbatch.chmod(0o755)
        environment = {
            "PATH": f"{sbatch.parent}:/usr/local/bin:/usr/bin:/bin",
            "INTERRUPTED": str(tmp_path / "interrupted"),
        }
        study = launch(spec, name=name, environment=environment)
        wait_for((tmp_path / "interrupted").exists, "the submission")
        study.kill_conductor()  # for good: the host would start another one, which finds the job before the test looks
        wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
        (tmp_path / "interrupted" / "go").touch()
        return study

    return run


def resume(study: Study) -> None:
    answer = study.command("maestro-celery", "resume", "-s", "1", str(study.path))
    assert answer.returncode == 0, answer.stderr


def jobs_of(study: Study, slurm) -> list[str]:
    lines = slurm.run("squeue", "--noheader", "--states=all", "--format=%i|%Z").splitlines()
    return [line.partition("|")[0] for line in lines if line.partition("|")[2].startswith(f"{study.path}/")]


def test_the_job_of_an_allocation_is_adopted(interrupted, slurm):
    batch = "type: slurm, nodes: 1, procs: 1, walltime: 600"
    study = interrupted(ensemble("echo $(A)", count=COUNT, batch=batch), "interrupted_allocation")
    assert [one["job"] for one in allocations(study)] == [None]
    (job,) = jobs_of(study, slurm)

    resume(study)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, COUNT)
    assert [one["job"] for one in allocations(study)] == [job]
    assert jobs_of(study, slurm) == [job]
    assert_nothing_left(study, slurm)


def test_the_job_of_a_native_step_is_adopted(interrupted, slurm):
    spec = """
description: {name: native, description: d}
batch: {type: slurm, nodes: 1}
study:
  - name: job
    description: d
    run: {cmd: "echo ran >> runs; until test -e $(SPECROOT)/go.native; do sleep 0.1; done", nodes: 1, procs: 1, walltime: "00:05:00"}
merlin:
  resources: {unassigned: maestro}
"""
    study = interrupted(spec, "interrupted_native")
    (job,) = jobs_of(study, slurm)

    resume(study)
    (study.path.parent / "go.native").touch()
    study.await_end()

    assert study.states() == {"job": "FINISHED"}
    assert study.outputs("job/runs") == ["ran\n"]
    assert jobs_of(study, slurm) == [job]
