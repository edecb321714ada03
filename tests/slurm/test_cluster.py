"""The cluster of these tests: nodes, parallel steps, limits, preemption, nodes that go down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NODES, SlurmCluster
from support import wait_for

PARALLEL_STEPS = """\
#!/bin/bash
# Each of the two inner steps waits until the other one has begun.
srun --overlap --nodes=1 --ntasks=1 bash -c '
    srun --exact --nodes=1 --ntasks=1 bash -c "$MEET" meet a b &
    srun --exact --nodes=1 --ntasks=1 bash -c "$MEET" meet b a &
    wait
'
"""
MEET = "touch $1; until test -e $2; do sleep 0.1; done; echo $1 met $2"


@pytest.fixture(scope="module")
def overdue(slurm: SlurmCluster) -> str:
    """A job after its time limit, submitted before the other tests: Slurm detects the limit up to 30 s later."""
    job = slurm.submit("--nodes=1", "--output=/dev/null", "--wrap=sleep 300")
    slurm.await_state(job, "RUNNING")
    slurm.limit(job, rest_s=1)
    return job


@pytest.fixture(scope="module", autouse=True)
def _leave_no_job(slurm: SlurmCluster) -> Iterator[None]:
    """Cancel what is left at the end: Slurm may requeue and hold a job whose launch has failed while a node was down."""
    yield
    for job in slurm.queue():
        slurm.attempt("scancel", job)
    wait_for(lambda: not slurm.queue(), "the end of all jobs")


@pytest.fixture(autouse=True)
def _submit_overdue(overdue: str) -> None:
    """Submit the overdue job before the first test of this module."""


def script(directory: Path, text: str) -> Path:
    path = directory / "job.sh"
    path.write_text(text)
    return path


def test_it_has_four_nodes(slurm):
    assert list(slurm.node_states()) == list(NODES)


def test_a_job_on_two_nodes_runs_on_both(slurm, tmp_path):
    job = slurm.submit(
        "--nodes=2", "--output=out", script(tmp_path, "#!/bin/sh\nsrun -N 2 printenv SLURMD_NODENAME\n"), cwd=tmp_path
    )

    slurm.await_state(job, "COMPLETED")

    assert len(set((tmp_path / "out").read_text().split()) & set(NODES)) == 2


def test_steps_run_in_parallel_in_an_allocation(slurm, tmp_path):
    """Given an outer step with --overlap, when two steps of one CPU start in it, then they run in parallel."""
    job = slurm.submit(
        "--nodes=1", "--ntasks=2", "--output=out", f"--export=ALL,MEET={MEET}", script(tmp_path, PARALLEL_STEPS),
        cwd=tmp_path,
    )  # fmt: skip

    slurm.await_state(job, "COMPLETED")

    assert sorted((tmp_path / "out").read_text().splitlines()) == ["a met b", "b met a"]


def test_a_cancelled_job(slurm):
    job = slurm.submit("--nodes=1", "--output=/dev/null", "--wrap=sleep 300")
    slurm.await_state(job, "RUNNING")
    assert job in slurm.queue()

    slurm.run("scancel", job)

    slurm.await_state(job, "CANCELLED")
    wait_for(lambda: job not in slurm.queue(), "the job to leave the queue")


def test_a_failed_job(slurm):
    job = slurm.submit("--nodes=1", "--output=/dev/null", "--wrap=exit 3")

    slurm.await_state(job, "FAILED")


def test_a_job_too_large_for_its_partition_is_refused(slurm):
    answer = slurm.attempt("sbatch", "--partition=small", "--nodes=3", "--wrap=true")

    assert answer.returncode == 1
    assert "Node count specification invalid" in answer.stderr, answer.stderr


def test_a_job_of_higher_priority_preempts(slurm):
    low = slurm.submit("--partition=low", "--nodes=4", "--ntasks-per-node=3", "--output=/dev/null", "--wrap=sleep 300")
    slurm.await_state(low, "RUNNING")

    high = slurm.submit("--partition=high", "--nodes=4", "--ntasks-per-node=3", "--output=/dev/null", "--wrap=true")

    slurm.await_state(low, "PREEMPTED")
    slurm.await_state(high, "COMPLETED")


def test_a_node_that_goes_down(slurm):
    job = slurm.submit("--nodelist=n4", "--no-requeue", "--output=/dev/null", "--wrap=sleep 300")
    slurm.await_state(job, "RUNNING")

    slurm.set_down("n4")

    slurm.await_state(job, "NODE_FAIL")
    slurm.set_up("n4")


def test_an_unknown_job_has_no_state(slurm):
    assert slurm.state("4000000") == ""


def test_a_job_that_reaches_its_limit(slurm, overdue):
    slurm.await_state(overdue, "TIMEOUT")


def test_a_second_cluster_ends_without_a_process(slurm, tmp_path, monkeypatch):
    """Given a long TMPDIR and a running job, when a second cluster ends, then all its processes have ended."""
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))

    with SlurmCluster() as cluster:
        job = cluster.submit("--nodes=2", "--output=/dev/null", "--wrap=srun -N 2 sleep 300")
        cluster.await_state(job, "RUNNING")
        wait_for(lambda: "1" in cluster.run("squeue", "--steps", "--noheader", "--format=%i"), "the step")
        assert cluster.environment != slurm.environment
        assert cluster.processes()

    assert cluster.processes() == []
    assert slurm.run("sinfo", "--noheader", "--format=%P")
