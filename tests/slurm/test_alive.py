"""A running allocation: killed processes, cancellation, the end without a conductor, parallel programs."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from slurm_studies import allocations, assert_each_sample_once, assert_nothing_left, codes, ensemble, job_of
from support import Study, kill, wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger

COUNT = 24
BATCH = "type: slurm, nodes: 2, walltime: 600"
# The samples that start first end. The others wait until the test has killed something, so that the study still runs then.
ENDING = 4
HELD = """\
echo "cmd $(A)" >> runs
echo begun
for n in 1 2 3 4; do mkdir $(SPECROOT)/NAME.$n 2> /dev/null && ends=yes && sleep 1 && break; done
until [ "$ends" ] || [ -e $(SPECROOT)/go.NAME ]; do sleep 0.1; done
"""
AGAIN = 'echo "restart $(A)" >> runs'


def held(name: str, batch: str = BATCH) -> str:
    return ensemble(HELD.replace("NAME", name), restart=AGAIN, count=COUNT, batch=batch)


def release_samples(study: Study) -> None:
    (study.path.parent / f"go.{study.path.name}").touch()


def begun(study: Study, count: int) -> None:
    study.await_text("sim/*/sim.out", "begun", count)


def await_held(study: Study, slots: int = 4) -> None:
    """Wait until the first samples have ended, and each slot has a sample that waits."""
    begun(study, ENDING + slots)
    wait_for(lambda: len(codes(study)) == ENDING, "the end of the first samples")


def assert_complete(study: Study, slots: int) -> None:
    """Check that each sample has finished once, and that at most as many have run twice as slots were killed."""
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, COUNT)
    assert sum(text.count("\n") for text in study.outputs("sim/*/runs")) <= COUNT + slots
    assert len(codes(study, Kind.LOST)) <= slots


def logs(study: Study) -> list[str]:
    """Return the names of the workers that have begun."""
    return sorted(path.stem for path in study.path.glob("merlin_info/workers/*.log"))


def beat_of(study: Study) -> dict[str, Any]:
    """Return the heartbeat of a worker."""
    path = next((study.path / "merlin_info" / "session" / "workers").glob("*.json"))
    values: dict[str, Any] = json.loads(path.read_text())
    return values


@pytest.mark.parametrize("victim", ["process", "supervisor"])
def test_a_killed_worker(launch, slurm, victim):
    """Given an allocation of two nodes, when a worker or its supervisor is killed, then no sample is lost."""
    study = launch(held(f"killed_{victim}"), "-r", "2", name=f"killed_{victim}")
    await_held(study)

    kill(beat_of(study)[victim][0])
    # A supervisor replaces its worker. The other worker could end the study before, if its samples did not wait.
    names = ["w-1-1", "w-1-2", "w-1-3"][: 3 if victim == "process" else 2]
    wait_for(lambda: logs(study) == names, "the next worker")
    release_samples(study)
    study.await_end()

    assert_complete(study, slots=2)
    assert len(allocations(study)) == 1
    assert logs(study) == names
    assert_nothing_left(study, slurm)


def test_a_killed_worker_of_an_allocation_with_one_node(launch, slurm):
    """Given a supervisor that is killed with its worker, then the allocation ends, and the next one continues."""
    batch = "type: slurm, nodes: 1, procs: 1, walltime: 600"
    study = launch(held("one_node", batch), "-r", "2", name="one_node")
    await_held(study, slots=2)

    beat = beat_of(study)
    kill(beat["supervisor"][0], beat["process"][0])
    release_samples(study)
    study.await_end()

    assert_complete(study, slots=2)
    assert_nothing_left(study, slurm)


def test_a_killed_broker(launch, slurm):
    """Given workers in an allocation, when broker and supervisor are killed, then they find the new broker."""
    study = launch(held("broker"), "-r", "2", name="broker")
    await_held(study)

    kill(*study.processes("maestro_celery_plugin.host"), *study.server())
    release_samples(study)
    study.await_end()

    assert_complete(study, slots=4)
    assert len(allocations(study)) == 1
    assert_nothing_left(study, slurm)


def test_cancelled_by_maestro(launch, slurm):
    """Given samples that ignore SIGTERM and have no end, when the study is cancelled, then they end."""
    cmd = "trap 'echo received >> signals' TERM\necho begun $(A)\nwhile true; do sleep 0.2; done"
    study = launch(ensemble(cmd, count=COUNT, batch=BATCH), name="cancelled")
    begun(study, 4)
    (heartbeat,) = (study.path / "merlin_info" / "session" / "conductors").glob("*.json")
    wait_for(lambda: json.loads(heartbeat.read_text())["working"] == ["w/1"], "the conductor's heartbeat with w/1")
    job = job_of(study, slurm, "RUNNING")
    begin = time.monotonic()

    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    wait_for(lambda: not study.processes("sim.sh"), "the end of the samples")
    print(f"samples have ended after {time.monotonic() - begin:.1f} s")
    study.await_end()

    assert study.states() == {"sim": "CANCELLED"}
    # One that still runs when the job is cancelled receives a second signal.
    assert [set(text.splitlines()) for text in study.outputs("sim/*/signals")] == [{"received"}] * 4
    assert job not in slurm.queue()
    assert_nothing_left(study, slurm)


def test_the_allocation_of_a_killed_conductor_ends(launch, slurm):
    """Given an idle limit of 5 s, when the conductor is killed, then the allocation ends by itself."""
    cmd = "echo begun $(A)\nuntil test -e $(SPECROOT)/go.conductor; do sleep 0.1; done"
    study = launch(
        ensemble(cmd, count=COUNT, batch=BATCH, group="args: --concurrency 2, idle_limit: 5"), name="conductor"
    )
    begun(study, 4)  # both workers: one that starts after the end of the other one would find no broker
    job = job_of(study, slurm, "RUNNING")

    study.kill_conductor()
    release_samples(study)

    slurm.await_state(job, "COMPLETED", "CANCELLED", "FAILED")
    assert slurm.state(job) == "COMPLETED"
    wait_for(lambda: not study.processes(), "the end of the broker")
    assert_nothing_left(study, slurm)


def test_cancel_ends_the_allocation_of_a_killed_conductor(launch, slurm):
    study = launch(ensemble("echo begun $(A)\nsleep 300", count=COUNT, batch=BATCH), name="orphaned")
    begun(study, 2)
    job = job_of(study, slurm, "RUNNING")
    study.kill_conductor()

    answer = study.command("maestro", "cancel", "-y", str(study.path))

    assert f"Job {job} of allocation 'w/1' is cancelled." in answer.stdout
    wait_for(lambda: not slurm.queue(), "the end of the job")
    wait_for(lambda: not study.processes(), "the end of the broker")
    assert_nothing_left(study, slurm)


# --- parallel programs ---

# The tasks of the first samples wait for the test: they hold their resources until it has seen all slots at work.
LAUNCH = """\
date +%s.%N >> begin
$(LAUNCHER) bash -c '
    begin=$(date +%s.%N)
    echo $SLURM_STEP_ID $SLURM_PROCID $SLURM_NTASKS $SLURMD_NODENAME >> tasks
    until test -e $(SPECROOT)/go.STUDY; do sleep 0.1; done
    echo $SLURMD_NODENAME $begin $(date +%s.%N) >> spans'
