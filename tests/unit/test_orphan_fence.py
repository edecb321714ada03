"""The fence of a worker whose supervisor was killed: its samples end before the worker counts as dead."""

from __future__ import annotations

import os
import subprocess

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.worker.heartbeat_limit import HEARTBEAT_LIMIT_S, HeartbeatLimit
from maestro_celery_plugin.worker.orphan_fence import OrphanFence


@pytest.fixture
def dead():
    with subprocess.Popen(["true"]) as process:
        return ProcessId.of(process.pid)


def a_limit(age_s: float) -> HeartbeatLimit:
    limit = HeartbeatLimit()
    limit.renew(clock.since_boot() - age_s)
    return limit


def test_samples_end_without_supervisor_and_heartbeat(dead, monkeypatch):
    """Given a file system that does not answer, and a supervisor that was killed, then the process ends with its samples."""
    done = []
    monkeypatch.setattr(os, "_exit", done.append)

    OrphanFence(dead, a_limit(HEARTBEAT_LIMIT_S + 1), lambda: done.append("killed"))._run()

    assert done == ["killed", 1]


@pytest.mark.parametrize("age_s", [0.0, HEARTBEAT_LIMIT_S + 1])
def test_a_worker_with_a_supervisor_leaves_that_to_it(age_s):
    assert not OrphanFence(ProcessId.of(os.getpid()), a_limit(age_s), list).must_end


def test_a_worker_that_writes_its_heartbeat_lives_without_a_supervisor(dead):
    """Given a killed supervisor, but a file system that answers, then the worker ends in its own way."""
    assert not OrphanFence(dead, a_limit(0.0), list).must_end
