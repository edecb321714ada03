"""Workers in another PID namespace with the same host name, as in two containers: their process numbers mean nothing here."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
from support import BIN, PATIENCE_S, needed, wait_for

from maestro_celery_plugin.host.start import host_of
from maestro_celery_plugin.machine import host_name, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.session import Session

SPEC = """
    description: {name: namespaces, description: d}
    study:
      - name: sim
        description: d
        run:
          cmd: |
            echo "$(A)" >> runs
            while ! test -e $(SPECROOT)/go; do sleep 0.1; done
    merlin:
      resources:
        workers:
          w: {args: --concurrency 1, idle_limit: 5}
      samples:
        generate: {cmd: "seq 1 4 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""
# In a namespace, the numbers of processes begin again at 1. Its end kills all of them.
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture(autouse=True)
def namespaces():
    """PID namespaces require root."""
    needed("unshare")
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("PID namespaces require root")


def in_namespace(program):
    words = [*NAMESPACE, sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout.strip()


def test_a_pid_namespace_is_another_machine_with_the_same_name():
    program = "from maestro_celery_plugin.machine import *; print(host_name(), machine_id())"
    assert in_namespace(program).split()[0] == host_name()
    assert in_namespace(program).split()[1] != machine_id()
    same = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert same.split() == [host_name(), machine_id()]


def test_the_host_of_a_session_in_another_namespace_is_not_looked_up_by_its_number(tmp_path):
    """Given a host in another container, then a process of this machine with its number is not the host."""
    session = Session.create(tmp_path / "session")
    number = ProcessId.of(os.getpid())
    for machine, is_found in ((machine_id(), True), ("of another machine", False), ("", True)):
        stored = {"process": [number.pid, number.start], "machine": machine}
        (session.path / "host.json").write_text(json.dumps(stored))
        assert (host_of(session) == number) is is_found


@contextlib.contextmanager
def worker_elsewhere(study, environment):
    """Start workers in another namespace; yield the first process of it, whose end is the end of the namespace."""
    words = [*NAMESPACE, str(BIN / "maestro-celery"), "workers", str(study.path)]
    worker = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def test_workers_in_another_namespace_live_and_each_sample_runs_once(run, environment):
    """Given workers in this namespace and in another one, then the conductor counts both as alive until the end."""
    study = run(SPEC)
    study.await_text("sim/*/runs", count=1)
    with worker_elsewhere(study, environment):
        study.await_text("sim/*/runs", count=2)
        log = study.path / "merlin_info/workers/w-2.log"
        wait_for(lambda: len(study.status()["workers"]) == 2, "the heartbeats of both workers")
        beats = {path.stem: json.loads(path.read_text()) for path in study.path.glob("merlin_info/session/workers/*.json")}
        assert beats["w-1"]["host"] == beats["w-2"]["host"]
        assert beats["w-1"]["machine"] != beats["w-2"]["machine"]
        # The conductor looks at the workers twice a second; two more heartbeats are enough for it to count one as dead.
        first = beats["w-2"]["beat"]
        path = study.path / "merlin_info/session/workers/w-2.json"
        wait_for(lambda: path.exists() and json.loads(path.read_text())["beat"] >= first + 2, "two more heartbeats")
        assert {worker["state"] for worker in study.status()["workers"]} == {"busy"}
        (study.path.parent / "go").touch()
        study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert study.outputs("sim/*/runs") == ["1\n", "2\n", "3\n", "4\n"]
    assert "has died" not in study.log()
    assert log.exists()


# A lock ends with the process that holds it, even if that process is killed. While it runs, an attempt writes to a file
# whose name has the number of the attempt.
LEASE = SPEC.replace(
    'echo "$(A)" >> runs', 'exec 9> lock; flock -n 9 || echo "$(A)" >> ../../overlaps; echo "$(A)" >> runs; n=$(wc -l < runs)'
).replace("sleep 0.1", "echo >> alive.$n; sleep 0.1")


def sample_of(worker):
    """Return the process of the only sample in another namespace; its own children live for an instant only."""
    found = []

    def look():
        found.clear()
        for process in psutil.Process(worker.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                is_script, is_child = ("/sim.sh" in " ".join(one.cmdline()) for one in (process, process.parent()))
                found.extend([process] if is_script and not is_child else [])
        return len(found) == 1

    wait_for(look, "the sample of the worker")
    return found[0]


def death_of(worker, study):
    """Return when the conductor has counted a worker as dead, in seconds since 1970."""
    pattern = rf"^(\S+ \S+),(\d+) - \S+ - WARNING - Worker '{worker}\S*' on \S+ has died"
    when, thousandths = re.search(pattern, study.log(), re.MULTILINE).groups()
    return datetime.datetime.fromisoformat(when).timestamp() + int(thousandths) / 1000


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_that_is_stopped_ends_its_samples_before_they_run_elsewhere(run, environment, pool):
    """Given a process of a worker on another machine that is stopped while its sample runs, as by a paging node.

    Then its supervisor ends the sample before the conductor counts the process as dead and sends the sample again.
    """
    study = run(LEASE.replace("--concurrency 1", f"--concurrency 1 --pool {pool}"))
    study.await_text("sim/*/runs", count=1)
    with worker_elsewhere(study, environment) as worker:
        study.await_text("sim/*/runs", count=2)
        sample = sample_of(worker)
        sample.parent().send_signal(signal.SIGSTOP)
        log = study.path / "merlin_info/workers/w-2.log"
        wait_for(lambda: "could not write its heartbeat for 20 s" in log.read_text(), "the end of the lease")
        wait_for(lambda: not sample.is_running(), "the end of the sample")
        wait_for(lambda: "has died" in study.log(), "the death of the worker for the conductor")
        (study.path.parent / "go").touch()
        study.await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert sorted(text.count("\n") for text in study.outputs("sim/*/runs")) == [1, 1, 1, 2]
    (first,) = (path.with_name("alive.1") for path in study.path.glob("sim/*/runs") if path.read_text().count("\n") == 2)
    assert first.stat().st_mtime < death_of("w-2", study)
    assert not (study.path.parent / "overlaps").exists()
    assert not list(study.path.rglob("overlaps"))

