"""The runner: it starts samples as processes of real shells."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ensembles import a_manifest
from support import PATIENCE_S, wait_for

from maestro_celery_plugin import clock
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.worker.attempt import KILL_AFTER_S, Runner


@pytest.fixture
def make(tmp_path):
    """Make the runner of a step record whose samples have one value each, and create its workspace."""

    def build(cmd, value="v", **changes):
        manifest = a_manifest(tmp_path, cmd=cmd, labels=["V"], **changes)
        Path(manifest.workspace).mkdir(parents=True, exist_ok=True)
        return Runner(manifest, lambda sample: [value])

    return build


def attempt(runner, sample=0):
    assert runner.directories.make(sample)
    return runner.start(sample, first=True).wait()


def files(runner, sample=0):
    directory = Path(runner.directories.path(sample))
    return {path.name: path.read_text() for path in directory.iterdir() if not path.name.endswith(".sh")}


def out(runner, sample=0):
    return files(runner, sample)["sim.out"]


# --- how a sample runs -------------------------------------------------------------------------------


def test_a_sample_runs_in_its_own_directory_and_process_group_with_empty_stdin(make):
    runner = make("pwd -P; echo $$; cut -d' ' -f5,6 /proc/$$/stat; cat; echo end")
    result = attempt(runner, 3)

    directory, pid, group, end = out(runner, 3).splitlines()
    assert directory == os.path.realpath(runner.directories.path(3))
    assert runner.directories.path(3).endswith("sim/X.1/03")
    assert group == f"{pid} {pid}"
    assert int(pid) != os.getpgid(0)
    assert end == "end"
    assert (result.record, result.sample, result.code, result.was_ended) == ("sim_X.1", 3, 0, False)


def test_a_sample_does_not_read_stdin_of_its_worker(make):
    reading, writing = os.pipe()
    os.write(writing, b"not for samples\n")
    os.close(writing)
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        runner = make("cat; echo end")
        attempt(runner)
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reading)

    assert out(runner) == "end\n"


@pytest.mark.parametrize(("cmd", "code"), [("exit 0", 0), ("exit 104", 104), ("exit 255", 255), ("kill -9 $$", -9)])
def test_an_attempt_has_the_exit_code_of_the_sample(make, cmd, code):
    assert attempt(make(cmd)).code == code


def test_an_attempt_has_the_duration_of_the_sample(make):
    begin = time.monotonic()
    duration_s = attempt(make("sleep 0.05")).duration_s
    assert 0.05 < duration_s < time.monotonic() - begin


@pytest.mark.parametrize("value", ["\\1 \\n", "$(HOME) $HOME `id` $(V)", "'\"", "ü €", "a  b", "*"])
def test_values_are_substituted_literally(make, value):
    runner = make("cat <<'END'\n$(V)|$(MERLIN_SAMPLE_ID)|$(MERLIN_SAMPLE_PATH)|$(OTHER)\nEND", value)
    attempt(runner, 7)

    assert out(runner, 7) == f"{value}|7|07|$(OTHER)\n"


def test_the_script_has_its_interpreter_in_the_first_line(make):
    runner = make("echo $(V)")
    runner.directories.make(0)

    script = Path(runner.directories.path(0), "sim.sh")
    assert script.read_text() == "#!/bin/bash\n\necho v\n"
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("shell", "cmd"),
    [
        (sys.executable, "print('$(V)', 6 * 7)"),
        ("/usr/bin/env python3", "print('$(V)', 6 * 7)"),
        ("/bin/bash -e", "echo $(V) 42; false; echo not here"),
        pytest.param(
            "/usr/bin/env perl",
            'print "$(V) ", 6 * 7, "\\n";',
            marks=pytest.mark.skipif(not shutil.which("perl"), reason="perl is not installed"),
        ),
    ],
)
def test_any_interpreter_can_run_the_script(make, shell, cmd):
    runner = make(cmd, shell=shell)
    attempt(runner)
    assert out(runner) == "v 42\n"


def test_a_step_record_that_is_not_sampled_runs_in_its_workspace_and_keeps_its_tokens(tmp_path):
    manifest = a_manifest(tmp_path, cmd="pwd -P; echo '$(MERLIN_SAMPLE_ID)'", sampled=False, samples=1)
    Path(manifest.workspace).mkdir(parents=True)
    runner = Runner(manifest, lambda sample: ())

    assert not runner.directories.make(0)
    assert runner.start(0, first=False).wait().code == 0
    assert out(runner) == f"{os.path.realpath(manifest.workspace)}\n$(MERLIN_SAMPLE_ID)\n"


# --- outputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cmd", "kept"),
    [
        ("true", {}),
        ("echo a", {"sim.out": "a\n"}),
        ("echo b >&2", {"sim.err": "b\n"}),
        ("echo a; echo b >&2", {"sim.out": "a\n", "sim.err": "b\n"}),
    ],
)
def test_outputs_are_kept_unless_they_are_empty(make, cmd, kept):
    runner = make(cmd)
    attempt(runner)
    assert files(runner) == kept


def test_a_later_attempt_appends_a_header_and_its_output(make):
    runner = make("echo first", restart="echo again; echo trouble >&2")
    attempt(runner)
    runner.start(0, first=False, restart=True).wait()
    runner.start(0, first=False, restart=False).wait()

    first, header, again, header_2, last = out(runner).splitlines()
    assert (first, again, last) == ("first", "again", "first")
    assert header.startswith("=== run again with restart, 20")
    assert header_2.startswith("=== run again with cmd, 20")
    trouble, header_3 = files(runner)["sim.err"].splitlines()  # the first output in a file has no header
    assert (trouble, header_3) == ("trouble", header_2)


def test_a_header_without_output_is_removed_except_below_errors(make):
    """Given an attempt that writes nothing, then the errors of the attempt before it do not look like its own."""
    runner = make("echo first; echo trouble >&2", restart="true")
    attempt(runner)
    runner.start(0, first=False, restart=True).wait()

    assert files(runner)["sim.out"] == "first\n"
    trouble, header = files(runner)["sim.err"].splitlines()
    assert trouble == "trouble"
    assert header.startswith("=== run again with restart, 20")


def test_a_step_without_restart_does_not_claim_that_it_ran(make):
    runner = make("echo first", restart="echo first")
    attempt(runner)
    runner.start(0, first=False, restart=True).wait()

    assert out(runner).splitlines()[1].startswith("=== run again with cmd, 20")


def test_the_restart_script_is_next_to_the_cmd_script(make):
    runner = make("echo $(V)", restart="echo $(V) again")
    attempt(runner)
    runner.start(0, first=False, restart=True).wait()

    scripts = {path.name: path.read_text() for path in Path(runner.directories.path(0)).glob("*.sh")}
    assert scripts == {
        "sim.sh": "#!/bin/bash\n\necho v\n",
        "sim.restart.sh": "#!/bin/bash\n\necho v again\n",
    }


@pytest.mark.parametrize(
    ("cmd", "kept"),
    [
        ("rm sim.out", {}),
        ("echo a; rm sim.out sim.err", {}),
        ("rm sim.out; echo mine > sim.out", {"sim.out": "mine\n"}),
        ("mv sim.out kept; echo mine > sim.out", {"kept": "", "sim.out": "mine\n"}),
        ("echo mine > sim.out", {"sim.out": "mine\n"}),
        ("rm -rf ../00", None),
    ],
)
def test_a_sample_may_remove_or_replace_its_outputs(make, cmd, kept):
    runner = make(cmd)
    result = attempt(runner)

    assert result.code == 0
    assert (files(runner) if os.path.exists(runner.directories.path(0)) else None) == kept


@contextlib.contextmanager
def files_up_to(size):
    """Limit the size of the files of this process, which simulates a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_result_of_a_sample_counts_even_if_its_output_cannot_be_stored(make, monkeypatch):
    """Some file systems report an error of an earlier write at close."""
    runner = make("echo a; exit 3")
    runner.directories.make(0)
    running = runner.start(0, first=True)
    close = os.close

    def fail(descriptor):
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", fail)
    result = running.wait()
    monkeypatch.setattr(os, "close", close)

    assert result.code == 3


