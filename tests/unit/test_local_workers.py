"""Local workers: a worker that has ended is replaced, unless several in a row have ended before they took a task."""

from __future__ import annotations

import signal
import subprocess

import pytest
from support import PATIENCE_S

from maestro_celery_plugin import clock
from maestro_celery_plugin.clock import wait_until
from maestro_celery_plugin.conductor import local_workers
from maestro_celery_plugin.conductor.local_workers import DELAY_LIMIT_S, MAX_FAILURES, LocalWorkers
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.ledger.entries import SUFFIX
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import EXIT_NO_BROKER, EXIT_REPLACE


class Source:
    """Local workers that run a command of the shell, with the name of the worker in `$1` and the ledger in `$2`."""

    def __init__(self, root, monkeypatch) -> None:
        self.session, self.ledger, self.command = Session.create(root / "session"), root / "ledger", "true"
        self.ledger.mkdir()
        monkeypatch.setattr(local_workers, "FIRST_DELAY_S", 0.0)
        self.workers = LocalWorkers("w", self.session, self.ledger)
        monkeypatch.setattr(local_workers.python_processes, "start", self._start)

    def _start(self, module, arguments, directory, output):
        option, *others = arguments
        assert (module, others) == ("maestro_celery_plugin.worker", ["--", str(self.session.path), "w"])
        command = ["sh", "-c", self.command, "sh", option.removeprefix("--name="), str(self.ledger)]
        return subprocess.Popen(command, cwd=directory, stdout=output, stderr=output, start_new_session=True)

    def start_and_await_end(self, times):
        for _ in range(times):
            self.workers.ensure()
            assert wait_until(self.workers.has_ended, PATIENCE_S)

    @property
    def started(self):
        return sorted(log.stem for log in (self.session.path.parent / "workers").iterdir())


@pytest.fixture
def source(tmp_path, monkeypatch):
    return Source(tmp_path, monkeypatch)


def test_a_group_fails_after_several_workers_in_a_row_that_took_no_task(source):
    source.command = "echo no library; exit 1"
    source.start_and_await_end(MAX_FAILURES)

    with pytest.raises(WorkerError) as error:
        source.workers.ensure()

    assert str(error.value) == (
        "worker group 'w': 3 workers in a row have ended before they took a task; "
        f"'{source.session.path.parent}/workers/w-3.log' ends with:\nno library"
    )
    assert source.started == ["w-1", "w-2", "w-3"]


@pytest.mark.parametrize("file", ["$1.ledger", "$1.4711.ledger"], ids=["threads", "a process of a pool"])
def test_a_worker_with_a_ledger_has_taken_a_task(source, file):
    source.command = f'touch "$2/{file}"; kill -9 $$'
    source.start_and_await_end(MAX_FAILURES + 2)

    assert source.started == ["w-1", "w-2", "w-3", "w-4", "w-5"]


def test_a_worker_that_takes_a_task_ends_the_row_of_failures(source):
    source.start_and_await_end(MAX_FAILURES - 1)
    source.command = 'touch "$2/$1.ledger"'
    source.start_and_await_end(1)
    source.command = "true"
    source.start_and_await_end(MAX_FAILURES)

    with pytest.raises(WorkerError):
        source.workers.ensure()


def test_the_end_of_a_worker_that_was_asked_to_leave_is_no_failure(source):
    """Given workers that were stopped before they took a task, again and again, then another one starts after a resume."""
    for _ in range(MAX_FAILURES + 1):
        source.workers.ensure()
        source.workers.excuse()
        assert wait_until(source.workers.has_ended, PATIENCE_S)
    assert len(source.started) == MAX_FAILURES + 1

    source.start_and_await_end(MAX_FAILURES)
    with pytest.raises(WorkerError):
        source.workers.ensure()


def test_a_worker_that_has_lost_its_broker_is_no_failure(source):
    source.command = f"exit {EXIT_REPLACE}"
    source.start_and_await_end(MAX_FAILURES + 2)

    assert source.started == ["w-1", "w-2", "w-3", "w-4", "w-5"]


def test_no_worker_starts_while_the_last_one_runs(source):
    source.command = "exec sleep 600"
    source.workers.ensure()
    source.workers.ensure()
    source.workers.supervisor.signal(signal.SIGKILL)

    assert source.started == ["w-1"]
    assert wait_until(source.workers.has_ended, PATIENCE_S)
    assert source.workers.supervisor is None


def test_the_log_names_a_worker_that_was_killed(source, caplog):
    source.command = f"exit {256 - signal.SIGKILL}"  # as its supervisor exits
    source.start_and_await_end(2)

    assert "Worker 'w-1' was killed (signal 9); its samples run again." in caplog.text


# --- delays ------------------------------------------------------------------------------------------


class Group:
    """A worker group whose workers end with an exit code at once, with a clock that a test moves."""

    def __init__(self, directory, monkeypatch) -> None:
        self.now, self.code, self.ledger = 1000.0, 1, directory / "ledger"
        self.ledger.mkdir()
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(local_workers.python_processes, "start", self._start)
        self.workers = LocalWorkers("w", Session.create(directory / "session"), self.ledger)
        self._logs = directory / "workers"

    def _start(self, *arguments):
        return subprocess.Popen(["sh", "-c", f"exit {self.code}"])

    def started(self) -> int:
        return len(list(self._logs.glob("*.log")))

    def look(self, after_s: float) -> int:
        """Ask for a worker after some seconds, and once more after its end; return the number of workers so far."""
        self.now += after_s
        self.workers.ensure()
        if self.workers._process is not None:
            self.workers._process.wait()
            self.workers.ensure()
        return self.started()


@pytest.fixture
def group(tmp_path, monkeypatch):
    group = Group(tmp_path, monkeypatch)
    yield group
    if group.workers._process is not None:
        group.workers._process.wait()


@pytest.mark.parametrize("code", [EXIT_NO_BROKER, EXIT_REPLACE])
def test_workers_that_do_not_reach_the_broker_are_no_failures(group, code):
    """Given a broker that is away for minutes, then workers start again and again, and the steps do not fail."""
    group.code = code
    assert [group.look(60) for _ in range(3 * MAX_FAILURES)] == list(range(1, 3 * MAX_FAILURES + 1))


def test_workers_that_fail_start_with_a_delay_until_the_steps_fail(group):
    assert [group.look(after_s) for after_s in (0, 0.1, 1, 0.1, 1)] == [1, 1, 2, 2, 2]
    with pytest.raises(WorkerError, match=f"{MAX_FAILURES} workers in a row have ended before they took a task"):
        group.look(1)
    assert group.started() == MAX_FAILURES


def test_the_delay_has_a_limit(group):
    for _ in range(2000):
        group.workers._note_end(EXIT_NO_BROKER)
    assert group.look(DELAY_LIMIT_S - 1) == 0
    assert group.look(1) == 1


def test_a_worker_that_has_taken_a_task_is_replaced_at_once(group):
    (group.ledger / f"w-1{SUFFIX}").touch()
    assert group.look(0) == 2
