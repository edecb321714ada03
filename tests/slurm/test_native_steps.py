"""Native steps as separate Slurm batch jobs, together with samples on workers of this machine."""

from __future__ import annotations

import pytest
import yaml
from support import needed, wait_for

MERLIN = {
    "resources": {
        "unassigned": "maestro",
        "workers": {"w": {"args": "--concurrency 2", "batch": {"type": "local"}, "steps": ["all"]}},
    },
    "samples": {"generate": {"cmd": "seq 1 3 > $(MERLIN_INFO)/a.csv"}, "file": "$(MERLIN_INFO)/a.csv", "column_labels": ["A"]},
}
SIM = {"cmd": "echo sim $(A) >> $(SPECROOT)/ran"}
SLOW = "echo job >> $(SPECROOT)/ran; until test -e $(SPECROOT)/go; do sleep 0.1; done; echo done >> $(SPECROOT)/ran"
POLL = ("-s", "1")


@pytest.fixture
def environment(environment, slurm):
    return {**environment, **slurm.environment}


def spec(**steps: dict) -> str:
    """Return a specification of steps; by default, a step depends on the step before it."""
    study: list[dict] = []
    for name, run in steps.items():
        depends = [study[-1]["name"]] if study else []
        study.append({"name": name, "description": name, "run": {"depends": depends, **run}})
    blocks = {"description": {"name": "mixed", "description": "d"}, "batch": {"type": "slurm", "queue": "small"}}
    return yaml.safe_dump({**blocks, "study": study, "merlin": MERLIN}, sort_keys=False)


def ran(study) -> list[str]:
    return (study.path.parent / "ran").read_text().splitlines()


def test_a_batch_job_between_samples(run, slurm):
    """Given a native step with nodes, then it is a batch job with Maestro's launcher and the plugin's tokens."""
    job = {"nodes": 1, "procs": 1, "cmd": "$(LAUNCHER) printenv SLURM_JOB_PARTITION; echo job $(MERLIN_GLOB_PATH) >> $(SPECROOT)/ran"}
    local = {"cmd": "echo local ${SLURM_JOB_ID:-no job} >> $(SPECROOT)/ran"}
    study = run(spec(sim=SIM, job=job, local=local, after={"cmd": "echo after $(A) >> $(SPECROOT)/ran"}), *POLL, foreground=True)

    assert set(study.states().values()) == {"FINISHED"}, study.output
    assert [line.split()[0] for line in ran(study)] == ["sim"] * 3 + ["job", "local"] + ["after"] * 3
    assert {"job */", "local no job"} <= set(ran(study))
    assert study.outputs("job/job.out") == ["small\n"]
    script = study.outputs("job/job.slurm.sh")[0]
    assert "#SBATCH --partition=small\n" in script
    assert "srun -n 1 -N 1 printenv" in script
    wait_for(lambda: not slurm.queue(), "the end of the batch job")


def test_a_failing_batch_job_fails_its_dependent_step(run):
    study = run(spec(job={"nodes": 1, "cmd": "exit 3"}, sim=SIM), *POLL, foreground=True)

    assert study.states() == {"job": "FAILED", "sim": "FAILED"}


def test_cancel_ends_the_batch_job_and_the_samples(run, slurm):
    study = run(spec(job={"nodes": 1, "cmd": SLOW}, sim={"cmd": "echo $(A) > begun; sleep 300", "depends": []}), *POLL)
    study.await_text("sim/*/begun", count=2)
    study.await_text("../ran", "job")
    assert study.status()["steps"][0]["state"] in ("PENDING", "RUNNING")

    study.command("maestro", "cancel", "-y", str(study.path))
    study.await_end()

    assert study.states() == {"job": "CANCELLED", "sim": "CANCELLED"}
    wait_for(lambda: not slurm.queue(), "the end of the batch job")


def interrupted(run):
    """Return a study whose conductor was killed while the batch job of its second step ran."""
    study = run(spec(first={"nodes": 1, "cmd": "echo first >> $(SPECROOT)/ran"}, job={"nodes": 1, "cmd": SLOW}, sim=SIM), *POLL)
    study.await_text("../ran", "job")
    wait_for(lambda: study.states().get("job") == "RUNNING", "the state of the job in Maestro")
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    assert study.status()["state"] == "INTERRUPTED"
    return study


@pytest.mark.parametrize("when", ["running", "finished"])
def test_a_batch_job_of_a_killed_conductor_continues(run, slurm, when):
    """Given a batch job that outlives its conductor, when the study is resumed, then it is not submitted again."""
    study = interrupted(run)
    if when == "finished":
        (study.path.parent / "go").touch()
        wait_for(lambda: not slurm.queue(), "the end of the batch job")

    assert study.command("maestro-celery", "resume", "-s", "1", str(study.path)).returncode == 0
    (study.path.parent / "go").touch()
    study.await_end()

    assert set(study.states().values()) == {"FINISHED"}
    assert ran(study)[:3] == ["first", "job", "done"]
    assert len(ran(study)) == 6


# `squeue` of a cluster whose controller is away while the file exists.
SQUEUE = """#!/bin/sh
if test -e {away}; then
    echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
exec {squeue} "$@"
"""


def test_a_batch_job_that_slurm_does_not_report_now_continues(run, slurm, tmp_path):
    """Given a controller that is away when the study is resumed, then the job is not submitted a second time."""
    study = interrupted(run)
    away = tmp_path / "away"
    away.touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").write_text(SQUEUE.format(away=away, squeue=needed("squeue")))
    (tmp_path / "bin" / "squeue").chmod(0o755)
    study.environment["PATH"] = f"{tmp_path / 'bin'}:{study.environment['PATH']}"

    assert study.command("maestro-celery", "resume", "-s", "1", str(study.path)).returncode == 0
    wait_for(lambda: "The submission of 'job' waits for the batch system" in study.log(), "the question to Slurm")
    away.unlink()
    (study.path.parent / "go").touch()
    study.await_end()

    assert set(study.states().values()) == {"FINISHED"}
    assert ran(study)[:3] == ["first", "job", "done"]
    assert ran(study).count("job") == 1


def test_cancel_ends_a_batch_job_of_a_killed_conductor(run, slurm):
    study = interrupted(run)

    answer = study.command("maestro", "cancel", "-y", str(study.path))

    assert "of 'job' is cancelled." in answer.stdout
    wait_for(lambda: not slurm.queue(), "the end of the batch job")


def test_a_batch_job_that_was_cancelled_runs_again(run, slurm):
    study = interrupted(run)
    slurm.run("scancel", "--user=root")
    wait_for(lambda: not slurm.queue(), "the end of the batch job")
    (study.path.parent / "go").touch()

    answer = study.command("maestro-celery", "resume", "-s", "1", "-fg", str(study.path))

    assert answer.returncode == 0, answer.stderr
    assert ran(study)[:4] == ["first", "job", "job", "done"]
