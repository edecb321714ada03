"""LSF and Flux through Maestro's adapters, on simulated clusters whose jobs are real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fakes.clusters import FakeCluster
from support import PATIENCE_S, wait_for

from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.plugins import batch_system

# The program of a process with Maestro's adapter: the import of the adapter for Flux imports Flux.
DRIVER = """
import json, sys
from pathlib import Path
from maestro_celery_plugin.batch import base, lsf_commands
from maestro_celery_plugin.batch.maestro_adapter import open_adapter
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.plugins import batch_system

system = batch_system(sys.argv[1])
jobs = BatchJobs(system)

def submit(cmd, directory, queue="pbatch", procs=None, gpus=None, **request):
    settings = BatchSettings(type=sys.argv[1], queue=queue)
    request = AllocationRequest(
        name="w", study="s", settings=settings, procs=procs, gpus=gpus, lines=(cmd,), **request
    )
    return jobs.submit(request, Path(directory))

def states(jobs):
    with open_adapter(system, system.adapter_arguments(BatchSettings())) as opened:
        code, found = opened.adapter.check_jobs(jobs)
    return [code.name, {job: getattr(state, "name", None) for job, state in found.items()}]

def limit(seconds):
    lsf_commands.COMMAND_LIMIT_S = base.QUERY_TIMEOUT_S = seconds

def cancel(job):
    return jobs.cancel(job, None)

def reports(jobs):
    return {job: [report.state.name, report.reason] for job, report in system.reports(jobs).items()}

for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        answer = globals()[name](**arguments)
    except AllocationError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(answer), flush=True)
"""
# Prints the facts that a process of a job finds about the allocation around it.
CURRENT_ALLOCATION = """
import dataclasses, json, os, sys, time
from maestro_celery_plugin.plugins import batch_system
system = batch_system(sys.argv[1])
allocation, end = system.current_allocation(os.environ), system.end_time(os.environ)
remaining_s = None if end is None else round(end - time.time())
print(json.dumps([dataclasses.astuple(allocation), remaining_s, system.node_cores(os.environ)]))
"""
SYSTEMS = ("lsf", "flux")


class Driver:
    """Maestro's adapter for a batch system in a separate process, and the directory of the last job."""

    def __init__(self, cluster, type, parent):
        self.type, self._parent, self._count = type, parent, 0
        environment = cluster.insert_into({**os.environ, "USER": "somebody"})
        for name in ("LSB_JOBID", "FLUX_URI"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DRIVER, type],
            # `python -c` imports from the current directory first, and the tests use the installed package.
            cwd=parent, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def call(self, name, **arguments):
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def submit(self, cmd, nodes=2, walltime_s=3600, **request):
        self._count += 1
        self.directory = self._parent / f"job{self._count}"
        self.directory.mkdir()
        place = {"directory": str(self.directory), "nodes": nodes, "walltime_s": walltime_s}
        return self.call("submit", cmd=cmd, **place, **request)

    def report(self, job):
        return self.call("reports", jobs=[job])[job]

    def wait(self, job, state):
        wait_for(lambda: self.report(job)[0] == state, f"{job} is {state}")
        return self.report(job)[1]

    def output(self, suffix):
        return "".join(path.read_text() for path in self.directory.glob(f"*.{suffix}"))

    def close(self):
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


@pytest.fixture(params=SYSTEMS, scope="module")
def driver(request, tmp_path_factory):
    parent = tmp_path_factory.mktemp(request.param)
    with FakeCluster(parent / "cluster", request.param, nodes=4, cores=2, gpus=2, minute_s=1.0, grace_s=3.0) as cluster:
        running = Driver(cluster, request.param, parent)
        running.cluster = cluster
        yield running
        running.close()


@pytest.fixture
def cluster(driver):
    return driver.cluster


def test_a_job_runs_to_its_end(driver):
    job = driver.submit("echo out; echo err >&2")
    driver.wait(job, "COMPLETED")
    assert driver.call("states", jobs=[job]) == ["OK", {job: "FINISHED"}]
    assert (driver.output("out"), driver.output("err")) == ("out\n", "err\n")


