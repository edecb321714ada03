"""Workers on another host: started by hand, over the cluster's address, and missed when they fall silent."""

from __future__ import annotations

import os
import subprocess

import pytest
from other_host import COMMANDS, OtherHost
from support import BIN, kill, needed, wait_for

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
    """The other host; it takes root to make one."""
    for name in COMMANDS:
        needed(name, "/sbin")
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("network namespaces take root")
    with OtherHost() as other:
        yield other


@pytest.fixture
def far_workers(host, environment):
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


def sentences(study):
    answer = study.command("maestro-celery", "explain", str(study.path))
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_a_study_waits_for_workers_of_another_host_and_says_so(run, host, far_workers):
    """Given a group for another host, then it is awaited, and its workers do the work when they are started there."""
    study = run(SPEC, "--broker-host", host.near)
    wait_for(lambda: study.states() == {"sim": "PENDING"}, "the step's submission")

    assert f"waits for its workers on otherhost: start them there with `maestro-celery workers {study.path}" in sentences(
        study
    )
    assert study.status()["workers"] == [{"name": "", "group": "far", "node": "otherhost", "state": "awaited"}]
    here = study.command("maestro-celery", "workers", str(study.path))
    assert here.returncode == 1
    assert "No worker group is for this machine" in here.stderr

    worker = far_workers(study)
    study.await_end()

    assert worker.wait(20) == 0
    assert study.states() == {"sim": "FINISHED"}
    assert sorted(study.outputs("sim/*/runs")) == sorted(f"{number} on otherhost\n" for number in range(1, 9))


def test_the_private_broker_listens_on_the_clusters_address_only(run, host):
    study = run(SPEC, "--broker-host", host.near)
    wait_for(lambda: (study.path / "merlin_info/session/broker.json").exists(), "the broker")

    configuration = (study.path / "merlin_info/session/broker.conf").read_text().splitlines()

    assert f"bind {host.near}" in configuration
    assert "protected-mode yes" in configuration
    assert any(line.startswith("requirepass ") for line in configuration)


def test_a_worker_that_cannot_reach_the_broker_says_what_to_do(run, far_workers):
    """Given a broker on the loopback address, then a worker of another host names the option that helps."""
    study = run(SPEC, "--broker-host", "127.0.0.1")
    wait_for(lambda: (study.path / "merlin_info/session/broker.json").exists(), "the broker")

    worker = far_workers(study)

    assert worker.wait(30) != 0
    log = (study.path / "merlin_info/workers/far-1.log").read_text()
    assert "cannot be reached from otherhost" in log
    assert "--broker-host ADDRESS" in log
    assert ":***@127.0.0.1" in log


def test_a_worker_of_another_host_that_falls_silent_is_missed(run, host, far_workers):
    """Given that all processes of the other host are killed, then what they ran is run by the next worker there."""
    study = run(SPEC.replace("sleep 0.5", "[ $(A) -gt 2 ] || sleep 100"), "--broker-host", host.near)
    worker = far_workers(study)
    study.await_text("sim/*/runs", "1 on otherhost")
    study.await_text("sim/*/runs", "2 on otherhost")

    kill(*study.processes("maestro_celery_plugin.worker"), worker.pid, *study.processes("sim.sh"))
    wait_for(lambda: not study.status()["workers"][0]["name"], "the conductor to miss it", 60)
    far_workers(study)
    study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert sum("again" in text for text in study.outputs("sim/*/runs")) == 2
