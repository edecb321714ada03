"""Workers that a user starts on another host: their broker address, their work, and their loss."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
from fakes.clusters import FakeCluster
from other_host import COMMANDS, OtherHost
from support import BIN, PATIENCE_S, ROOT, kill, needed, wait_for

SPEC = """
    description: {name: hosts, description: d}
    study:
      - name: sim
        description: d
        run:
          cmd: |
            echo "$(A) on $(hostname)" >> runs
            sleep 0.5
          restart: |
            echo "$(A) again on $(hostname)" >> runs
    merlin:
      resources:
        workers:
          far: {args: --concurrency 2, machines: [otherhost], idle_limit: 5}
      samples:
        generate: {cmd: "seq 1 8 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


@pytest.fixture
def host():
    """The other host, which requires root."""
    for name in COMMANDS:
        needed(name, "/sbin")
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("network namespaces require root")
    with OtherHost() as other:
        yield other


@pytest.fixture
def start_workers(host, environment):
    """Start `maestro-celery workers` on the other host."""
    started = []

    def start(study, *options):
        words = host.command(str(BIN / "maestro-celery"), "workers", str(study.path), *options)
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def explained(study):
    answer = study.command("maestro-celery", "explain", str(study.path))
    assert answer.stdout, answer.stderr
    return answer.stdout


def test_a_study_waits_for_workers_on_another_host_and_explains_this(run, host, start_workers):
    """Given a group for another host, then the study waits for its workers, and these run the samples."""
    study = run(SPEC, "--broker-host", host.near)
    wait_for(lambda: study.states() == {"sim": "PENDING"}, "the submission of the step")

    text = explained(study)
    sentence = f"waits for its workers on otherhost: start them there with `maestro-celery workers {study.path}"
    assert sentence in text
    assert sentence in study.output
    assert study.status()["workers"] == [{"name": "", "group": "far", "node": "otherhost", "state": "awaited", "refused_messages": 0}]
    answer = study.command("maestro-celery", "workers", str(study.path))
    assert answer.returncode == 1
    assert "No worker group is for this machine" in answer.stderr

    worker = start_workers(study)
    study.await_end()

    assert worker.wait(PATIENCE_S) == 0
    assert study.states() == {"sim": "FINISHED"}
    assert sorted(study.outputs("sim/*/runs")) == sorted(f"{number} on otherhost\n" for number in range(1, 9))
    late = start_workers(study)
    assert late.wait(PATIENCE_S) == 1
    assert f"The study '{study.path}' has ended (FINISHED); there is no work. `maestro-celery resume" in late.stdout.read()


def test_each_machine_has_its_own_batch_system(run, host, environment, start_workers, tmp_path):
    """Given the example, with a local group here and a group of LSF on the other host.

    Then `maestro run` needs no LSF here. The user submits `maestro-celery workers` there, and the job has its workers.
    """
    text = (ROOT / "specs" / "multi_machine.yaml").read_text()
    lsf = 'batch: {type: lsf, nodes: 1, walltime: "00:10:00"}    # that of HOST2'
    here = socket.gethostname()
    study = run(
        text.replace("batch: {type: local}    # that of HOST2", lsf),
        "--broker-host", host.near, "-s", "2", "--vars", f"HOST1={here}", "HOST2=otherhost",
    )  # fmt: skip
    assert study.code == 0, study.output
    study.await_text("sim/*/result.txt", count=12)
    with FakeCluster(tmp_path / "lsf", "lsf", nodes=2, cores=4, grace_s=2) as cluster:
        there = {**cluster.insert_into(environment), "USER": "somebody"}
        script = f"#!/bin/sh\n#BSUB -nnodes 1\n#BSUB -W 10\n{BIN / 'maestro-celery'} workers {study.path}\n"
        subprocess.run(host.command("bsub"), env=there, input=script, text=True, check=True, capture_output=True)
        study.await_end()
        wait_for(lambda: [(job["state"], job["why"]) for job in cluster.jobs()] == [("ended", "")], "the end of the job")

    assert study.states() == {"sim": "FINISHED", "post": "FINISHED"}
    reports = study.outputs("post/*/report.txt")
    assert len(reports) == 12
    assert all(text.endswith(f"simulated on {here} and processed on otherhost\n") for text in reports)


def test_the_private_broker_listens_on_the_cluster_address_only(run, host):
    study = run(SPEC, "--broker-host", host.near)
    wait_for(lambda: (study.path / "merlin_info/session/broker.json").exists(), "the broker")

    configuration = (study.path / "merlin_info/session/broker.conf").read_text().splitlines()

    assert f"bind {host.near}" in configuration
    assert "protected-mode yes" in configuration
    assert "user default reset" in configuration


def test_a_worker_that_cannot_reach_the_broker_names_the_remedy(run, start_workers):
    """Given a broker on the loopback address, then the log of a worker on another host names `--broker-host`."""
    study = run(SPEC, "--broker-host", "127.0.0.1")
    wait_for(lambda: (study.path / "merlin_info/session/broker.json").exists(), "the broker")

    worker = start_workers(study)

    study.await_text("merlin_info/workers/far-1.log", "Worker 'far-1' waits up to 120 s for its broker: ")
    assert worker.poll() is None
    log = (study.path / "merlin_info/workers/far-1.log").read_text()
    assert "cannot be reached from otherhost" in log
    assert "Set --broker-host to an address of the machine of `maestro run`" in log
    assert ":***@127.0.0.1" in log
    kill(*study.processes("maestro_celery_plugin.worker"))


def test_the_conductor_detects_a_dead_worker_on_another_host(run, host, start_workers):
    """Given that all processes of the other host are killed, then the next worker runs their samples again."""
    study = run(SPEC.replace("sleep 0.5", "[ $(A) -gt 2 ] || sleep 300"), "--broker-host", host.near)
    worker = start_workers(study)
    study.await_text("sim/*/runs", "1 on otherhost")
    study.await_text("sim/*/runs", "2 on otherhost")

    kill(*study.processes("maestro_celery_plugin.worker"), worker.pid, *study.processes("sim.sh"))
    wait_for(lambda: not study.status()["workers"][0]["name"], "the detection of the dead worker")
    start_workers(study)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert sum("again" in text for text in study.outputs("sim/*/runs")) == 2


# Samples for 250 s in one slot, so that some remain until the worker of the broken machine has left; then they end at once.
BROKEN = """
    description: {name: broken, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "a-tool $(A) >> runs && { test -e $(SPECROOT)/left || sleep 0.5; }"}
    merlin:
      resources:
        overlap: True
        workers:
          near: {args: --concurrency 1}
          far: {args: --concurrency 2, machines: [otherhost], idle_limit: 5}
      samples:
        generate: {cmd: "seq 1 500 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def test_the_worker_of_a_machine_on_which_every_sample_fails_leaves_and_its_samples_run_elsewhere(
    run, host, start_workers, environment, monkeypatch, tmp_path
):
    """Given a program that is missing on one host, then its samples run on the other host, and a user can see why."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "a-tool").write_text("#!/bin/sh\necho ran with $1\n")
    (tools / "a-tool").chmod(0o755)
    path = environment["PATH"]
    monkeypatch.setitem(environment, "PATH", f"{tools}:{path}")
    study = run(BROKEN, "--broker-host", host.near)
    study.await_text("sim/*/*/runs", "ran with")
    environment["PATH"] = path

    worker = start_workers(study)
    worker.wait(PATIENCE_S)
    (tmp_path / "left").touch()
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert sorted(study.outputs("sim/*/*/runs")) == sorted(f"ran with {number}\n" for number in range(1, 501))
    machines = {machine["worker"]: machine for machine in study.status()["broken_machines"]}
    assert {(machine["node"], machine["reason"]) for machine in machines.values()} == {("otherhost", "exit code 127")}
    assert machines["far-1"]["samples"] >= 5
    sentence = "Worker 'far-1' has left the study, because machine 'otherhost' is broken:"
    assert sentence in " ".join(explained(study).split())
    assert sentence in " ".join(study.command("maestro-celery", "status", str(study.path)).stdout.split())
