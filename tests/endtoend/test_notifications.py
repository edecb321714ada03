"""Notifications of real studies: their failure, further allocations, their end, and studies of a session."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from fakes.clusters import FakeCluster
from support import kill, wait_for

# A sample waits for the file `go`, and ends with its value as its exit code.
WAIT = "touch began; while [ ! -e $(SPECROOT)/go ]; do sleep 0.05; done; exit $(A)"
SPEC = """
    description: {name: sweep, description: d}
    BATCH
    study:
      - name: sim
        description: d
        run: {cmd: "CMD"}
      - name: post
        description: d
        run: {cmd: "true", depends: [sim_*]}
    merlin:
      notify: cat >> $(SPECROOT)/received; pwd >> $(SPECROOT)/places
      samples:
        generate: {cmd: "printf '0\\n3\\n' > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
      resources:
        workers:
          w: {args: --concurrency 2}
"""


def spec(cmd=WAIT, batch="batch: {type: local}"):
    return SPEC.replace("CMD", cmd).replace("BATCH", batch)


def received(study):
    """Return what the command has received so far."""
    path = study.path.parent / "received"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def await_events(study, *events):
    """Wait until the command has run for these events, in this order, and for no others."""
    wait_for(lambda: len(received(study)) >= len(events), f"the events {events}")
    wait_for(lambda: not study.processes("report.notifier"), "the end of the commands")
    assert [f"{one['event']} {one['state']}" for one in received(study)] == list(events)


def test_a_failure_and_the_end_are_notified_once_whatever_happens_to_the_conductor(run):
    """Given a conductor that is killed after the failure, and resumes, then each event has one notification."""
    study = run(spec("[ $(A) = 3 ] || while [ ! -e $(SPECROOT)/go ]; do sleep 0.05; done; exit $(A)"), "-s", "1")
    await_events(study, "failure RUNNING")
    assert received(study)[0]["message"] == "Sample 1 of 'sim' has failed: exit code 3."
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the death of the conductor")

    assert study.command("maestro-celery", "resume", "-s", "1", str(study.path)).returncode == 0
    (study.path.parent / "go").touch()
    study.await_end()

    await_events(study, "failure RUNNING", "end FINISHED")
    last = received(study)[-1]
    assert last["message"] == "The study has finished; 1 sample has failed."
    assert last["next"] == f"maestro-celery failed {study.path}"
    assert last["counts"]["samples"] == {"total": 3, "finished": 2, "failed": 1, "running": 0, "pending": 0}
    assert study.command("maestro-celery", "resume", "-s", "1", "-fg", str(study.path)).returncode == 1
    await_events(study, "failure RUNNING", "end FINISHED")

    assert study.command("maestro-celery", "resume", "--failed", "-s", "1", "-fg", str(study.path)).returncode == 1
    await_events(study, "failure RUNNING", "end FINISHED", "failure RUNNING", "end FINISHED")


def test_a_cancellation_and_an_interruption_are_ends(run):
    """Given a study that is interrupted, resumed and cancelled, then these are its ends, in the directory of the study."""
    study = run(spec(), "-s", "1")
    study.await_text("sim/*/began", count=2)
    for pid, line in study.processes("bin/conductor").items():
        if "python" in line:
            os.kill(pid, signal.SIGTERM)
    await_events(study, "end INTERRUPTED")
    assert study.command("maestro-celery", "resume", "-s", "1", str(study.path)).returncode == 0
    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    study.await_end()
    await_events(study, "end INTERRUPTED", "end CANCELLED")
    assert (study.path.parent / "places").read_text() == f"{study.path}\n" * 2


def test_the_conductor_does_not_wait_for_the_command(run):
    """Given a command that does not end, then `maestro run -fg` ends, and the command is in no process of the study."""
    study = run(spec("true"), "-s", "1", "--notify", "sleep 1000", foreground=True)
    assert study.code == 0, study.output
    assert received(study) == []
    wait_for(lambda: study.processes("report.notifier"), "the process that runs the command")
    notifier = min(study.processes("report.notifier"))  # its child looks like it until it runs the command
    children = Path(f"/proc/{notifier}/task/{notifier}/children")
    wait_for(lambda: children.read_text().split(), "the command")
    kill(*map(int, children.read_text().split()))
    wait_for(lambda: not study.processes("report.notifier"), "the end of the process")
    assert "end: the command has failed: exit code -9." in (study.path / "merlin_info" / "notify.log").read_text()


def test_a_further_allocation_is_notified(run, tmp_path, environment):
    """Given an allocation that the batch system ends, then the next one is an event, once."""
    with FakeCluster(tmp_path / "cluster", "flux", nodes=4, cores=2, minute_s=60, grace_s=1) as cluster:
        environment.update(cluster.insert_into(environment), USER="somebody")
        study = run(spec(batch="batch: {type: flux, nodes: 1, walltime: '00:30:00'}"), "-s", "1", "-r", "3")
        study.await_text("sim/*/began", count=2)
        (study.path.parent / "received").touch()
        cluster.end(1, "node")
        await_events(study, "reallocation RUNNING")
        message = received(study)[0]["message"]
        assert message.startswith("Allocation 'w/2' is submitted as job "), message
        assert "'w/1' before it has ended: " in message
        (study.path.parent / "go").touch()
        study.await_end()
    await_events(study, "reallocation RUNNING", "failure RUNNING", "end FINISHED")


def test_a_failed_step_that_maestro_runs_is_a_failure(run, tmp_path):
    (tmp_path / "study.yaml").write_text("")
    text = """
        description: {name: plain, description: d}
        study:
          - name: bad
            description: d
            run: {cmd: "exit 3"}
          - name: ensemble
            description: d
            run: {cmd: "true", task_queue: q}
        merlin:
          notify: cat >> $(SPECROOT)/received
          resources: {unassigned: maestro}
    """
    study = run(text, "-s", "1", foreground=True)
    await_events(study, "failure RUNNING", "end FAILED")
    assert received(study)[0]["message"] == "The step record 'bad' has failed."


def test_each_study_of_a_session_notifies(run, tmp_path):
    """Given a sample that starts a study, then its own command runs, and that of the first study only for the first."""
    (tmp_path / "inner.yaml").write_text(
        f"description: {{name: inner, description: d}}\nenv: {{variables: {{OUTPUT_PATH: {tmp_path}/inner}}}}\n"
        "study: [{name: n, description: d, run: {cmd: 'true', task_queue: q}}]\n"
        f"merlin: {{notify: cat >> {tmp_path}/received, resources: {{workers: {{v: {{args: --concurrency 1}}}}}}}}\n"
    )
    study = run(spec("[ $(A) = 0 ] && maestro run -fg -s 1 $(SPECROOT)/inner.yaml"), "-s", "1", "-y")
    study.await_session()
    wait_for(lambda: len(received(study)) >= 3, "the notifications")
    found = [(one["study"], one["event"], one["state"]) for one in received(study)]
    assert sorted(found) == [
        ("inner", "end", "FINISHED"),
        ("sweep", "end", "FINISHED"),
        ("sweep", "failure", "RUNNING"),
    ]


def test_a_command_that_cannot_run_stops_the_launch(run, environment, tmp_path):
    """Given a misspelt command, then it is named with its place, before a file is created; `validate` warns of it."""
    study = run(spec().replace("notify: cat", "notify: no_such_program"))
    found = (
        "found 'no_such_program', which is not a program on this machine; correct its name, or give its absolute path."
    )
    assert study.code == 1
    assert f"maestro: error: study.yaml: merlin.notify: {found}" in study.output
    assert not study.path.exists()
    answer = study.command("maestro-celery", "validate", str(tmp_path / "study.yaml"))
    assert f"warning: merlin.notify: {found}" in answer.stdout + answer.stderr

    option = run(spec(), "--notify", "no_such_program", name="option")
    assert f"maestro: error: --notify: {found}" in option.output
    path = tmp_path / "home" / ".config" / "maestro-celery" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("notify: no_such_program\n")
    path.chmod(0o600)
    configured = run(spec().replace("notify:", "# notify:"), name="configured")
    assert f"maestro: error: {path}: notify: {found}" in configured.output

    plain = run(
        "description: {name: p, description: d}\nstudy: [{name: s, description: d, run: {cmd: echo}}]\n",
        "--notify",
        "true",
        name="plain",
    )
    assert "--notify: only studies with an ensemble have it" in plain.output
