"""`maestro-celery wait` with a real study: its end, Ctrl-C, and the lines on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess

from support import BIN, PATIENCE_S, wait_for

SPEC = """
    description: {name: waited, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "while [ ! -e $(SPECROOT)/go ]; do sleep 0.05; done; exit $(A)"}
      - name: post
        description: d
        run: {cmd: "true", depends: [sim_*]}
    merlin:
      samples:
        generate: {cmd: "printf '0\\\\n3\\\\n' > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
      resources:
        workers:
          w: {args: --concurrency 2}
"""


def started(study, *words, **streams):
    command = [str(BIN / "maestro-celery"), "wait", *words, str(study.path)]
    return subprocess.Popen(command, env=study.environment, cwd=study.path.parent, **streams)


def read_until(terminal, text):
    """Return what a terminal has received when `text` is in it: one read may return less."""
    data = b""
    while text not in data:
        data += os.read(terminal, 1000)
    return data.decode()


def read_rest(terminal):
    """Return what a terminal has received until all programs on it have ended, and close it."""
    data = b""
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO instead of an end
        while part := file.read(1000):
            data += part
    return data.decode()


def test_a_script_waits_for_the_end_of_a_study(run):
    """Given a study with a failed sample, and a wait on a terminal, then the code is 1 and each change has a line."""
    study = run(SPEC, "-s", "1")
    assert study.command("maestro-celery", "wait", "--timeout", "0.5", str(study.path)).returncode == 124
    study.await_text("sim/*/sim.sh", count=2)
    wait_for(lambda: len(study.states()) == 2, "the steps in the first line")
    leader, follower = pty.openpty()
    waiting = started(study, stderr=follower)
    os.close(follower)
    shown = read_until(leader, b"\n")
    (study.path.parent / "go").touch()

    assert waiting.wait(PATIENCE_S) == 1

    shown += read_rest(leader)
    lines = shown.splitlines()
    assert "RUNNING: 0/2 steps" in lines[0]
    assert lines[-1].startswith("study  FINISHED: 2/2 steps, ")
    assert len(lines) == len(set(lines))
    by_specification = study.command("maestro-celery", "wait", str(study.path.with_suffix(".yaml")))
    assert (by_specification.returncode, by_specification.stdout) == (1, "")


def test_an_interruption_ends_the_wait_only(run):
    """Given Ctrl-C, then the code is 130, without a traceback, and the study goes on; a cancelled study has the code 2."""
    study = run(SPEC, "-s", "1")
    study.await_text("sim/*/sim.sh", count=2)
    leader, follower = pty.openpty()
    waiting = started(study, stderr=follower, stdin=subprocess.DEVNULL)
    os.close(follower)
    read_until(leader, b"RUNNING")  # it waits
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(PATIENCE_S) == 130
    message = read_rest(leader)
    assert message.splitlines()[-1] == (
        "maestro-celery: interrupted; a conductor that runs goes on, and `maestro-celery status` shows it."
    )
    assert "Traceback" not in message

    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    assert study.command("maestro-celery", "wait", str(study.path)).returncode == 2
