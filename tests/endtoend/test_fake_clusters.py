"""Studies whose allocations are jobs of LSF or Flux on simulated clusters."""

from __future__ import annotations

import json
import subprocess
from collections import Counter

import pytest
from fakes.clusters import FakeCluster
from support import wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.session import Session

# The idle limit ends no allocation before its time, although the conductor may be slow between two steps.
STUDY = """
description: {{name: s, description: d}}
batch: {{type: {type}, queue: pbatch, nodes: 2, walltime: "00:30:00"}}
study:
  - name: sim
    description: parallel samples
    run:
      cmd: {cmd}
      nodes: 1
      procs: 2
  - name: collect
    description: results of all samples
    run:
      cmd: ls $(sim.workspace)/* -d
      depends: [sim]
merlin:
  resources:
    workers:
      w: {{steps: [all], idle_limit: 60}}
  samples:
    generate: {{cmd: "seq 1 6 > $(MERLIN_INFO)/a.csv"}}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [A]
"""


@pytest.fixture(params=["lsf", "flux"])
def cluster(request, tmp_path, environment):
    with FakeCluster(tmp_path / "cluster", request.param, nodes=4, cores=4, minute_s=60, grace_s=2) as simulated:
        simulated.type = request.param
        environment.update(simulated.insert_into(environment), USER="somebody")
        yield simulated


def states_of_allocations(study):
    return [json.loads(text)["state"] for text in study.outputs("merlin_info/allocations/*/*/allocation.json")]


def assert_each_ended_once(study, count):
    """Assert that each sample of `sim` has one success in the ledger.

    A sample whose allocation ends between its last line and this entry runs again, so that its output has the line twice.
    """
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    number = Manifest.read(study.path / "merlin_info" / "records" / "sim" / "manifest.json").number
    ended = entries[(entries["record"] == number) & (entries["kind"] == Kind.ENDED) & (entries["code"] == 0)]
    assert Counter(ended["start"].tolist()) == dict.fromkeys(range(count), 1)
    outputs = study.outputs("sim/**/*.out")
    assert len(outputs) == count
    assert all("ran" in text for text in outputs), outputs


def test_parallel_samples_run_in_one_allocation(run, cluster, environment):
    """Given parallel samples and two nodes of four cores, then one allocation runs them, some in parallel.

    The batch system needs four seconds to end the job after its script; it is not cancelled meanwhile.
    """
    environment["FAKE_AFTER_S"] = "4"
    study = run(STUDY.format(type=cluster.type, cmd="$(LAUNCHER) echo sample $(A)"), "-s", "2").await_end()

    assert study.states() == {"sim": "FINISHED", "collect": "FINISHED"}, study.log()
    assert study.outputs("sim/*/*.out") == [f"sample {i}\n" * 2 for i in range(1, 7)]
    assert [job["why"] for job in cluster.jobs()] == [""]
    assert states_of_allocations(study) == ["COMPLETED"]
    launches = [one for one in cluster.launches() if one["command"][0] == "echo"]
    assert [one["tasks"] for one in launches] == [2] * 6


def test_a_quiet_launch_in_the_foreground_is_quiet_to_its_end(run, cluster):
    """Given workers that leave their allocation at the end of the study, then `--quiet` prints no line about it."""
    study = run(STUDY.format(type=cluster.type, cmd="echo sample $(A)"), "-s", "2", "--quiet", foreground=True)

    assert states_of_allocations(study) == ["COMPLETED"]
    assert (study.code, study.output) == (0, "")


def test_samples_without_a_launcher_run_on_workers_of_each_node(run, cluster):
    study = run(STUDY.format(type=cluster.type, cmd="echo sample $(A); sleep 1"), "-s", "2").await_end()

    assert study.states() == {"sim": "FINISHED", "collect": "FINISHED"}, study.log()
    assert study.outputs("sim/*/*.out") == [f"sample {i}\n" for i in range(1, 7)]
    workers = [one for one in cluster.launches() if "echo" not in one["command"]]
    assert [one["tasks"] for one in workers] == [2]


@pytest.fixture
def short_minutes(cluster, environment):
    """A cluster whose minutes last 20 s: Flux reports the remaining time to workers, LSF ends jobs without warning."""
    cluster.environment["FAKE_MINUTE_S"] = environment["FAKE_MINUTE_S"] = "20"
    return cluster


