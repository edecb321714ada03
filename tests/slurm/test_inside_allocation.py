"""A study, or workers for a study on another machine, that start inside an allocation."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from slurm_studies import SMALL, Launcher, allocations, assert_each_sample_once, assert_nothing_left, ensemble
from support import BIN, Study, wait_for

COUNT = 12
# Until the test creates the file `go` in its own directory, a sample waits.
WHERE = "echo $SLURM_JOB_ID $SLURMD_NODENAME $(A)\nuntil test -e GO; do sleep 0.1; done"


def in_job(slurm: SlurmCluster, directory: Path, *words: str, nodes: int = 2) -> str:
    """Submit a job that runs a command on its first node; return the job."""
    script = directory / "job.sh"
    script.write_text(f"#!/bin/bash\nexec {shlex.join(words)}\n")
    return slurm.submit(f"--nodes={nodes}", "--time=10", "--exclusive", "--output=job.out", script, cwd=directory)


def where(directory: Path) -> str:
    return WHERE.replace("GO", str(directory / "go"))


def study_in_job(
    launch: Launcher, slurm: SlurmCluster, directory: Path, spec: str, *options: str, **more: int
) -> tuple[Study, str]:
    path = directory / "study.yaml"
    path.write_text(spec)
    study = Study(directory / "study", launch.environment)
    words = (str(BIN / "maestro"), "run", "-y", "-fg", "-s", "2", *options, "-o", str(study.path), str(path))
    return study, in_job(slurm, directory, *words, **more)


def test_a_study_in_a_batch_script(launch, slurm, tmp_path):
    """Given `maestro run -fg` in a job of two nodes, then its workers use both, and the study submits no other job."""
    study, job = study_in_job(launch, slurm, tmp_path, ensemble(where(tmp_path), count=COUNT, batch="type: slurm"))

    study.await_text("sim/*/sim.out", job, count=4)  # two slots on each of two nodes
    wait_for(lambda: slurm.queue() == [job], "the end of the jobs of earlier studies")
    (tmp_path / "go").touch()
    slurm.await_state(job, "COMPLETED", "FAILED")

    assert slurm.state(job) == "COMPLETED", (tmp_path / "job.out").read_text()
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, COUNT)
    seen = [text.split() for text in study.outputs("sim/*/sim.out")]
    assert {words[0] for words in seen} == {job}
    assert len({words[1] for words in seen}) == 2
    assert len(allocations(study)) == 1
    assert_nothing_left(study, slurm)


def test_a_study_in_an_allocation_that_ends_too_early(launch, slurm, tmp_path):
    """Given more samples than the allocation has time for, then explain names the cause, and a resume finishes them."""
    spec = ensemble(
        # An allocation of 10 min starts samples for 25 s: in one slot, at most 7 of 4 s each, and not 8. Slurm does not
        # end it before the study has failed.
        "echo $(A) >> runs\nsleep 4", count=8, batch="type: slurm",
        group="args: --concurrency 1, drain: 575, warn: 6, idle_limit: 5",
    )  # fmt: skip
    study, job = study_in_job(launch, slurm, tmp_path, spec, "-r", "3", nodes=1)

    slurm.await_state(job, "COMPLETED", "FAILED")

    assert study.states() == {"sim": "FAILED"}
    text = study.command("maestro-celery", "explain", str(study.path)).stdout
    assert f"The allocation around this study (job {job}) ends" in text, text
    assert "samples remain" in text, text
    assert_nothing_left(study, slurm)
    answer = study.command("maestro-celery", "resume", str(study.path))
    assert answer.returncode == 0, answer.stderr
    study.await_end()
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, 8)
    assert_nothing_left(study, slurm)


def test_a_study_resumed_in_an_allocation(launch, slurm, tmp_path):
    """Given a conductor killed while its job runs, when a conductor starts inside another job, then it adopts the job."""
    study = launch(ensemble(where(tmp_path), count=COUNT, batch=SMALL.replace("00:01:00", "00:10:00"), group="args: -c 1"), name="resumed")
    study.await_text("sim/*/sim.out", " ", 1)
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    resume = (str(BIN / "maestro-celery"), "resume", "--foreground", str(study.path))

    job = in_job(slurm, tmp_path, *resume, nodes=1)
    wait_for(lambda: study.processes("bin/maestro-celery resume"), "the other conductor")
    (tmp_path / "go").touch()
    slurm.await_state(job, "COMPLETED", "FAILED")

    assert study.states() == {"sim": "FINISHED"}, (tmp_path / "job.out").read_text()
    assert_each_sample_once(study, COUNT)
    assert len(allocations(study)) == 1
    assert job not in {text.split()[0] for text in study.outputs("sim/*/sim.out")}
    assert_nothing_left(study, slurm)


@pytest.fixture
def remote_study(launch: Launcher, tmp_path: Path) -> Study:
    """A study with a worker group for another machine."""
    spec = ensemble(where(tmp_path), count=COUNT, batch="type: slurm", group="machines: [elsewhere], args: --concurrency 1")
    return launch(spec, "-s", "2", name="elsewhere")


def test_workers_that_a_user_starts_in_an_allocation(remote_study, slurm, tmp_path):
    """Given a group for another machine, then explain names it, and workers in an allocation run the samples."""
    study = remote_study
    wait_for(lambda: study.states().get("sim") == "PENDING", "the submission of the step")

    def explained() -> str:
        return study.command("maestro-celery", "explain", str(study.path)).stdout

    assert "waits for its workers on elsewhere" in explained()
    assert f"maestro-celery workers {study.path} --group w" in explained()
    job = in_job(slurm, tmp_path, str(BIN / "maestro-celery"), "workers", str(study.path), "--group", "w")
    wait_for(lambda: study.states().get("sim") == "RUNNING", "the start of the samples")
    study.await_text("sim/*/sim.out", job, count=2)  # one slot on each of two nodes
    (tmp_path / "go").touch()
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, COUNT)
    seen = [text.split() for text in study.outputs("sim/*/sim.out")]
    assert {words[0] for words in seen} == {job}
    assert len({words[1] for words in seen}) == 2
    slurm.await_state(job, "COMPLETED")
    assert allocations(study) == []
    assert_nothing_left(study, slurm)


def test_the_preview_equals_the_submitted_script(launch, slurm, tmp_path):
    """Given a specification, then `maestro-celery allocation` prints the script that a run submits."""
    spec = ensemble("true # $(A)", count=2, batch="type: slurm, nodes: 2, queue: low, walltime: 300")
    study = launch(spec, name="preview")
    study.await_end()
    used = next(study.path.glob("merlin_info/allocations/w/1/*.sh")).read_text()

    answer = study.command("maestro-celery", "allocation", str(study.path.parent / "preview.yaml"))

    assert answer.returncode == 0, answer.stderr
    title, _, script = answer.stdout.partition("#!")
    assert "allocation 'w' of worker group 'w', by slurm" in title
    session = next(word for word in script.split() if word.endswith("/merlin_info/session"))
    name = session.split("/")[-3]
    expected = f"#!{script}".replace(session, f"{study.path}/merlin_info/session").replace(name, study.path.name)
    assert expected.strip() == used.strip()
