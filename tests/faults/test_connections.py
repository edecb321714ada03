"""Connections to the broker that break: a study must go on, and a command from the broker must not end its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from intruder import Intruder, admin_of
from proxy import Proxy
from servers import free_port, redis_on
from support import kill, wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger

# The samples of the first step wait, so that the study still runs when its connections break.
SPEC = """
    description: {name: connections, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "echo run >> runs; until test -e $(SPECROOT)/go; do sleep 0.1; done; echo $(A)"}
    merlin:
      resources:
        workers:
          w: {args: --concurrency 2}
      samples:
        generate: {cmd: "seq 1 60 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""
# The samples of the last step are sent when the connections have failed and the worker `w` is idle.
GATED = """
    description: {name: connections, description: d}
    study:
      - name: first
        description: d
        run: {cmd: "true"}
      - name: gate
        description: d
        run: {cmd: "while test ! -e $(SPECROOT)/go; do sleep 0.1; done", depends: [first], task_queue: g}
      - name: sim
        description: d
        run: {cmd: "echo run >> runs; echo $(A)", depends: [gate]}
    merlin:
      resources:
        workers:
          w: {args: --concurrency 2, idle_limit: 300, steps: [first, sim]}
          g: {args: --concurrency 1, steps: [gate]}
      samples:
        generate: {cmd: "seq 1 6 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


@pytest.fixture(params=["private", "redis", "rabbitmq"])
def options(request) -> tuple[str, ...]:
    """The options of `maestro run` for a broker."""
    if request.param == "private":
        return ()
    return "--broker", request.getfixturevalue(f"{request.param}_server").url


@contextlib.contextmanager
def frozen(study) -> Iterator[None]:
    """Stop the processes of the worker for some time, in which its samples end."""
    workers = [psutil.Process(pid) for pid in study.processes("maestro_celery_plugin.worker")]
    for worker in workers:
        worker.suspend()
    wait_for(lambda: all(worker.status() == psutil.STATUS_STOPPED for worker in workers), "the stop of the worker")
    release_samples(study)
    yield
    for worker in workers:
        worker.resume()


def release_samples(study) -> None:
    (study.path.parent / "go").touch()


def finish(study, samples: int) -> None:
    release_samples(study)
    study.await_end()
    assert set(study.states().values()) == {"FINISHED"}
    assert study.outputs("sim/**/runs") == ["run\n"] * samples


def test_the_server_drops_its_clients_while_the_worker_is_frozen(run):
    study = run(SPEC)
    study.await_text("sim/*/*/runs", "run", 2)

    with frozen(study):
        admin_of(Intruder(study).session).execute_command("CLIENT", "KILL", "SKIPME", "yes")

    finish(study, 60)


def test_the_server_is_killed_while_the_worker_is_frozen(run):
    study = run(SPEC)
    study.await_text("sim/*/*/runs", "run", 2)
    before = Intruder(study).session.read_broker().generation

    with frozen(study):
        os.kill(study.server()[0], signal.SIGKILL)
        wait_for(lambda: Intruder(study).session.read_broker().generation != before, "another server")

    finish(study, 60)


def test_a_broker_that_is_away_while_a_worker_starts_costs_seconds(run, tmp_path):
    """Given a Redis that is started again while a local worker starts, then the worker waits, and no step fails."""
    port = free_port()
    with redis_on(port, tmp_path) as url:
        study = run(SPEC, "--broker", url)
        study.await_text("sim/*/*/runs", "run", 2)
    kill(*study.processes("maestro_celery_plugin.worker"))

    study.await_text("merlin_info/workers/w-2.log", "waits up to 120 s for its broker")
    time.sleep(8)  # three workers that leave at once would end within this time
    assert set(study.states().values()) == {"RUNNING"}

    with redis_on(port, tmp_path):
        release_samples(study)
        study.await_end()
    assert study.states() == {"sim": "FINISHED"}
    assert len(study.outputs("sim/**/sim.out")) == 60
    assert not list(study.path.glob("merlin_info/workers/w-3.log"))


def test_a_command_to_all_workers_changes_nothing(run, options):
    """Given a client of the broker without the key, when it sends `shutdown` to all workers, then they continue."""
    study = run(SPEC, *options)
    study.await_text("sim/*/*/runs", "run", 2)
    intruder = Intruder(study)
    if intruder.admin is not None:
        intruder.app.address = url_of(intruder.admin)

    for command in ("shutdown", "pool_restart", "cancel_consumer", "rate_limit", "revoke"):
        intruder.app.control.broadcast(command, arguments={"queue": intruder.session.queue("merlin")})

    finish(study, 60)
    assert [path.name for path in study.path.glob("merlin_info/workers/*.log")] == ["w-1.log"]


def url_of(client) -> str:
    values = client.connection_pool.connection_kwargs
    return f"redis://{values.get('username') or ''}:{values['password']}@{values['host']}:{values['port']}/0"


@pytest.mark.parametrize(("broker", "pool"), [("redis", "prefork"), ("rabbitmq", "threads")])
def test_a_worker_that_receives_nothing_is_replaced(run, request, broker, pool):
    """Given a worker whose connections are dead without its knowledge, when messages wait for it, then it is replaced."""
    proxy = Proxy(request.getfixturevalue(f"{broker}_server").url)
    try:
        study = run(GATED.replace("--concurrency 2", f"--concurrency 2 --pool {pool}"), "--broker", proxy.url)
        assert study.code == 0, study.output
        wait_for(lambda: started(study) == 2, "the sample of the step `gate`")

        proxy.freeze()
        finish(study, 6)
    finally:
        proxy.close()
    assert "messages have waited for 15 s, and it has received none" in "".join(study.outputs("merlin_info/workers/w-1.log"))


def started(study) -> int:
    path = study.path / "merlin_info" / "ledger"
    return int((read_ledger(path)["kind"] == Kind.STARTED).sum()) if path.exists() else 0
