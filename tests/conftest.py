"""Fixtures of all tests: a scrubbed environment, and studies whose processes are killed after the test."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from merlin_runs import merlins, without_merlin  # noqa: F401 (fixtures)
from servers import rabbitmq_server, redis_server, redis_tls_server  # noqa: F401 (fixtures)
from slurm_studies import slurm  # noqa: F401 (fixture)
from support import Study, kill

from maestro_celery_plugin.maestro.launch_options import OPTIONS

# The configuration of the user who runs the tests has no effect on them.
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
# In the background, a shell lets its commands ignore SIGINT, and so the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS_OF_LAYER = {"functional": "functional", "endtoend": "endtoend", "faults": "faults", "slurm": "slurm"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the layer of its directory."""
    for item in items:
        for directory, marker in TESTS_OF_LAYER.items():
            if directory in item.path.parts:
                item.add_marker(marker)


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
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without the configuration of the user and without an activated Python environment."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "COLUMNS": "120"}


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Study]]:
    """Run `maestro run` with a specification, given as text or path; kill the remaining processes after the test."""
    studies: list[Study] = []

    def start(spec: str | Path, *options: str, name: str = "study", foreground: bool = False) -> Study:
        path = spec if isinstance(spec, Path) else tmp_path / f"{name}.yaml"
        if isinstance(spec, str):
            path.write_text(textwrap.dedent(spec))
        study = Study(tmp_path / name, environment)
        studies.append(study)
        mode = ["-fg"] if foreground else []
        answer = study.command("maestro", "run", "-y", *mode, "-o", str(study.path), *options, str(path))
        study.output, study.code = answer.stdout + answer.stderr, answer.returncode
        return study

    yield start
    for study in studies:
        kill(*study.server(), *study.processes())
