"""Allocations that end before their time limit: cancelled, preempted, refused, or without workers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from slurm_studies import (
    allocations,
    assert_each_sample_once,
    assert_nothing_left,
    codes,
    ensemble,
    job_of,
)
from support import Study, wait_for

from maestro_celery_plugin.ledger.entries import Kind

COUNT = 6
LONG = SMALL = "type: slurm, nodes: 1, procs: 1, walltime: 600"
# At their first attempt, the samples wait until the test creates a file.
WAITS = "echo cmd >> runs\necho begun $(A)\nuntil test -e $(SPECROOT)/go.NAME; do sleep 0.2; done"
AGAIN = "echo restart >> runs"


def waiting(name: str, batch: str = LONG, group: str = "args: --concurrency 2", cmd: str = WAITS) -> str:
    return ensemble(cmd.replace("NAME", name), restart=AGAIN, count=COUNT, batch=batch, group=group)


def release_samples(study: Study) -> None:
    (study.path.parent / f"go.{study.path.name}").touch()


def begun(study: Study, count: int = 2) -> None:
    study.await_text("sim/*/sim.out", "begun", count)


def explained(study: Study) -> str:
    answer = study.command("maestro-celery", "explain", str(study.path))
    assert answer.stdout, answer.stderr
    return answer.stdout


def assert_none_failed(study: Study) -> None:
    samples = study.status()["steps"][0]["samples"]
    assert samples["failed"] == 0, (samples, codes(study))


def resume(study: Study) -> None:
    answer = study.command("maestro-celery", "resume", str(study.path))
    assert answer.returncode == 0, answer.stderr


# --- allocations that have begun or wait ---


def test_a_running_job_is_cancelled(launch, slurm):
    """Given running samples, when a user cancels their job, then the step is cancelled, and a resume finishes it."""
    study = launch(waiting("scancelled"), "-r", "3", name="scancelled")
    begun(study)

    slurm.run("scancel", job_of(study, slurm, "RUNNING"))
    study.await_end()

    assert study.states() == {"sim": "CANCELLED"}
    assert [one["state"] for one in allocations(study)] == ["CANCELLED"]
    assert_none_failed(study)
    assert len(codes(study, Kind.STOPPED)) == 2
    assert "it was cancelled" in explained(study)
    assert_nothing_left(study, slurm)

    release_samples(study)
    resume(study)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, COUNT)
    assert sorted(study.outputs("sim/*/runs")) == ["cmd\n"] * 4 + ["cmd\nrestart\n"] * 2
    assert_nothing_left(study, slurm)


def test_a_pending_job_is_cancelled(launch, slurm):
    """Given a pending job, then explain shows why it waits; when a user cancels it, then the step is cancelled."""
    slurm.run("scontrol", "update", "PartitionName=small", "State=DOWN")
    study = launch(waiting("pending", f"{LONG}, queue: small").replace("600", "1200"), "-r", "3", name="pending")
    job = job_of(study, slurm, "PENDING")
    wait_for(lambda: "PartitionDown" in explained(study), "the reason why the job waits")
    assert study.states() == {"sim": "PENDING"}

    slurm.run("scancel", job)
    study.await_end()
    slurm.run("scontrol", "update", "PartitionName=small", "State=UP")

    assert study.states() == {"sim": "CANCELLED"}
    assert len(allocations(study)) == 1
    assert "it was cancelled" in explained(study)
    assert_nothing_left(study, slurm)

    release_samples(study)
    resume(study)
    study.await_end()

    assert_each_sample_once(study, COUNT)
    assert_nothing_left(study, slurm)


def test_a_time_limit_that_was_reduced(launch, slurm):
    """Given workers that do not know a new limit, when Slurm ends them, then no sample has failed."""
    study = launch(waiting("cut"), "-r", "3", name="cut")
    begun(study)
    job = job_of(study, slurm, "RUNNING")

    slurm.limit(job, rest_s=1)
    slurm.await_state(job, "TIMEOUT")
    release_samples(study)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert_none_failed(study)
    assert next(one["state"] for one in allocations(study)) == "TIMED_OUT"
    assert_each_sample_once(study, COUNT)
    assert_nothing_left(study, slurm)


def test_preempted(launch, slurm):
    """Given a job with low priority, when a job with high priority takes its node, then the samples run later."""
    study = launch(
        waiting("preempted", "type: slurm, nodes: 1, queue: low, walltime: 600"), "-r", "3", name="preempted"
    )
    begun(study)
    low = job_of(study, slurm, "RUNNING")

    high = slurm.submit("--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")
    slurm.await_state(low, "PREEMPTED")
    release_samples(study)
    slurm.await_state(high, "COMPLETED")
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert_none_failed(study)
    assert next(one["state"] for one in allocations(study)) == "PREEMPTED"
    assert_each_sample_once(study, COUNT)
    assert_nothing_left(study, slurm)


def test_a_node_goes_down(launch, slurm):
    """Given an allocation of two nodes, when one of them goes down, then all samples finish."""
    study = launch(waiting("down", "type: slurm, nodes: 2, walltime: 600"), "-r", "3", name="down")
    begun(study, 4)
    job = job_of(study, slurm, "RUNNING")
    batch_host = slurm.run("squeue", "--noheader", f"--jobs={job}", "--format=%B").strip()
    nodes = {worker["node"] for worker in study.status()["workers"]}
    assert len(nodes) == 2

    slurm.set_down(*(nodes - {batch_host}))
    try:
        wait_for(lambda: {**codes(study, Kind.STOPPED), **codes(study, Kind.LOST)}, "the end of samples on this node")
        release_samples(study)
        study.await_end()
    finally:
        slurm.set_up(*(nodes - {batch_host}))

    assert study.states() == {"sim": "FINISHED"}
    assert_none_failed(study)
    assert_each_sample_once(study, COUNT)
    assert len(allocations(study)) == 1
    assert_nothing_left(study, slurm)


# --- allocations that fail at once ---


@pytest.fixture(scope="module")
def broken_celery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a module `celery` whose import fails."""
    directory = tmp_path_factory.mktemp("broken")
    (directory / "celery.py").write_text("raise ImportError('celery has been broken for a test')\n")
    return directory


def test_allocations_that_fail_at_once(launch, slurm, broken_celery):
    """Given jobs that Slurm refuses or whose workers do not start, then the step fails after three jobs."""
    begin = time.monotonic()
    reasons = {
        "refused": "invalid partition",
        "unlaunched": "no_such_launcher",
        "unstarted": "celery has been broken for a test",
    }
    batches = {
        "refused": f"{LONG}, queue: nonsense",
        "unlaunched": f"{LONG}, worker_launch: no_such_launcher",
        "unstarted": f"{LONG}, launch_pre: 'PYTHONPATH={broken_celery}'",
    }
    studies = {name: launch(waiting(name, batch), "-r", "3", name=name) for name, batch in batches.items()}

    for study in studies.values():
        study.await_end()
    print(f"failed after {time.monotonic() - begin:.0f} s")

    for name, study in studies.items():
        assert study.states() == {"sim": "FAILED"}, name
        assert len(allocations(study)) == 3, name
        assert reasons[name] in explained(study), explained(study)
        assert reasons[name] in study.log()
        assert_nothing_left(study, slurm)
