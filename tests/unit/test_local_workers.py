"""Local workers: when the next worker of a group starts, and when its steps fail."""

from __future__ import annotations

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor import local_workers
from maestro_celery_plugin.conductor.local_workers import DELAY_LIMIT_S, MAX_FAILURES, LocalWorkers
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.ledger.entries import SUFFIX
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import EXIT_NO_BROKER, EXIT_REPLACE


class Group:
    """A worker group whose workers end with an exit code at once, with a clock that a test moves."""

    def __init__(self, directory, monkeypatch) -> None:
        self.now, self.code, self.ledger = 1000.0, 1, directory / "ledger"
        self.ledger.mkdir()
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(local_workers, "worker_command", lambda *args, **options: ["sh", "-c", f"exit {self.code}"])
        self.workers = LocalWorkers("w", Session.create(directory / "session"), self.ledger)
        self._logs = directory / "workers"

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