def test_the_next_allocation_runs_the_remaining_samples(run, short_minutes):
    """Given more samples than one allocation has time for, then further allocations run the rest, each sample once."""
    # With LSF, four slots start at most 16 samples of 6 s in 20 s. With Flux, whose workers start none in the last 6 s, two
    # slots start at most 10 samples of 3 s.
    count, sleep_s = {"lsf": (24, 6), "flux": (12, 3)}[short_minutes.type]
    cmd = f"$(LAUNCHER) sleep {sleep_s}; echo ran $(A)"
    text = STUDY.format(type=short_minutes.type, cmd=cmd).replace("00:30:00", "00:01:00")
    text = text.replace("seq 1 6", f"seq 1 {count}").replace("idle_limit: 60", "idle_limit: 60, warn: 6, drain: 6")
    study = run(text, "-s", "2", "-r", "20").await_end()

    assert study.states() == {"sim": "FINISHED", "collect": "FINISHED"}, study.log()
    assert_each_ended_once(study, count)
    jobs = short_minutes.jobs()
    assert len(jobs) >= 2
    if short_minutes.type == "lsf":
        assert jobs[0]["why"] == "timeout"


@pytest.mark.parametrize("cluster", ["lsf"], indirect=True)
def test_stop_workers_ends_the_allocation_until_the_study_is_resumed(run, cluster, tmp_path):
    """Given exit code 105, then the allocation ends after its running samples, and only a resume opens another one.

    All other samples wait until the workers know that they must leave.
    """
    waits = "until [ -e $(SPECROOT)/go ]; do sleep 0.2; done"
    cmd = f"if echo $(A); mkdir $(SPECROOT)/one; then {waits}; elif mkdir $(SPECROOT)/two; then exit 105; else {waits}; fi"
    text = STUDY.format(type=cluster.type, cmd=cmd).replace("      procs: 2\n", "      cores per task: 4\n")
    study = run(text, "-s", "2")
    wait_for((study.path / "merlin_info" / "session" / "workers_stopped").exists, "the request")
    wait_for(lambda: states_of_allocations(study) == ["RUNNING"], "the report of the batch system")
    heartbeats = Session(study.path / "merlin_info" / "session").heartbeats
    wait_for(lambda: {beat.state for beat in heartbeats.all()} == {WorkerState.STOPPING}, "workers that leave")
    (tmp_path / "go").touch()
    wait_for(lambda: states_of_allocations(study) == ["COMPLETED"], "the end of the allocation")

    step = study.status()["steps"][0]
    assert (step["state"], step["samples"]["running"]) == ("PENDING", 0)
    assert step["samples"]["pending"]
    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    study.await_end()

    assert study.states() == {"sim": "FINISHED", "collect": "FINISHED"}, study.log()
    assert [job["why"] for job in cluster.jobs()] == ["", ""]
    assert study.status()["steps"][0]["restarts"] == 0


def test_cancelling_a_study_cancels_its_allocation(run, cluster):
    study = run(STUDY.format(type=cluster.type, cmd="sleep 300"), "-s", "2")
    wait_for(lambda: [job["state"] for job in cluster.jobs()] == ["running"], "an allocation")
    study.await_text("merlin_info/allocations/*/*/allocation.json", "RUNNING")

    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0

    study.await_end()
    wait_for(lambda: [job["state"] for job in cluster.jobs()] == ["ended"], "the end of the allocation")
    assert study.states()["sim"] == "CANCELLED"


REFUSALS = {
    "lsf": "Too many nodes requested. Job not submitted.",
    "flux": "alloc: unsatisfiable request: need 5 exclusive node(s), only 4 eligible",
}


def test_a_refusal_of_the_batch_system_is_logged(run, cluster):
    """Given too many nodes, then the step fails with the words of the batch system, and nobody needs to cancel a job."""
    text = STUDY.format(type=cluster.type, cmd="echo").replace("nodes: 2", "nodes: 5")
    study = run(text, "-s", "2").await_end()

    assert study.states()["sim"] == "FAILED"
    assert REFUSALS[cluster.type] in study.log()
    assert REFUSALS[cluster.type] in study.command("maestro-celery", "explain", str(study.path)).stdout
    assert "manually" not in study.log()


@pytest.mark.parametrize("cluster", ["flux"], indirect=True)
def test_a_study_waits_for_flux_and_continues_after_its_restart(run, cluster):
    """Given Flux that is away at the first submission, then the study opens its allocation when Flux is back.

    After each restart the first connection of Maestro's adapter is broken; the native step needs another one.
    """
    text = STUDY.format(type="flux", cmd="echo sample $(A)").replace("merlin:\n  resources:", "merlin:\n  resources:\n    unassigned: maestro")
    text = text.replace("steps: [all]", "steps: [sim]").replace("depends: [sim]", "depends: [sim]\n      nodes: 1\n      procs: 1")
    cluster.go_away()
    study = run(text, "-s", "2")
    study.await_text("merlin_info/allocations/*/*/allocation.json", "does not answer now")
    explained = study.command("maestro-celery", "explain", str(study.path)).stdout
    assert "allocation 'w/1' waits. The batch system 'flux' does not answer now: [Errno 2] Unable to connect" in explained
    cluster.come_back()
    wait_for(cluster.jobs, "the job of the allocation")
    cluster.come_back()

    study.await_end()

    assert study.states() == {"sim": "FINISHED", "collect": "FINISHED"}, study.log()
    assert states_of_allocations(study) == ["COMPLETED"]


