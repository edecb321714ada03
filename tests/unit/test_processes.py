"""Processes: identified by number and start time, found by a mark in their environment, and ended."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import PATIENCE_S, wait_for

from maestro_celery_plugin import clock
from maestro_celery_plugin.clock import wait_until
from maestro_celery_plugin.processes import ProcessId, end_marked

MARK = "MAESTRO_CELERY_TEST_MARK"


@pytest.fixture
def start():
    """Start processes, and kill them after the test."""
    started = []

    def run(command, mark=None, **options):
        environment = {**os.environ, MARK: mark} if mark else None
        process = subprocess.Popen(["/bin/bash", "-c", command], env=environment, start_new_session=True, **options)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def await_command(pid, name):
    """Wait for a command and its environment: during an exec, a process already has the name, and not yet the environment."""
    process = Path(f"/proc/{pid}")
    wait_for(lambda: (process / "comm").read_text() == f"{name}\n" and (process / "environ").read_bytes(), f"the start of {name}")


def read_number(process):
    return int(process.stdout.readline())


def test_a_running_process_is_alive_until_it_is_reaped(start):
    process = start("exec sleep 600")
    identity = ProcessId.of(process.pid)

    assert identity.start > 0
    assert identity.is_alive
    process.kill()
    process.wait()
    assert not identity.is_alive


def test_a_later_process_with_the_same_number_is_a_different_process(start):
    process = start("exec sleep 600")
    earlier = ProcessId(process.pid, ProcessId.of(process.pid).start - 1)

    assert not earlier.is_alive
    earlier.signal(signal.SIGKILL)
    time.sleep(0.05)
    assert process.poll() is None


def test_a_zombie_is_not_alive(start):
    process = start("exec sleep 600")
    identity = ProcessId.of(process.pid)
    process.kill()

    wait_for(lambda: not identity.is_alive, "the end of the process")
    assert process.returncode is None  # not reaped yet


def test_a_process_is_identified_although_its_command_name_has_parentheses_and_blanks(tmp_path, start):
    program = tmp_path / "a) R 1 (b"
    program.symlink_to(shutil.which("sleep"))
    before = ProcessId.of(start("exec sleep 600").pid)
    special = ProcessId.of(start(f"exec '{program}' 600").pid)
    await_command(special.pid, program.name)
    after = ProcessId.of(start("exec sleep 600").pid)

    assert special.is_alive
    assert before.start <= special.start <= after.start


def test_a_process_that_does_not_exist_is_not_alive():
    assert not ProcessId.of(2**22 + 1).is_alive
    assert not ProcessId(0, 0).is_alive
    ProcessId(2**22 + 1, 0).signal(signal.SIGKILL)


def test_a_signal_to_a_process_group_reaches_the_child_processes(start):
    process = start("sleep 600 & echo $!; wait", stdout=subprocess.PIPE)
    child = ProcessId.of(read_number(process))

    ProcessId.of(process.pid).signal(signal.SIGKILL, group=True)

    wait_for(lambda: not child.is_alive, "the end of the child process")


def test_marked_processes_are_ended_in_every_process_session(start):
    process = start("setsid sleep 600 & echo $!; wait", "study:w-1", stdout=subprocess.PIPE)
    child = ProcessId.of(read_number(process))
    others = [start("exec sleep 600"), start("exec sleep 600", "study:w-11"), start("exec sleep 600", "study:w-1")]
    for pid in (child.pid, *(other.pid for other in others)):
        await_command(pid, "sleep")
    assert os.getsid(child.pid) == child.pid

    found = end_marked(MARK, "study:w-1", spare=frozenset({others[2].pid}), grace_s=PATIENCE_S)

    assert found == 2
    assert not child.is_alive
    assert process.wait() == -signal.SIGTERM
    assert [other.poll() for other in others] == [None, None, None]


def test_marked_processes_that_ignore_sigterm_are_killed(start):
    process = start("trap '' TERM; echo 1; while :; do sleep 0.05; done", "stubborn", stdout=subprocess.PIPE)
    read_number(process)

    assert end_marked(MARK, "stubborn", grace_s=0.1) >= 1
    assert process.wait() == -signal.SIGKILL


def test_a_marked_caller_is_not_ended():
    """Given a worker that a sample has started, then the worker has a mark in its own environment."""
    program = (
        "import os, subprocess, sys; from maestro_celery_plugin.processes import end_marked;"
        f"print(end_marked('{MARK}', 'own'))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, MARK: "own"}, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "0\n"


def test_wait_until_returns_at_the_condition_or_after_the_time_limit(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(clock, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert wait_until(lambda: True, 5)
    assert now == [1000.0]
    assert wait_until(lambda: now[0] > 1003, 5)
    assert now == [pytest.approx(1003, abs=0.1)]
    assert not wait_until(lambda: False, 5)
    assert now == [pytest.approx(1008, abs=0.1)]


def test_a_process_whose_parent_has_already_died_ends_at_once(tmp_path):
    """Given a parent that died before its child called `die_with_parent`, then the child ends at once."""
    script = (
        "import os, signal, time\n"
        "from maestro_celery_plugin.processes import die_with_parent\n"
        "parent = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        f"    open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid()))\n"
        "    die_with_parent(parent)\n"
        "    signal.alarm(600)\n"
        "    signal.pause()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text() != "", "the child process")
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in _state(child), "its end")


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_marked_process_that_has_cleared_an_environment_entry_is_ended(start):
    """Given a program that overwrites a password in its environment with zeros, then its mark is still found."""
    clear = (
        "import ctypes, time; environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ'); "
        "ctypes.memset(ctypes.cast(environ, ctypes.POINTER(ctypes.c_void_p))[0], 0, 8); print(1, flush=True); time.sleep(600)"
    )
    command = f'exec env -i PASSWORD=x "{MARK}=${MARK}" {sys.executable} -c "{clear}"'
    process = start(command, mark="cleared", stdout=subprocess.PIPE)
    read_number(process)
    assert b"PASSWORD" not in Path(f"/proc/{process.pid}/environ").read_bytes()

    assert end_marked(MARK, "cleared", grace_s=PATIENCE_S) == 1
    assert process.wait(PATIENCE_S) == -signal.SIGTERM


def test_a_forgotten_variable_is_in_no_environment(tmp_path):
    """Given a password in the environment, when a process forgets it, then the kernel shows it neither there nor in children."""
    script = (
        "import os, subprocess, sys; from maestro_celery_plugin.processes import forget_variable; "
        "forget_variable('URL'); forget_variable('NO_SUCH'); "
        "own = open('/proc/self/environ').read(); child = subprocess.check_output(['cat', '/proc/self/environ'], text=True); "
        "print(repr((own, child, os.environ['KEPT'])))"
    )
    environment = {"KEPT": "URL=x", "URL": "zigzag", "MY_URL": "kept"}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)

    own, child, kept = ast.literal_eval(answer.stdout)
    assert "zigzag" not in own + child
    for text in (own, child):
        assert "KEPT=URL=x\0" in text
        assert "MY_URL=kept\0" in text
    assert kept == "URL=x"
