"""Fixtures of the unit tests."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from recorded import Recorded

from maestro_celery_plugin import clock


@pytest.fixture(scope="session", autouse=True)
def unsynced_files():
    """Do not wait for the disk: no unit test cuts the power, and its 18,000 calls take a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def variables_of_one_test():
    """Let no test see the variables that another one has set: a native step sets them for the whole conductor."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name in before:
        if os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Commands on PATH that print recorded output."""
    return Recorded(tmp_path / "commands", monkeypatch)


@pytest.fixture
def advance_clock(monkeypatch):
    """Advance the clock by a number of seconds."""

    def advance(seconds):
        later = time.monotonic() + seconds
        monkeypatch.setattr(clock, "monotonic", lambda: later)

    return advance


@pytest.fixture
def still_clock(monkeypatch):
    """Let the clock stand still, so that it does not matter how long a test takes."""
    for name in ("monotonic", "now", "since_boot"):
        value = getattr(clock, name)()
        monkeypatch.setattr(clock, name, lambda value=value: value)


@pytest.fixture
def no_substitute(monkeypatch):
    """Start no thread that acts for a coordinator half a second after its begin, while a test looks at it or replaces parts."""
    monkeypatch.setattr("maestro_celery_plugin.conductor.coordinator.Coordinator._run_substitute", lambda self: None)


@pytest.fixture
def no_host(monkeypatch):
    """Start no host for the sessions of native steps; the functional tests start it."""
    monkeypatch.setattr("maestro_celery_plugin.maestro.study_adapter.begin", lambda session: None)
