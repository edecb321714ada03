"""Difficult circumstances in which a study must still work."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import psutil
import pytest
from support import BIN, PATIENCE_S, ROOT, kill, wait_for

from maestro_celery_plugin.study.session import Session

# Samples wait for the end of the test, so that the study still runs when it is disturbed.
HOLD = "until test -e $(SPECROOT)/go; do sleep 0.1; done"
SPEC = f"""
    description: {{name: hostile, description: d}}
    study:
      - name: sim
        description: d
        run: {{cmd: "echo run >> runs; {HOLD}; echo $(A)"}}
      - name: post
        description: d
        run: {{cmd: "ls $(sim.workspace)/$(MERLIN_GLOB_PATH)sim.out | wc -l", depends: [sim]}}
    merlin:
      resources:
        workers:
          w: {{args: --concurrency 2}}
      samples:
        generate: {{cmd: "seq 1 20 > $(MERLIN_INFO)/a.csv"}}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def finish(study) -> None:
    (study.path.parent / "go").touch()
    study.await_end()
    assert set(study.states().values()) == {"FINISHED"}
    assert study.outputs("post/post.out") == ["20\n"]


def test_several_resumes_at_once_start_one_conductor(run):
    study = run(SPEC)
    study.await_text("sim/*/runs", "run", 2)
    while study.processes():  # one that a process has started before its own end as well
        kill(*study.processes())

    resumes = [
        subprocess.Popen(
            [str(BIN / "maestro-celery"), "resume", str(study.path)],
            env=study.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(4)
    ]
    codes = sorted(process.wait() for process in resumes)

    assert codes == [0, 1, 1, 1]
    finish(study)


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_CONFIG_MODULE", "CELERY_LOADER"])
def test_environment_variables_of_celery_have_no_effect(run, environment, name):
    environment[name] = "redis://127.0.0.1:1/0"

    study = run(ROOT / "specs" / "hello_samples.yaml").await_end()

    assert study.outputs("count/*.out") == ["20\n"]


def test_a_running_study_is_not_overwritten(run):
    study = run(SPEC)
    study.await_text("sim/*/runs", "run", 2)

    again = run(SPEC)

    assert again.code == 1
    assert "a study is running in" in again.output
    finish(study)
    assert study.outputs("sim/*/runs") == ["run\n"] * 20


def test_a_study_with_a_frozen_worker_can_be_cancelled(run):
    study = run(SPEC)
    study.await_text("sim/*/runs", "run", 2)
    workers = [psutil.Process(pid) for pid in study.processes("maestro_celery_plugin.worker")]
    for worker in workers:
        worker.suspend()

    study.command("maestro", "cancel", "-y", str(study.path))
    wait_for(lambda: study.states().get("sim") == "CANCELLED", "the cancellation")
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):  # the conductor may have killed it
            worker.resume()
    study.await_end()


def test_a_detached_process_of_a_sample_ends_with_its_worker(run):
    """Given a sample that starts a process without environment in another session, then this process ends as well."""
    study = run(SPEC.replace(HOLD, "env -i setsid sleep 1234 & sleep 1233"))
    study.await_text("sim/*/runs", "run", 2)
    wait_for(lambda: [line for line in _in_samples(study) if "1234" in line] == ["sleep 1234"] * 2, "the detached processes")

    study.command("maestro", "cancel", "-y", str(study.path))
    study.await_end()

    wait_for(lambda: not _in_samples(study), "the end of the detached processes")


def _in_samples(study) -> list[str]:
    """Return the command lines of the processes whose current directory is that of a sample."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(study.path / "sim")):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
        except OSError:
            continue
    return found


def test_a_port_that_another_process_has_taken(run):
    """Given a dead broker whose port is taken, then the next broker uses another port, and the study finishes."""
    study = run(SPEC)
    study.await_text("sim/*/runs", "run", 2)
    session = Session(study.path / "merlin_info" / "session")
    before = session.read_broker().url
    (supervisor,) = study.processes("maestro_celery_plugin.host")
    os.kill(supervisor, signal.SIGSTOP)
    kill(*study.server())
    port = int(before.rpartition(":")[2].partition("/")[0])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_for(lambda: _bound(thief, port), "the port")
        thief.listen()
        threading.Thread(target=_drop_connections, args=(thief,), daemon=True).start()
        os.kill(supervisor, signal.SIGCONT)
        finish(study)

    assert not study.processes()


def _bound(server: socket.socket, port: int) -> bool:
    try:
        server.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _drop_connections(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_a_closed_terminal_ends_a_study_in_the_foreground(run, tmp_path, environment):
    spec = tmp_path / "fg.yaml"
    spec.write_text("\n".join(line[4:] for line in SPEC.splitlines()))
    study = run(SPEC.replace("seq 1 20", "seq 1 1").replace(HOLD, "true"), name="first").await_end()
    study.path = tmp_path / "fg"
    process = subprocess.Popen(
        [str(BIN / "maestro"), "run", "-y", "-fg", "-o", str(study.path), str(spec)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )
    study.await_text("sim/*/runs", "run", 2)

    process.send_signal(signal.SIGHUP)
    process.wait(PATIENCE_S)

    wait_for(lambda: not study.processes(), f"the end of all processes: {study.processes()}")
