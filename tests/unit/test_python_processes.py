"""Processes of this package: those that a fork server forks look like those that the interpreter starts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import PATIENCE_S, wait_for

from maestro_celery_plugin import python_processes
from maestro_celery_plugin.processes import ProcessId, set_command_line
from maestro_celery_plugin.python_processes import PADDING, command_line, prepare, start
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, Session

WORKER = "maestro_celery_plugin.worker"


@contextlib.contextmanager
def a_fork_server():
    """Prepare a fork server for this process, and end it as the end of this process would."""
    before, python_processes._fork_server = python_processes._fork_server, None
    prepare()
    server, python_processes._fork_server = python_processes._fork_server, before
    with pytest.MonkeyPatch.context() as patch, server._socket, server._process:
        patch.setattr(python_processes, "_fork_server", server)
        yield psutil.Process(server._process.pid)
        server._socket.close()


@pytest.fixture(scope="module")
def server():
    os.environ[ENVIRONMENT_VARIABLE] = "redis://:secret@host"
    with a_fork_server() as process:
        del os.environ[ENVIRONMENT_VARIABLE]
        yield process


@pytest.fixture
def directory(tmp_path):
    return Session.create(tmp_path / "session").path


def begin(directory, *arguments):
    with (directory / "log").open("ab") as output:
        return start(WORKER, [*arguments], directory, output)


def ended(process):
    wait_for(lambda: process.poll() is not None, "the end of the process")
    return process.poll()


def test_a_forked_process_looks_like_one_that_the_interpreter_has_started(server, directory):
    process = begin(directory, "--name=w-1", "--", str(directory), "w")  # it waits for the configuration of the group
    try:
        forked = psutil.Process(process.pid)
        wanted = command_line(WORKER, ["--name=w-1", "--", str(directory), "w"])
        wait_for(lambda: [word for word in forked.cmdline() if word] == wanted, "the command line")
        assert forked.ppid() == server.pid
        assert forked.cwd() == str(directory)
        assert os.getsid(forked.pid) == os.getpgid(forked.pid) == forked.pid
        outputs = {os.readlink(f"/proc/{forked.pid}/fd/{descriptor}") for descriptor in (1, 2)}
        assert outputs == {str(directory / "log")}
        assert os.readlink(f"/proc/{forked.pid}/fd/0") == os.devnull
        assert not [one for one in forked.net_connections("unix") if one.fd in (3, 4, 5)]
        assert "OPENBLAS_NUM_THREADS" not in forked.environ()
        assert process.poll() is None
    finally:
        process.kill()
    assert ended(process) == -signal.SIGKILL


def test_the_exit_code_and_the_output_of_a_forked_process_arrive(server, directory):
    process = begin(directory, "--", str(directory / "absent"), "w")

    assert ended(process) == 1
    assert "error: worker on" in (directory / "log").read_text()


def test_a_wrong_command_line_ends_as_with_the_interpreter(server, directory):
    assert ended(begin(directory, "--unknown")) == 2
    assert "the following arguments are required: session, group" in (directory / "log").read_text()


def test_a_fork_server_keeps_no_secret(server, directory):
    ended(begin(directory, "--unknown"))  # at its begin, the server has the secret

    assert "secret" not in Path(f"/proc/{server.pid}/environ").read_text()


def test_a_command_line_that_is_too_long_needs_no_fork_server(server, directory):
    process = begin(directory, "--", str(directory), "w" * PADDING)
    try:
        assert isinstance(process, subprocess.Popen)
    finally:
        process.kill()
        process.wait()


# --- the end of a fork server ------------------------------------------------------------------------


@pytest.fixture
def other_server():
    """A fork server that a test may kill."""
    with a_fork_server() as process:
        yield process


def test_without_its_fork_server_a_process_goes_on_and_others_start(other_server, directory):
    first = begin(directory, "--name=w-1", "--", str(directory), "w")
    assert first.pid
    other_server.kill()
    other_server.wait(PATIENCE_S)
    assert first.poll() is None
    psutil.Process(first.pid).kill()
    assert ended(first) == 1  # nobody knows the real code any more

    second = begin(directory, "--", str(directory / "absent"), "w")
    assert isinstance(second, subprocess.Popen)
    assert ended(second) == 1


def test_a_request_that_a_dead_fork_server_has_not_answered_counts_as_ended(other_server, directory):
    os.kill(other_server.pid, signal.SIGSTOP)
    process = begin(directory, "--", str(directory), "w")
    assert process.poll() is None
    other_server.kill()
    assert ended(process) == 1
    assert process.pid == 0


def test_a_fork_server_that_does_not_answer_is_given_up(other_server, directory, monkeypatch):
    os.kill(other_server.pid, signal.SIGSTOP)
    monkeypatch.setattr(python_processes, "_ANSWER_LIMIT_S", 0.2)
    process = begin(directory, "--", str(directory), "w")
    assert process.pid == 0
    assert ended(process) == 1
    other_server.wait(PATIENCE_S)


def test_a_fork_server_ends_with_its_process():
    code = "import maestro_celery_plugin.python_processes as p; p.prepare(); print(p._fork_server._process.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wait_for(lambda: not ProcessId.of(int(done.stdout)).start, "the end of the fork server")


# --- the command line --------------------------------------------------------------------------------


def test_a_process_replaces_its_command_line():
    code = (
        "from maestro_celery_plugin.processes import ProcessId, set_command_line\n"
        "set_command_line(['python', '-m', 'mod\\u00fcle', ''])\n"
        "print(open('/proc/self/cmdline', 'rb').read().rstrip(b'\\0').split(b'\\0'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([b"python", b"-m", "modüle".encode()])


def test_a_command_line_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"no room for a command line of \d+ bytes"):
        set_command_line(["x" * 10_000_000])
