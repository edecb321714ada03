"""LSF and Flux through Maestro's adapters, on simulated clusters whose jobs are real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fakes.clusters import FakeCluster
from support import wait_for

from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.plugins import batch_system

# The program of a process with Maestro's adapter: the import of the adapter for Flux imports Flux.
DRIVER = """
import json, sys
from maestrowf.datastructures.core import StudyStep
from maestrowf.interfaces import ScriptAdapterFactory
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.plugins import batch_system

system = batch_system(sys.argv[1])
arguments = system.adapter_arguments(BatchSettings(type=sys.argv[1], queue="pbatch"))
adapter = ScriptAdapterFactory.get_adapter(system.adapter)(nodes=1, shell="/bin/bash", **arguments)
real, sys.stdout = sys.stdout, sys.stderr  # Maestro's adapter for Flux prints

def submit(cmd, directory, nodes, walltime):
    step = StudyStep()
    step.name, step.description = "workers", "workers"
    step.run.update(cmd=cmd, nodes=nodes, walltime=walltime, exclusive=True, **system.step_keys(nodes))
    _, path, _ = adapter.write_script(directory, step)
    with open(path) as file:
        script = system.adjusted_script(file.read())
    with open(path, "w") as file:
        file.write(script)
    record = adapter.submit(step, path, directory)
    return [record.submission_code.name, str(record.job_identifier)]

def states(jobs):
    code, found = adapter.check_jobs(jobs)
    return [code.name, {job: getattr(state, "name", None) for job, state in found.items()}]

def cancel(jobs):
    return adapter.cancel_jobs(jobs).cancel_status.name

def reports(jobs):
    return {job: [report.state.name, report.reason] for job, report in system.reports(jobs).items()}

for line in sys.stdin:
    name, arguments = json.loads(line)
    print(json.dumps(globals()[name](**arguments)), file=real, flush=True)
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

    def submit(self, cmd, nodes=2, walltime="01:00:00", expected="OK"):
        self._count += 1
        self.directory = self._parent / f"job{self._count}"
        self.directory.mkdir()
        code, job = self.call("submit", cmd=cmd, directory=str(self.directory), nodes=nodes, walltime=walltime)
        assert code == expected
        return job

    def report(self, job):
        return self.call("reports", jobs=[job])[job]

    def wait(self, job, state):
        wait_for(lambda: self.report(job)[0] == state, f"{job} is {state}", 20)
        return self.report(job)[1]

    def output(self, suffix):
        return "".join(path.read_text() for path in self.directory.glob(f"*.{suffix}"))

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(params=SYSTEMS, scope="module")
def driver(request, tmp_path_factory):
    parent = tmp_path_factory.mktemp(request.param)
    with FakeCluster(parent / "cluster", request.param, nodes=4, cores=2, minute_s=1.0, grace_s=1.0) as cluster:
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
    job = driver.submit("trap 'echo signalled' INT TERM; setsid sleep 1000 & sleep 60 & wait; sleep 60")
    driver.wait(job, "RUNNING")
    assert driver.call("cancel", jobs=[job]) == "OK"
    driver.wait(job, "CANCELLED")
    assert driver.output("out").startswith("signalled\n")
    assert driver.call("states", jobs=[job]) == ["OK", {job: "CANCELLED"}]


def test_a_pending_job_is_cancelled(driver, cluster):
    cluster.hold()
    job = driver.submit("sleep 60")
    assert driver.call("cancel", jobs=[job]) == "OK"
    driver.wait(job, "CANCELLED")
    cluster.release()


def test_a_time_limit_is_enforced(driver):
    job = driver.submit("sleep 60", walltime="00:01:00")  # a minute of this cluster is a second
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


def test_too_many_nodes_are_refused(driver):
    driver.submit("true", nodes=5, expected="ERROR")


def test_a_process_finds_the_allocation_around_it(driver, tmp_path):
    program = tmp_path / "current_allocation.py"
    program.write_text(CURRENT_ALLOCATION)
    job = driver.submit(f"{sys.executable} {program} {driver.type}", nodes=3, walltime="01:00:00")
    driver.wait(job, "COMPLETED")
    allocation, remaining_s, cores = json.loads(driver.output("out"))
    assert allocation == [job, 3]
    assert cores == {"lsf": 2, "flux": None}[driver.type]
    assert remaining_s is None if driver.type == "lsf" else 50 <= remaining_s <= 60


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
    job = driver.submit(f"{sample} sleep 0.5 &\n{sample} sleep 0.5 &\nwait", nodes=4)
    driver.wait(job, "COMPLETED")
    first, second = cluster.launches()[-2:]
    assert (first["tasks"], second["tasks"]) == (4, 4)
    assert max(first["begin"], second["begin"]) < min(first["end"], second["end"])


@pytest.mark.parametrize("driver", ["lsf"], indirect=True)
def test_jsrun_fails_inside_another_jsrun(driver):
    job = driver.submit("jsrun --np 1 jsrun --np 1 true")
    assert driver.wait(job, "FAILED") == "exit code 1"
    assert driver.output("err") == "Error: a jsrun cannot run below another jsrun.\n"