def test_a_job_waits_while_the_cluster_holds_jobs(driver, cluster):
    cluster.hold()
    job = driver.submit("sleep 60")
    reason = driver.wait(job, "PENDING")
    assert reason == {"lsf": "New job is waiting for scheduling;", "flux": ""}[driver.type]
    cluster.release()
    driver.wait(job, "RUNNING")
    assert driver.call("states", jobs=[job]) == ["OK", {job: "RUNNING"}]


def test_a_job_fails(driver):
    job = driver.submit("exit 3")
    assert driver.wait(job, "FAILED") == "exit code 3"
    assert driver.call("states", jobs=[job]) == ["OK", {job: "FAILED"}]


def test_a_job_is_cancelled_with_all_its_processes(driver, cluster):
    # A signal before `wait` would run the trap after the end of a process that begins later: all begin first.
    job = driver.submit("trap 'echo signalled' INT TERM HUP; setsid sleep 1000 & sleep 60 & echo begun; wait; sleep 60")
    wait_for(lambda: driver.output("out"), "the script")
    assert driver.call("cancel", job=job) is None
    driver.wait(job, "CANCELLED")
    wait_for(lambda: driver.output("out").startswith("begun\nsignalled\n"), "the output of the script")
    assert driver.call("states", jobs=[job]) == ["OK", {job: "CANCELLED"}]


def test_a_pending_job_is_cancelled(driver, cluster):
    cluster.hold()
    job = driver.submit("sleep 60")
    assert driver.call("cancel", job=job) is None
    driver.wait(job, "CANCELLED")
    cluster.release()


def test_a_time_limit_is_enforced(driver):
    job = driver.submit("sleep 60", walltime_s=60)  # a minute of this cluster is a second
    reason = driver.wait(job, "TIMED_OUT")
    assert reason == {
        "lsf": "TERM_RUNLIMIT: job killed after reaching LSF run time limit",
        "flux": "timeout: resource allocation expired",
    }[driver.type]
    assert driver.call("states", jobs=[job]) == ["OK", {job: "TIMEDOUT"}]


ENDS = {
    "lsf": {"preempt": "PREEMPTED", "node": "NODE_FAILED", "memory": "OUT_OF_MEMORY"},
    "flux": {"preempt": "PREEMPTED", "node": "FAILED", "node-failure": "NODE_FAILED"},
}


def test_the_cluster_ends_jobs(driver, cluster):
    for why, state in ENDS[driver.type].items():
        job = driver.submit("sleep 60")
        driver.wait(job, "RUNNING")
        cluster.end(cluster.jobs()[-1]["number"], why)
        driver.wait(job, state)


def test_a_job_that_the_batch_system_does_not_list(driver):
    known = driver.submit("sleep 60")
    driver.wait(known, "RUNNING")
    lost = {"lsf": "99", "flux": "ƒ99"}[driver.type]
    assert driver.call("reports", jobs=[known, lost]) == {known: ["RUNNING", ""], lost: ["GONE", ""]}


REFUSALS = {
    "lsf": {"queue": "nosuch: No such queue. Job not submitted.", "nodes": "Too many nodes requested. Job not submitted."},
    "flux": {"queue": "[Errno 1] Invalid queue 'nosuch' specified"},
}


@pytest.mark.parametrize("what", ["queue", "nodes"])
def test_a_refusal_has_the_words_of_the_batch_system(driver, what):
    """Given a wrong queue or too many nodes, then the error has the words of the batch system; Flux accepts such a job."""
    answer = driver.submit("true", **{"queue": {"queue": "nosuch"}, "nodes": {"nodes": 5}}[what])
    words = REFUSALS[driver.type].get(what)
    if words is None:
        reason = "alloc: unsatisfiable request: need 5 exclusive node(s), only 4 eligible"
        assert driver.wait(answer, "FAILED") == reason
    else:
        assert answer["error"] == "AllocationError"
        assert answer["text"] == f"The batch system refuses '{driver.directory}/s-w.{driver.type}.sh': {words}"


def test_a_batch_system_that_is_away_refuses_nothing(driver, cluster):
    """Given a batch system that is away and comes back, then a submission meanwhile is no refusal, and the next succeeds."""
    known = driver.submit("sleep 60")
    cluster.go_away()
    driver.call("limit", seconds=2)
    answer = driver.submit("true")
    assert answer["error"] == "BatchSystemUnavailableError", answer
    assert answer["text"].startswith(f"The batch system '{driver.type}' does not answer now: ")
    assert driver.call("cancel", job=known)["error"] == "BatchSystemUnavailableError"

    cluster.come_back()
    driver.call("limit", seconds=60)

    driver.wait(driver.submit("true"), "COMPLETED")
    assert driver.call("cancel", job=known) is None


