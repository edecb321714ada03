"""Several worker groups: separate or shared allocations, which end when no step needs them."""

from __future__ import annotations

import pytest
from slurm_cluster import SlurmCluster
from slurm_studies import Launcher, allocations, assert_each_sample_once, assert_nothing_left
from support import Study, wait_for

from maestro_celery_plugin.study.status_csv import read_rows

COUNT = 12
# Until the test creates the file, a sample waits.
HOLD = "until test -e $(SPECROOT)/go.NAME; do sleep 0.1; done"
WHERE = "echo $SLURM_JOB_ID $SLURMD_NODENAME $SLURM_JOB_NUM_NODES $(A)"
STEP = """
  - name: NAME
    description: d
    run: {cmd: "CMD", task_queue: NAME, depends: [DEPENDS]}"""
SPEC = """
description: {name: groups, description: d}
batch: {BATCH}
study:STEPS
merlin:
  resources:
    workers: WORKERS
  samples:
    generate: {cmd: "seq 1 12 > $(MERLIN_INFO)/a.csv"}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [A]
"""


def spec(*steps: tuple[str, str, str], workers: str = "{}", batch: str = "type: slurm, walltime: 600") -> str:
    """Return a specification of steps (name, command after `WHERE`, steps that it depends on)."""
    texts = [
        STEP.replace("NAME", name).replace("CMD", f"{WHERE} && {cmd}").replace("DEPENDS", needs)
        for name, cmd, needs in steps
    ]
    return SPEC.replace("STEPS", "".join(texts)).replace("WORKERS", workers).replace("BATCH", batch)


def places(study: Study, step: str) -> list[tuple[str, str, str]]:
    """Return job, node and number of nodes of each sample of a step."""
    texts = study.outputs(f"{step}/*/{step}.out")
    assert len(texts) == COUNT
    return [tuple(text.split()[:3]) for text in texts]


def release_samples(study: Study) -> None:
    (study.path.parent / f"go.{study.path.name}").touch()


def finish(study: Study, slurm: SlurmCluster, *records: int) -> None:
    study.await_end()
    assert set(study.states().values()) == {"FINISHED"}
    for record in records:
        assert_each_sample_once(study, COUNT, record)
    assert {row.restarts for row in read_rows(study.path)} == {0}
    assert_nothing_left(study, slurm)


def test_groups_of_different_sizes_work_in_parallel(launch: Launcher, slurm):
    """Given a group with one node and one with three, then both work at the same time, on all their nodes."""
    workers = "{a: {steps: [one], nodes: 1, args: -c 1}, b: {steps: [three], nodes: 3, args: -c 2}}"
    hold = HOLD.replace("NAME", "sizes")
    study = launch(spec(("one", hold, ""), ("three", hold, ""), workers=workers), name="sizes")

    def busy_nodes() -> dict[str, set[str]]:
        busy = [worker for worker in study.status()["workers"] if worker["state"] == "busy"]
        return {group: {w["node"] for w in busy if w["group"] == group} for group in "ab"}

    wait_for(lambda: list(map(len, busy_nodes().values())) == [1, 3], "work on all nodes")
    release_samples(study)
    finish(study, slurm, 1, 2)

    assert {nodes for _, _, nodes in places(study, "one")} == {"1"}
    assert {nodes for _, _, nodes in places(study, "three")} == {"3"}
    assert len({node for _, node, _ in places(study, "three")}) == 3
    assert len(allocations(study)) == 2


def test_groups_that_share_an_allocation(launch, slurm):
    """Given two groups that name one allocation, then one job has the workers of both."""
    shared = "allocation: both, nodes: 2, args: -c 1"
    workers = f"{{a: {{steps: [one], {shared}}}, b: {{steps: [two], {shared}}}}}"
    study = launch(spec(("one", "sleep 0.3", ""), ("two", "sleep 0.3", ""), workers=workers), name="shared")

    finish(study, slurm, 1, 2)

    assert len({job for job, _, _ in places(study, "one") + places(study, "two")}) == 1
    assert {nodes for _, _, nodes in places(study, "one") + places(study, "two")} == {"2"}
    assert [path.name for path in study.path.glob("merlin_info/allocations/*")] == ["both"]
    assert len(allocations(study)) == 1


def test_a_batch_block_with_only_a_type(launch, slurm):
    """Given only `batch: {type: slurm}`, then the workers have one whole node of the default partition."""
    study = launch(spec(("one", "sleep 0.1", ""), workers="{}", batch="type: slurm"), name="bare")

    finish(study, slurm, 1)

    assert {nodes for _, _, nodes in places(study, "one")} == {"1"}
    assert len(allocations(study)) == 1


@pytest.mark.parametrize("last", ["none", "later"])
def test_an_allocation_without_work_ends(launch, slurm, last):
    """Given a step of group a, then a step of group b, then the job of a ends while b works.

    With a later step of a, the workers of a leave after their idle limit. The later step opens another allocation;
    this is not a restart.
    """
    again = [("again", "true", "two")] if last == "later" else []
    steps_of_a = ", ".join(["one", *(name for name, _, _ in again)])
    workers = f"{{a: {{steps: [{steps_of_a}], args: -c 4, idle_limit: 5}}, b: {{steps: [two], args: -c 4}}}}"
    hold = HOLD.replace("NAME", f"ended_{last}")
    study = launch(spec(("one", "true", ""), ("two", hold, "one"), *again, workers=workers), name=f"ended_{last}")

    wait_for(lambda: study.states().get("two") == "RUNNING", "the second step")
    study.await_text("two/*/two.out", "", 1)
    job = allocations(study)[0]["job"]
    wait_for(lambda: slurm.state(job) in ("COMPLETED", "CANCELLED"), "the end of the first allocation")
    assert study.states()["two"] == "RUNNING"
    release_samples(study)
    finish(study, slurm, *range(1, 3 + len(again)))

    assert len(allocations(study)) == 2 + len(again)


def test_a_cancelled_allocation_is_not_opened_again_while_another_group_works(launch, slurm):
    """Given two groups that serve one step, when the job of one is cancelled, then the other group runs the samples."""
    batch = "type: slurm, nodes: 1, procs: 1, walltime: 600"
    workers = "{a: {steps: [one], args: -c 1}, b: {steps: [one], args: -c 1}}"
    text = spec(("one", HOLD.replace("NAME", "overlap"), ""), workers=workers, batch=batch)
    study = launch(text.replace("  resources:", "  resources:\n    overlap: true"), name="overlap")
    wait_for(lambda: len(study.status()["workers"]) == 2, "both groups")
    first, second = (one["job"] for one in allocations(study))

    slurm.run("scancel", first)
    slurm.await_state(first, "CANCELLED")
    release_samples(study)
    finish(study, slurm, 1)

    assert [one["job"] for one in allocations(study)] == [first, second]
