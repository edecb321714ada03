"""The supervisor of a worker: its signals reach the worker at any time, and no file keeps samples alive."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
from support import PATIENCE_S, kill, processes_of, wait_for

from maestro_celery_plugin.config.groups import group_config
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.study.session import Session

# Replaces the Celery worker by a function, so that a test can interrupt the supervisor at one place.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import maestro_celery_plugin.worker.celery_worker as celery_worker
from maestro_celery_plugin.worker import supervisor
from maestro_celery_plugin.study.heartbeats import Heartbeats

place = Path(sys.argv.pop())

def note(text):
    with place.open("a") as file:
        file.write(text + "\\n")

def end(number, frame):
    note("SIGTERM")
    os._exit(0)

def wait():
    signal.signal(signal.SIGTERM, end)
    note("started")
    time.sleep(600)
    os._exit(3)

def run(arguments, supervisor):
    BODY

celery_worker.run = run
SETUP
supervisor.main()
"""


@pytest.fixture
def session(tmp_path):
    workers = {"w": WorkerGroupSettings(task_queues=("q",))}
    settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=workers))
    session = Session.create(tmp_path / "merlin_info" / "session")
    session.write_group(group_config(settings, "w", None))
    return session


def start(tmp_path, session, body, setup="", *options):
    text = PROGRAM.replace("BODY", textwrap.indent(textwrap.dedent(body), "    ").strip())
    program = text.replace("SETUP", textwrap.dedent(setup))
    words = [sys.executable, "-c", program, *options, "--", str(session.path), "w", str(tmp_path / "notes")]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def notes(tmp_path):
    return (tmp_path / "notes").read_text().split() if (tmp_path / "notes").exists() else []


def test_a_signal_between_fork_and_the_first_line_after_it_is_forwarded(tmp_path, session):
    """Given SIGTERM in the moment of the fork, then the worker receives it, and the supervisor ends in order."""
    setup = "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))"
    process = start(tmp_path, session, "wait()", setup)

    output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, output
    assert notes(tmp_path) in ([], ["SIGTERM"], ["started"], ["started", "SIGTERM"])


def test_a_request_to_end_during_the_restart_of_a_worker_is_not_lost(tmp_path, session):
    """Given a killed worker in an allocation, when SIGTERM arrives before its successor starts, then none starts."""
    body = """
    note("started")
    os.kill(os.getpid(), signal.SIGKILL)
    """
    setup = """
    claim, count = supervisor.claim_name_and_log, iter((0, signal.SIGTERM))
    def claim_name(*arguments, **options):
        os.kill(os.getpid(), next(count))
        return claim(*arguments, **options)
    supervisor.claim_name_and_log = claim_name
    """
    process = start(tmp_path, session, body, setup, "--allocation", "w/1")

    output, _ = process.communicate(timeout=PATIENCE_S)

    assert notes(tmp_path) == ["started"], output


def test_a_worker_that_leaves_by_itself_is_replaced_only_if_the_broker_has_moved(tmp_path, session):
    """Given a worker that leaves with its own signal, then its exit code decides, and SIGTERM of others still counts."""
    body = """
    note("started")
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(75 if len(place.read_text().split()) < 3 else 0))
    os.kill(supervisor.pid, supervisor_arguments.LEAVE_SIGNAL)
    time.sleep(60)
    """
    setup = "import maestro_celery_plugin.worker.arguments as supervisor_arguments"
    process = start(tmp_path, session, body, setup, "--allocation", "w/1")

    output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, output
    assert notes(tmp_path) == ["started"] * 3


POOL = """
import subprocess
from maestro_celery_plugin import clock
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.worker_identity import PROCESS_MARKER, mark
if os.fork() == 0:
    me = ProcessId.of(os.getpid())
    limit = arguments.pool_limits.claim(me)
    name = f"{arguments.name}.{me.pid}"
    os.environ[PROCESS_MARKER] = mark(arguments.session, name)
    (arguments.session.path / "workers" / f"{name}.json").touch()
    subprocess.Popen(["sleep", "613.PID"], start_new_session=True)
    note(f"process {name}")
    FAULT
    time.sleep(60)
wait()
"""
SILENT = "limit.renew(clock.since_boot() - 100); os.kill(me.pid, signal.SIGSTOP)"


@pytest.mark.parametrize("fault", [SILENT, "os._exit(1)"], ids=["it is stopped", "it has crashed"])
def test_the_supervisor_ends_what_a_process_of_the_pool_runs_that_counts_as_dead(tmp_path, session, fault):
    """Given a process of a pool that is stopped or has crashed, then its samples end, and the worker continues."""
    process = start(tmp_path, session, POOL.replace("PID", str(os.getpid())).replace("FAULT", fault))
    try:
        wait_for(lambda: {"started", "process"} <= set(notes(tmp_path)), "the worker and its process")
        wait_for(lambda: not processes_of(f"sleep 613.{os.getpid()}"), "the end of the sample")
        name = next(word for word in notes(tmp_path) if word.startswith("w-1."))
        log = tmp_path / "merlin_info/workers/w-1.log"
        report = f"process '{name}' could not write its heartbeat for 20 s"
        heartbeat = session.heartbeats.path_of(name)
        if fault == SILENT:
            wait_for(lambda: report in log.read_text(), "the report")
            assert heartbeat.exists()
        else:
            wait_for(lambda: not heartbeat.exists(), "the removal of the heartbeat")
            assert report not in log.read_text()
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