date +%s.%N >> end  # $(A)
"""


def most_in_parallel(study: Study) -> int:
    """Return the largest number of samples that ran at the same time."""
    times = zip(study.outputs("sim/*/begin"), study.outputs("sim/*/end"), strict=True)
    spans = [(float(begin), float(end)) for begin, end in times]
    return max(sum(begin <= point < end for begin, end in spans) for point, _ in spans)


def tasks_of_nodes(study: Study) -> dict[str, list[tuple[float, float]]]:
    """Return the begin and the end of each task (seconds since 1970), in order, by its node."""
    tasks: dict[str, list[tuple[float, float]]] = {}
    for line in "".join(study.outputs("sim/*/spans")).splitlines():
        node, begin, end = line.split()
        tasks.setdefault(node, []).append((float(begin), float(end)))
    return {node: sorted(spans) for node, spans in tasks.items()}


@pytest.mark.parametrize(
    ("run", "samples", "tasks", "nodes", "slots"),
    [
        ("nodes: 1, procs: 2", 16, 2, 1, 8),
        ("nodes: 2, procs: 8", 4, 8, 2, 2),
        ("nodes: 2, procs: 4", 8, 4, 2, 4),
        ("nodes: 2", 4, 2, 2, 2),
        ("procs: 4", 8, 4, 1, 4),
    ],
    ids=["part_of_a_node", "two_full_nodes", "halves_of_two_nodes", "two_exclusive_nodes", "a_full_node"],
)
def test_samples_that_start_parallel_programs(launch, slurm, run, samples, tasks, nodes, slots):
    """Given four nodes of four CPUs, then as many samples run in parallel as fit, each on its requested resources."""
    name, batch = f"launch_{tasks}_{nodes}", "type: slurm, nodes: 4, walltime: 600"
    study = launch(ensemble(LAUNCH.replace("STUDY", name), run=run, count=samples, batch=batch, group="args: ''"), name=name)
    study.await_text("sim/*/tasks", count=slots)
    wait_for(lambda: sum(text.count("\n") for text in study.outputs("sim/*/tasks")) >= slots * tasks, "the tasks")
    release_samples(study)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, samples)
    for text in study.outputs("sim/*/tasks"):
        lines = [line.split() for line in text.splitlines()]
        assert sorted(int(line[1]) for line in lines) == list(range(tasks))
        assert {line[2] for line in lines} == {str(tasks)}
        assert len({line[3] for line in lines}) == nodes
        assert len({line[0] for line in lines}) == 1
    if run == "nodes: 2":  # two samples use all nodes: they do not share a node
        by_node = tasks_of_nodes(study)
        assert sorted(by_node) == ["n1", "n2", "n3", "n4"]
        for node, spans in by_node.items():
            assert all(end <= begin for (_, end), (begin, _) in pairwise(spans)), (node, spans)
    assert most_in_parallel(study) == slots, study.outputs("sim/*/sim.err")
    assert_nothing_left(study, slurm)


# --- many samples ---


@pytest.mark.timeout(1000)  # at least 31 s: 5000 samples of 0.05 s in 8 slots
def test_many_short_samples(launch, slurm):
    """Given 5,000 samples of 0.05 s on four nodes, then each runs once; the test prints the utilisation."""
    count, slots = 5000, 8
    group = "args: --concurrency 2"
    study = launch(
        ensemble("sleep 0.05 # $(A)", count=count, batch="type: slurm, nodes: 4, walltime: 1200", group=group),
        name="many",
    )
    study.await_end(900)

    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, count)
    print(f"utilisation: {utilisation(study, slots):.0%}")
    assert_nothing_left(study, slurm)


def utilisation(study: Study, slots: int) -> float:
    """Return the seconds of all samples per second of a slot, from the first to the last start of a sample."""
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    begins = entries[entries["kind"] == Kind.STARTED]["time"]
    ends = entries[entries["kind"] == Kind.ENDED]
    span_s = begins.max() - begins.min()
    print(f"{span_s:.1f} s for {len(ends)} samples")
    return float(ends["stop"].sum() / 1e6 / (span_s * slots))