@pytest.mark.parametrize("driver", ["flux"], indirect=True)
def test_flux_has_lost_its_jobs_after_a_restart(driver, cluster):
    lost = driver.submit("true")
    driver.wait(lost, "COMPLETED")
    cluster.come_back(forget_jobs=True)
    assert driver.report(lost) == ["GONE", ""]


@pytest.mark.parametrize("driver", ["lsf"], indirect=True)
def test_a_busy_lsf_answers_in_the_end(driver, cluster):
    """Given LSF that asks to wait before it answers, then an unknown job is gone, and a refusal is a refusal."""
    busy = cluster.directory / "busy"
    busy.touch()
    assert driver.report("99") == ["GONE", ""]
    answer = driver.submit("true", queue="nosuch")
    busy.unlink()
    assert answer["error"] == "AllocationError"
    assert answer["text"].endswith(": nosuch: No such queue. Job not submitted.")


def test_an_ended_job_needs_no_cancellation(driver):
    job = driver.submit("true")
    driver.wait(job, "COMPLETED")
    assert driver.call("cancel", job=job) is None


@pytest.mark.parametrize("driver", ["flux"], indirect=True)
def test_the_gpus_of_an_allocation_are_those_of_each_node(driver, cluster):
    """Given nodes of 2 GPUs, then 2 procs and 2 GPUs fit on a node, although Maestro requests GPUs for each slot."""
    driver.wait(driver.submit("true", nodes=2, procs=4, gpus=2), "COMPLETED")
    assert driver.wait(driver.submit("true", nodes=1, procs=2, gpus=3), "FAILED") == (
        "alloc: unsatisfiable request: need 1 node(s) with 2 cores and 3 GPUs each, only 0 eligible"
    )


def test_a_process_finds_the_allocation_around_it(driver, tmp_path):
    program = tmp_path / "current_allocation.py"
    program.write_text(CURRENT_ALLOCATION)
    job = driver.submit(f"{sys.executable} {program} {driver.type}", nodes=3, walltime_s=36000)  # 600 s on this cluster
    driver.wait(job, "COMPLETED")
    allocation, remaining_s, cores = json.loads(driver.output("out"))
    assert allocation == [job, 3]
    assert cores == {"lsf": 2, "flux": None}[driver.type]
    assert remaining_s is None if driver.type == "lsf" else 300 <= remaining_s <= 600


def worker_line(type, command, nodes):
    group = GroupConfig(group="sim", queues=("q",), nodes=nodes, batch=BatchSettings(type=type))
    return batch_system(type).worker_line(group, command)


def test_one_worker_starts_on_each_node(driver, cluster):
    command = """/bin/sh -c 'echo "$0 a  worker"' 'it'"'"'s'"""
    job = driver.submit(worker_line(driver.type, command, nodes=3), nodes=3)
    driver.wait(job, "COMPLETED")
    assert driver.output("out") == "it's a  worker\n" * 3
    assert cluster.launches()[-1]["tasks"] == 3


def test_samples_run_in_parallel(driver, cluster):
    sample = batch_system(driver.type).sample_launcher(StepNeeds(nodes=2, procs=4))
    # Each sample waits until the other one has begun.
    meet = "/bin/sh -c 'touch $0; until test -e $1; do sleep 0.1; done'"
    job = driver.submit(f"{sample} {meet} a b &\n{sample} {meet} b a &\nwait", nodes=4)
    driver.wait(job, "COMPLETED")
    first, second = cluster.launches()[-2:]
    assert (first["tasks"], second["tasks"]) == (4, 4)
    assert max(first["begin"], second["begin"]) < min(first["end"], second["end"])


@pytest.mark.parametrize("driver", ["lsf"], indirect=True)
def test_jsrun_fails_inside_another_jsrun(driver):
    job = driver.submit("jsrun --np 1 jsrun --np 1 true")
    assert driver.wait(job, "FAILED") == "exit code 1"
    assert driver.output("err") == "Error: a jsrun cannot run below another jsrun.\n"