def test_the_heartbeats_of_a_pool_end_with_its_worker(tmp_path, session):
    process = start(tmp_path, session, POOL.replace("PID", str(os.getpid())).replace("FAULT", ""))
    wait_for(lambda: {"started", "process"} <= set(notes(tmp_path)), "the worker and its process")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)

    wait_for(lambda: not processes_of(f"sleep 613.{os.getpid()}"), "the end of the sample")
    assert [path.name for path in (session.path / "workers").iterdir()] == []


UNABLE = """
note("started")
arguments.has_fault.set()
os._exit(0)
"""


def test_a_worker_that_could_not_claim_messages_is_replaced_after_a_delay_and_not_for_ever(tmp_path, session):
    """Given a machine that is broken for good, then a limited number of workers starts, each after a longer time."""
    setup = """
    delays, claims = [], iter(range(100))
    def pause(self, seconds):
        note(f"{seconds:g}")
        return True
    supervisor._Supervisor.pause = pause
    claim = supervisor.claim_name_and_log
    def claim_name(*arguments, **options):
        if next(claims) == 1:
            raise OSError(5, "Input/output error")
        return claim(*arguments, **options)
    supervisor.claim_name_and_log = claim_name
    """
    process = start(tmp_path, session, UNABLE, setup, "--allocation", "w/1")

    output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, output
    assert notes(tmp_path)[:8] == ["started", "5", "10", "started", "20", "started", "40", "started"]
    assert notes(tmp_path).count("started") == 19
    assert notes(tmp_path)[-2:] == ["60", "started"]


def test_a_supervisor_that_waits_for_its_machine_ends_at_once(tmp_path, session):
    setup = "supervisor._FAULT_DELAY_S = supervisor._FAULT_DELAY_LIMIT_S = 1000"
    process = start(tmp_path, session, UNABLE, setup, "--allocation", "w/1")
    wait_for(lambda: notes(tmp_path) == ["started"], "the worker")
    log = tmp_path / "merlin_info/workers/w-1-1.log"
    wait_for(lambda: "A new worker replaces it in 1000 s" in log.read_text(), "the pause")

    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, output
    assert notes(tmp_path) == ["started"]


def test_a_worker_of_the_conductor_that_could_not_claim_messages_is_replaced_by_the_conductor(tmp_path, session):
    process = start(tmp_path, session, UNABLE, "", "--name", "w-1")

    output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, output
    assert notes(tmp_path) == ["started"]


def test_without_a_session_the_worker_still_receives_the_signal(tmp_path, session):
    """Given a session that was removed, then SIGTERM ends the worker, and the supervisor reports no traceback."""
    process = start(tmp_path, session, "wait()")
    wait_for(lambda: notes(tmp_path) == ["started"], "the worker")
    shutil.rmtree(session.path)

    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)

    assert notes(tmp_path)[:2] == ["started", "SIGTERM"]
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_errors_of_the_cleanup_do_not_stop_it(tmp_path, session):
    """Given that the descendants cannot be listed and the heartbeat cannot be removed, then the marked samples still end."""
    body = """
    import subprocess
    subprocess.Popen(["sleep", "611.PID"], env={**os.environ}, start_new_session=True)
    note("started")
    os._exit(0)
    """
    setup = """
    def fail(*arguments):
        raise OSError(28, "No space left on device")
    supervisor.end_descendants = fail
    Heartbeats.remove = fail
    """
    process = start(tmp_path, session, body.replace("PID", str(os.getpid())), setup)

    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0
    log = (tmp_path / "merlin_info/workers/w-1.log").read_text()
    assert "its processes cannot be removed: [Errno 28]" in log
    assert "its heartbeat cannot be removed: [Errno 28]" in log
    left = processes_of(f"sleep 611.{os.getpid()}")
    kill(*left)
    assert not left


def test_a_log_that_cannot_be_created_is_one_line(tmp_path, session):
    (tmp_path / "merlin_info" / "workers").write_text("a file")
    process = start(tmp_path, session, "wait()")
    output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1
    assert output.startswith("error: worker on ")
    assert output.count("\n") == 1


def test_samples_end_although_the_session_was_removed(run):
    """Given a real worker whose session directory is gone, then SIGTERM to its supervisor ends worker and samples."""
    study = run("""
        description: {name: s, description: d}
        study:
          - name: sim
            description: d
            run: {cmd: "trap '' TERM; echo $(A) >> runs; sleep 612"}
        merlin:
          resources:
            workers:
              w: {args: --concurrency 2}
          samples:
            generate: {cmd: "seq 1 2 > $(MERLIN_INFO)/a.csv"}
            file: $(MERLIN_INFO)/a.csv
            column_labels: [A]
        """)
    study.await_text("sim/*/runs", count=2)
    study.kill_conductor()
    workers = study.processes("maestro_celery_plugin.worker")
    (supervisor,) = (pid for pid in workers if psutil.Process(pid).ppid() not in workers)
    shutil.move(study.path / "merlin_info/session/workers", study.path / "moved")

    os.kill(supervisor, signal.SIGTERM)

    wait_for(lambda: not study.processes("maestro_celery_plugin.worker"), "the end of the worker")
    wait_for(lambda: not study.processes("sim.sh"), "the end of the samples")
    assert "Traceback" not in "".join(study.outputs("merlin_info/workers/*.log"))
