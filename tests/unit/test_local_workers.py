"""Local workers: a worker that has ended is replaced, unless several in a row have ended before they took a task."""

from __future__ import annotations

import signal

import pytest

from maestro_celery_plugin.clock import wait_until
from maestro_celery_plugin.conductor import local_workers
from maestro_celery_plugin.conductor.local_workers import MAX_FAILURES, LocalWorkers
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import EXIT_REPLACE


class Source:
    """Local workers that run a command of the shell, with the name of the worker in `$1` and the ledger in `$2`."""

    def __init__(self, root, monkeypatch) -> None:
        self.session, self.ledger, self.command = Session.create(root / "session"), root / "ledger", "true"
        self.ledger.mkdir()
        self.workers = LocalWorkers("w", self.session, self.ledger)
        monkeypatch.setattr(local_workers, "worker_command", self._command)

    def _command(self, session, group, *, name):
        assert (session, group) == (self.session, "w")
        return ["sh", "-c", self.command, "sh", name, str(self.ledger)]

    def start_and_await_end(self, times):
        for _ in range(times):
            self.workers.ensure()
            assert wait_until(self.workers.has_ended, 10)

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


def test_a_worker_that_has_lost_its_broker_is_no_failure(source):
    source.command = f"exit {EXIT_REPLACE}"
    source.start_and_await_end(MAX_FAILURES + 2)

    assert source.started == ["w-1", "w-2", "w-3", "w-4", "w-5"]


def test_no_worker_starts_while_the_last_one_runs(source):
    source.command = "exec sleep 60"
    source.workers.ensure()
    source.workers.ensure()
    source.workers.supervisor.signal(signal.SIGKILL)

    assert source.started == ["w-1"]
    assert wait_until(source.workers.has_ended, 10)
    assert source.workers.supervisor is None
