"""The commands that control a running study: workers --list, queues, stop-workers, monitor, purge; and Celery's own."""

from __future__ import annotations

import json
import os
import subprocess

from fakes.clusters import FakeCluster
from support import BIN, PATIENCE_S, wait_for

from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.session import Session

# A sample adds a line to `runs`, and ends when a file with its value, or the file `all`, exists.
WAIT = "echo $(A) >> $(SPECROOT)/runs; while [ ! -e $(SPECROOT)/all ] && [ ! -e $(SPECROOT)/$(A) ]; do sleep 0.05; done"
SPEC = """
    description: {name: control, description: d}
    BATCH
    study:
      - name: sim
        description: d
        run: {cmd: "CMD", task_queue: q}
      - name: post
        description: d
        run: {cmd: "true", depends: [sim]}
    merlin:
      resources:
        workers:
          sims: {args: "--concurrency 2 ARGS", steps: [sim]}
          posts: {args: --concurrency 1, steps: [post]}
      samples:
        generate: {cmd: "seq 1 6 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def spec(cmd=WAIT, args="", batch="batch: {type: local}"):
    return SPEC.replace("CMD", cmd).replace("ARGS", args).replace("BATCH", batch)


def runs(study):
    """Return the values of the samples that have started, in the order of their starts."""
    path = study.path.parent / "runs"
    return path.read_text().split() if path.exists() else []


def let_run(study, *values):
    for value in values:
        (study.path.parent / value).touch()


def command(study, *words):
    return study.command("maestro-celery", *words, str(study.path))


def listed(study, *words):
    answer = command(study, *words, "--json")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def await_leaving(study):
    """Wait until a worker knows that it must leave, and says so in its heartbeat."""
    heartbeats = Session(study.path / "merlin_info" / "session").heartbeats
    wait_for(lambda: any(beat.state is WorkerState.STOPPING for beat in heartbeats.all()), "a worker that leaves")


def await_runs(study, count):
    wait_for(lambda: len(runs(study)) >= count, f"{count} samples: {study.log()}")


def await_running(study, count):
    """Wait until the ledger says that samples run, which may be later than the first command of their scripts."""
    wait_for(lambda: study.status()["steps"][0]["samples"]["running"] == count, f"{count} running samples")


def test_workers_that_are_stopped_end_their_samples_and_the_study_waits(run):
    """Given a study with two running samples, when its workers are stopped, then these two end, and no other one runs.

    No worker starts until the study is resumed; then each of the others runs once.
    """
    study = run(spec(), "-s", "1")
    await_runs(study, 2)
    busy = [("busy", 2)]
    wait_for(lambda: [(one["state"], one["running"]) for one in listed(study, "workers", "--list")] == busy, "a busy worker")
    first = runs(study)

    (worker,) = listed(study, "workers", "--list")
    assert {key: worker[key] for key in ("name", "group", "state", "slots", "task_queues", "allocation")} == {
        "name": "sims-1", "group": "sims", "state": "busy", "slots": 2, "task_queues": ["q"], "allocation": "",
    }  # fmt: skip
    assert worker["since"] > 0
    queue = {queue["name"]: queue for queue in listed(study, "queues")}["q"]
    assert (queue["steps"], queue["groups"], queue["workers"]) == (["sim"], ["sims"], ["sims-1"])
    assert (queue["waiting"], queue["running"]) == (4, 2)
    assert queue["messages"] == queue["broker_messages"] > 0
    assert "sims-1  sims" in command(study, "workers", "--list").stdout
    assert "sim " in command(study, "queues").stdout
    declined = command(study, "stop-workers")
    assert (declined.returncode, "Aborted" in declined.stderr) == (1, True)
    assert study.status()["workers_stopped"] is None

    stopped = listed(study, "stop-workers", "-f", "--group", "sims")

    assert (stopped["groups"], stopped["workers"], stopped["has_conductor"]) == (["sims"], ["sims-1"], True)
    await_leaving(study)
    assert listed(study, "workers", "--list")[0]["running"] == 2
    let_run(study, *first)
    monitored = command(study, "monitor", "--sleep", "0.2", "--stalled-after", "2")
    assert monitored.returncode == 5, monitored.stdout
    assert "It has stalled: no worker is alive, and no allocation is open. The workers of group 'sims' are stopped. A user" in monitored.stdout
    assert (runs(study), listed(study, "workers", "--list")) == (first, [])
    assert [path.stem for path in (study.path / "merlin_info" / "workers").glob("*.log")] == ["sims-1"]
    status = study.status()
    assert [(step["state"], step["samples"]["finished"]) for step in status["steps"]] == [("PENDING", 2), ("INITIALIZED", 0)]
    assert status["workers_stopped"]["groups"] == ["sims"]
    explained = command(study, "explain").stdout
    resume = f"`maestro-celery resume {study.path}` starts its workers again"
    assert f"A user has called `maestro-celery stop-workers`. The study waits: {resume}" in explained
    assert "Worker group 'sims': its workers are stopped." in explained
    assert "The workers of group 'sims' are stopped." in " ".join(command(study, "status").stdout.split())
    assert "without options" in command(study, "resume", "--failed").stderr

    let_run(study, "all")
    assert "The conductor of the study runs, and starts workers again.\n" in command(study, "resume").stdout
    ended = command(study, "monitor", "--sleep", "0.2", "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [one["outcome"] for one in json.loads(ended.stdout)] == ["well"]
    assert sorted(runs(study)) == list("123456")


def test_the_processes_of_a_pool_end_their_samples_before_their_worker_leaves(run):
    study = run(spec(args="--pool prefork"), "-s", "1")
    await_runs(study, 2)
    first = runs(study)

    assert command(study, "stop-workers", "-f").returncode == 0

    await_leaving(study)
    let_run(study, *first)
    assert command(study, "monitor", "--sleep", "0.2", "--stalled-after", "1").returncode == 5
    assert runs(study) == first
    assert [step["samples"]["finished"] for step in study.status()["steps"]] == [2, 0]


def test_stopped_at_once_samples_run_again_on_workers_that_a_user_starts(run):
    """Given running samples, when their workers are stopped at once, then they run again.

    A user starts workers by a command, while the conductor starts none.
    """
    study = run(spec(), "-s", "1")
    await_runs(study, 2)
    first = runs(study)

    answer = command(study, "stop-workers", "--now", "-f")

    assert answer.returncode == 0, answer.stderr
    wait_for(lambda: not listed(study, "workers", "--list"), "the end of the worker")
    assert command(study, "monitor", "--sleep", "0.2", "--timeout", "0.1").returncode == 4
    assert "The study waits" in command(study, "explain").stdout
    assert command(study, "workers", "--group", "sims", "--echo").returncode == 0
    workers = subprocess.Popen(
        [BIN / "maestro-celery", "workers", "--group", "sims", study.path], env=study.environment, stdout=subprocess.DEVNULL
    )
    await_runs(study, 4)
    await_running(study, 2)
    explained = command(study, "explain").stdout
    assert "Worker group 'sims': sims-2 (busy)." in explained
    assert "The study waits" not in explained
    let_run(study, "all")
    wait_for(lambda: study.states()["sim"] == "FINISHED", "the step")
    assert sorted(runs(study)) == sorted([*first, *"123456"])
    names = {path.stem for path in (study.path / "merlin_info" / "workers").glob("*.log")}
    assert names == {"sims-1", "sims-2"}, "the conductor has started a worker"

    assert command(study, "resume").returncode == 0  # for the other group, which is stopped as well
    study.await_end()
    workers.wait(PATIENCE_S)
    assert study.states() == {"sim": "FINISHED", "post": "FINISHED"}


def test_purged_samples_wait_for_a_resume(run):
    """Given two running and four waiting samples, when they are purged, then the running ones end, and the study ends."""
    study = run(spec(), "-s", "1")
    await_runs(study, 2)
    await_running(study, 2)
    first = runs(study)
    assert "the study has no step 'smi'; allowed: 'post', 'sim'." in command(study, "purge", "--step", "smi").stderr
    assert command(study, "purge", "--step", "post").stdout == "No samples wait; nothing is purged.\n"
    declined = command(study, "purge")
    assert "4 waiting samples of sim will not run, nor what depends on them" in declined.stdout
    assert declined.returncode == 1

    assert listed(study, "purge", "-f", "--step", "sim")["purged_samples"] == {"sim": 4}

    study.await_text("merlin_info/reasons.json", "maestro-celery purge")
    let_run(study, "all")
    ended = study.command("maestro-celery", "monitor", "--sleep", "0.2", str(study.path.with_suffix(".yaml")))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    study.await_end()
    assert runs(study) == first
    assert study.states() == {"sim": "CANCELLED", "post": "CANCELLED"}
    assert "has taken its waiting samples back" in command(study, "explain").stdout
    assert "has no conductor, so that no samples wait" in command(study, "purge", "-f").stderr
    assert command(study, "stop-workers", "-f").stdout == (
        "This study has no conductor and no live workers; nothing is stopped.\n"
    )

    assert "sim: 4 remaining samples" in command(study, "resume").stdout
    study.await_end()
    assert study.states() == {"sim": "FINISHED", "post": "FINISHED"}
    assert sorted(runs(study)) == list("123456")


def test_a_study_can_be_resumed_directly_after_it_was_cancelled(run):
    """Given samples that ignore SIGTERM, when their study is cancelled and resumed, then the resume waits for their end."""
    cmd = "if [ -e $(SPECROOT)/all ]; then exit; fi; trap '' TERM; echo $(A) >> $(SPECROOT)/runs; while sleep 0.05; do :; done"
    study = run(spec(cmd), "-s", "1")
    await_runs(study, 2)
    first = runs(study)

    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    let_run(study, "all")
    answer = command(study, "resume", "-fg", "-s", "1")

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[:2] == ["This will run:", "  sim: 6 remaining samples"]
    assert study.states() == {"sim": "FINISHED", "post": "FINISHED"}
    assert runs(study) == first


def test_an_allocation_whose_workers_are_stopped_costs_no_restart(run, tmp_path, environment):
    """Given samples in an allocation, when the workers are stopped, then the job ends after the running samples.

    No other job starts until the study is resumed, and the step has no restart.
    """
    with FakeCluster(tmp_path / "cluster", "flux", nodes=4, cores=2, minute_s=60, grace_s=2) as cluster:
        environment.update(cluster.insert_into(environment), USER="somebody")
        study = run(spec(batch="batch: {type: flux, nodes: 1, walltime: '00:30:00'}"), "-s", "1", "-r", "1")
        await_runs(study, 2)
        first = runs(study)

        assert command(study, "stop-workers", "-f").returncode == 0

        await_leaving(study)
        let_run(study, *first)
        wait_for(lambda: [job["state"] for job in cluster.jobs()] == ["ended"], "the end of the job")
        assert command(study, "monitor", "--sleep", "0.2", "--stalled-after", "3").returncode == 5
        assert [job["why"] for job in cluster.jobs()] == [""]
        assert runs(study) == first
        assert [step["state"] for step in study.status()["steps"]] == ["PENDING", "INITIALIZED"]

        let_run(study, "all")
        assert command(study, "resume").returncode == 0
        study.await_end()
        assert study.states() == {"sim": "FINISHED", "post": "FINISHED"}, study.log()
        assert sorted(runs(study)) == list("123456")
        assert [step["restarts"] for step in study.status()["steps"]] == [0, 0]


def test_samples_find_a_small_merlin(run, tmp_path):
    """Given samples that call Merlin, which is not installed, then the same words control this study.

    The first sample ends when its worker knows that it must leave, so that no other one runs.
    """
    cmd = (
        "merlin query-workers > workers; merlin run-workers x.yaml > started; merlin server start 2> server; "
        "merlin run $(SPECROOT)/nested.yaml --dry > launched; "
        "merlin queue-info --spec $(MERLIN_SPEC_ORIGINAL_TEMPLATE) > queues; "
        "merlin stop-workers --spec $(SPECROOT)/study.yaml --queues q > stopped; "
        "until grep -q stopping $MAESTRO_CELERY_SESSION/workers/sims-1.json; do sleep 0.1; done; echo $(A)"
    )
    (tmp_path / "nested.yaml").write_text(
        "description: {name: nested, description: d}\n"
        f"env: {{variables: {{OUTPUT_PATH: {tmp_path / 'nested'}}}}}\n"
        "study: [{name: n, description: d, run: {cmd: 'true'}}]\n"
    )
    study = run(spec(cmd).replace("--concurrency 2", "--concurrency 1"), "-s", "1")

    study.await_text("sim/*/sim.out", "", count=1)
    assert command(study, "monitor", "--sleep", "0.2", "--stalled-after", "1").returncode == 5
    assert "sims-1" in study.outputs("sim/*/workers")[0]
    assert "nothing to do" in study.outputs("sim/*/started")[0]
    assert "pip install merlin" in study.outputs("sim/*/server")[0]
    assert list(tmp_path.glob("nested/nested_*/n/n.sh"))
    assert "sim " in study.outputs("sim/*/queues")[0]
    assert "Workers that end after their running samples: sims-1" in study.outputs("sim/*/stopped")[0]
    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    study.await_end()
    assert len(study.outputs("sim/*/sim.out")) == 1


def test_celery_sees_the_events_of_workers_and_cannot_control_them(run, redis_server):
    """Given workers with `-E`, then Celery's monitor shows their tasks, and no command of remote control is answered."""
    study = run(spec("sleep 0.3; echo $(A)", args="-E").replace("seq 1 6", "seq 1 2000"), "--broker", redis_server.url, "-s", "1")
    environment = {**study.environment, "CELERY_BROKER_URL": redis_server.url}
    study.await_text("merlin_info/workers/sims-1.log", "2 slots")
    output = study.path.parent / "events"
    with output.open("w") as file, subprocess.Popen(
        [BIN / "celery", "events", "--dump"], env={**environment, "PYTHONUNBUFFERED": "1"}, stdout=file, stderr=file
    ) as events:
        try:
            wait_for(lambda: "task succeeded: maestro_celery.run_range" in output.read_text(), "an event")
        finally:
            events.kill()
    for words in (["inspect", "ping"], ["control", "shutdown"]):
        answer = subprocess.run(
            [BIN / "celery", *words], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert answer.returncode == os.EX_UNAVAILABLE, answer
        assert "No nodes replied" in answer.stdout + answer.stderr
    session = Session(study.path / "merlin_info" / "session")
    assert [beat.name for beat in session.heartbeats.all()] == ["sims-1"]
    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    study.await_end()