def test_a_runner_leaves_no_file_open(make):
    runner = make("echo a; echo b >&2")
    attempt(runner)
    before = sorted(os.listdir("/proc/self/fd"))

    runner.start(0, first=False).wait()
    Path(runner.directories.path(0), "sim.out").write_text("x" * 10_000)
    with files_up_to(5000), pytest.raises(OSError):
        runner.start(0, first=False)  # no space for the header
    os.remove(f"{runner.directories.path(0)}/sim.err")
    os.mkdir(f"{runner.directories.path(0)}/sim.err")
    with pytest.raises(OSError):
        runner.start(0, first=False)

    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_sample_starts_in_a_worker_that_counts_as_dead(make):
    """Given a worker that was stopped after it has taken a sample, then another one may run it: it starts nothing."""
    runner = make("echo a > a.txt")
    runner.directories.make(0)

    with pytest.raises(TimeoutError, match="counts as dead"):
        runner.start(0, first=True, is_cut_off=lambda: True)

    assert not Path(runner.directories.path(0), "a.txt").exists()


# --- samples that cannot start -----------------------------------------------------------------------


def test_a_missing_interpreter_is_an_error_and_leaves_no_outputs(make):
    runner = make("true", shell="/no/such/shell")

    with pytest.raises(OSError, match="/no/such/shell") as error:
        attempt(runner)
    assert error.value.errno == errno.ENOENT
    assert files(runner) == {}