@pytest.mark.parametrize("cluster", ["flux"], indirect=True)
def test_the_samples_of_a_lost_node_run_on_another_node(run, cluster, tmp_path):
    """Given a node that is lost and not the first of its job, then Flux says nothing, and the heartbeats tell."""
    cmd = '"echo ran $(A); until [ -e $(SPECROOT)/go ]; do sleep 0.2; done"'
    study = run(STUDY.format(type="flux", cmd=cmd), "-s", "2")
    study.await_text("sim/*/*.out", "ran", count=2)  # each node has one slot
    assert cluster.lose_rank(1)
    assert [job["state"] for job in cluster.jobs()] == ["running"]
    (tmp_path / "go").touch()

    study.await_end()

    assert study.states() == {"sim": "FINISHED", "collect": "FINISHED"}, study.log()
    assert ["ran" in text for text in study.outputs("sim/*/*.out")] == [True] * 6
    assert len(cluster.jobs()) == 1


@pytest.fixture
def banner(cluster, environment, tmp_path):
    """A cluster of LSF whose `bsub` prints the number of another job of the user first; the number of this job."""
    script = "#!/bin/sh\nsleep 300\n"
    subprocess.run([cluster.commands / "bsub"], input=script, env=environment, check=True, text=True, cwd=tmp_path)
    bsub = tmp_path / "bin" / "bsub"
    bsub.parent.mkdir()
    bsub.write_text(f'#!/bin/sh\necho "Notice 1: /scratch is down"\nexec {cluster.commands}/bsub "$@"\n')
    bsub.chmod(0o755)
    environment["PATH"] = f"{bsub.parent}:{environment['PATH']}"
    return 1


@pytest.mark.parametrize("cluster", ["lsf"], indirect=True)  # Maestro submits to Flux through its Python interface
def test_a_number_in_a_banner_is_not_the_job(run, cluster, banner):
    """Given `bsub` with a banner, then the study cancels its own job, and not the job whose number is in the banner."""
    study = run(STUDY.format(type=cluster.type, cmd="sleep 300"), "-s", "2")
    study.await_text("merlin_info/allocations/*/*/allocation.json", "RUNNING")
    (stored,) = study.outputs("merlin_info/allocations/*/*/allocation.json")
    assert json.loads(stored)["job"] == "2"

    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0

    study.await_end()
    wait_for(lambda: [job["state"] for job in cluster.jobs()] == ["running", "ended"], "the end of the study's job")
    assert "its submission has printed another number first, 1." in study.log()


OVERLAP = STUDY.replace("w: {{steps: [all], idle_limit: 60}}", "w: {{steps: [sim], nodes: 1, args: -c 1}}").replace(
    "  resources:\n", "  resources:\n    overlap: True\n"
).replace("    workers:\n", "    workers:\n      here: {{steps: [sim], args: -c 1, batch: {{type: local}}}}\n")


def test_an_allocation_opens_again_while_local_workers_continue(run, cluster):
    """Given a local group and one in allocations for the same step, when the allocation ends, then the next one opens."""
    text = OVERLAP.format(type=cluster.type, cmd='"test -e $(SPECROOT)/go || sleep 1; echo ran $(A)"').replace("seq 1 6", "seq 1 300")
    study = run(text, "-s", "1", "-r", "3")
    wait_for(lambda: [job["state"] for job in cluster.jobs()] == ["running"], "an allocation")
    study.await_text("merlin_info/workers/w-*.log", "slots")
    started = len(study.outputs("sim/*/*/*.out"))
    wait_for(lambda: len(study.outputs("sim/*/*/*.out")) > started + 6, "samples of both groups")

    cluster.end(cluster.jobs()[0]["number"], "node")

    wait_for(lambda: len(cluster.jobs()) == 2, "the next allocation")
    (study.path.parent / "go").touch()
    study.await_end()
    assert study.states() == {"sim": "FINISHED", "collect": "FINISHED"}, study.log()
    assert_each_ended_once(study, 300)
