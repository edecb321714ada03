"""Fixtures of the unit tests."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from recorded import Recorded

from maestro_celery_plugin import clock
from maestro_celery_plugin.maestro.launch_options import OPTIONS


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
def small_stack():
    """Let deep nesting exceed the stack soon: the time that the YAML parser needs before grows with the square."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(500)
    yield
    sys.setrecursionlimit(limit)


@pytest.fixture(autouse=True)
def options_of_one_test():
    """Let no test see the options of a launch that another one has set: a command sets them for its whole process."""
    before = dict(vars(OPTIONS))
    yield
    vars(OPTIONS).update(before)


@pytest.fixture
def no_host(monkeypatch):
    """Start no host for the sessions of native steps; the functional tests start it."""
    monkeypatch.setattr("maestro_celery_plugin.maestro.study_adapter.begin", lambda session: None)