def test_an_interpreter_that_is_not_executable_is_an_error(make, tmp_path):
    (tmp_path / "shell").touch(mode=0o644)

    with pytest.raises(OSError) as error:
        attempt(make("true", shell=str(tmp_path / "shell")))
    assert error.value.errno == errno.EACCES


def test_a_directory_that_cannot_be_created_is_an_error(make, tmp_path):
    runner = make("true")
    Path(runner.directories.path(0)).touch()

    with pytest.raises(OSError) as error:
        runner.directories.make(0)
    assert error.value.errno == errno.ENOTDIR


def test_a_partly_written_first_script_is_removed(make):
    """A script marks its sample as started. A partly written script would mark a sample that has not started."""
    runner = make("x" * 10_000)

    with files_up_to(5000), pytest.raises(OSError) as error:
        runner.directories.make(0)
    assert error.value.errno == errno.EFBIG
    assert os.listdir(runner.directories.path(0)) == []
    assert runner.directories.make(0)


def test_the_script_of_an_earlier_attempt_stays_when_the_disk_is_full(make):
    """Without the script, the sample would count as not started."""
    runner = make("true")
    os.mkdir(runner.directories.path(0))
    os.symlink("/dev/full", f"{runner.directories.path(0)}/sim.sh")

    with pytest.raises(OSError) as error:
        runner.start(0, first=False)
    assert error.value.errno == errno.ENOSPC
    assert not runner.directories.make(0)


# --- samples that the worker ends --------------------------------------------------------------------


def started(runner, text="ready"):
    """Start a sample, and wait until its output contains `text`."""
    runner.directories.make(0)
    running = runner.start(0, first=True)
    wait_for(lambda: text in Path(runner.directories.path(0), "sim.out").read_text(), "the output of the sample")
    return running


def test_a_sample_that_the_worker_ends_receives_sigterm(make):
    running = started(make("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done"))
    running.end()
    result = running.wait()

    assert (result.code, result.was_ended) == (7, True)


def test_a_sample_that_ignores_sigterm_is_killed(make, monkeypatch):
    running = started(make("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    sent, send = [], os.killpg
    monkeypatch.setattr(os, "killpg", lambda group, number: (sent.append(number), send(group, number)))
    for now in (1000.0, 1000.0, 1000.0 + KILL_AFTER_S):
        monkeypatch.setattr(clock, "monotonic", lambda now=now: now)
        running.end()
    assert sent == [signal.SIGTERM]  # until KILL_AFTER_S has passed
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.1 + KILL_AFTER_S)
    running.end()
    result = running.wait()

    assert (result.code, result.was_ended) == (-signal.SIGKILL, True)


def test_the_child_processes_of_a_sample_that_the_worker_ended_are_killed(make):
    runner = make("trap 'exit 1' TERM; (trap '' TERM; echo $BASHPID ready; exec sleep 600) & wait")
    running = started(runner)
    child = ProcessId.of(int(out(runner).split()[0]))
    assert child.is_alive
    running.end()
    running.wait()

    wait_for(lambda: not child.is_alive, "the end of the child process")


def test_the_child_processes_of_a_sample_that_ended_itself_continue(make):
    runner = make("sleep 600 > /dev/null 2>&1 & echo $!")
    attempt(runner)
    child = ProcessId.of(int(out(runner)))
    try:
        time.sleep(0.05)
        assert child.is_alive
    finally:
        child.signal(signal.SIGKILL)


# --- claims ------------------------------------------------------------------------------------------


def test_only_one_of_many_threads_claims_a_sample(make):
    runner = make("true", samples=100)
    claims, gate = [], threading.Barrier(8)

    def claim():
        gate.wait()
        claims.extend(sample for sample in range(100) if runner.directories.make(sample))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(claims) == list(range(100))


def test_only_one_of_many_processes_claims_a_sample(make, tmp_path):
    make("true", samples=100)
    program = (
        "import os, sys, time; from pathlib import Path; from ensembles import a_manifest; "
        "from maestro_celery_plugin.worker.attempt import Runner; root = Path(sys.argv[1]); "
        "r = Runner(a_manifest(root, labels=['V'], samples=100), lambda s: ['v']); "
        "(root / f'{os.getpid()}.ready').touch()\n"
        "while len(list(root.glob('*.ready'))) < 2: time.sleep(0.001)\n"
        "print(*[s for s in range(100) if r.directories.make(s)])"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        for _ in range(2)
    ]
    claims = [int(word) for process in processes for word in process.communicate(timeout=PATIENCE_S)[0].split()]

    assert sorted(claims) == list(range(100))


# --- the end of an allocation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trap", "code", "was_ended"),
    [
        ("exit 0", 0, False),  # it has finished
        ("exit 100", 100, True),  # the end of the allocation is the cause of the restart, not the sample
        ("exit 104", 104, False),
        ("exit 102", 102, False),
        ("exit 7", 7, True),
        (None, -15, True),
    ],
)
def test_a_sample_may_report_its_own_result_after_the_warning(make, trap, code, was_ended):
    handler = f"trap '{trap}' TERM; " if trap else ""
    runner = make(f"{handler}echo begun; sleep 600 & wait $!")
    assert runner.directories.make(0)
    running = runner.start(0, first=True)
    wait_for(lambda: out(runner) == "begun\n", "the output of the sample")
    assert not running.is_warned

    running.warn(signal.SIGTERM)

    assert running.is_warned
    attempt = running.wait()
    assert (attempt.code, attempt.was_ended) == (code, was_ended)


def test_a_sample_runs_with_the_given_environment(make):
    runner = make("echo $EXTRA")
    assert runner.directories.make(0)

    runner.start(0, first=True, environment={"PATH": os.environ["PATH"], "EXTRA": "here"}).wait()

    assert out(runner) == "here\n"
