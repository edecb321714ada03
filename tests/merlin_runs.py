"""Merlin itself: its own virtual environments, its own Redis server, and what its studies leave on disk."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from servers import PASSWORD, free_port, redis_on
from support import wait_for

VERSIONS = ("1.13.0", "2.0.0b4")

# Merlin names no upper limit: Celery 5.6 and later lose the second of two chained steps, and setuptools 81 has no
# `pkg_resources`, which Merlin imports.
_BESIDE_MERLIN = ("celery<5.6", "setuptools<81")
# What Merlin's examples need; its releases share their examples.
_OF_EXAMPLES = {"1.13.0": ("merlin-spellbook", "names")}
# What its examples that iterate import, beside NumPy and matplotlib of their time: `np.float`, the style `seaborn-white`.
_OF_ITERATIONS = ("merlin-spellbook", "faker", "pandas", "scikit-learn", "numpy<1.24", "matplotlib<3.8", "setuptools<81")
_BOOKKEEPING = {"MERLIN_STATUS.json", "status.lock"}
_NO_STEPS = {"merlin_info", "logs", "meta"}


@dataclasses.dataclass(frozen=True)
class Merlin:
    """One version of Merlin, installed below `directory`."""

    version: str
    directory: Path

    @property
    def bin(self) -> Path:
        return self.directory / "venv" / "bin"

    @property
    def examples(self) -> Path:
        """The directory of its example specifications."""
        return next(self.bin.parent.glob("lib/python*/site-packages/merlin/examples/workflows"))

    def install(self) -> None:
        """Install it with the pip of these tests."""
        _install(self.directory, (f"merlin=={self.version}", *_BESIDE_MERLIN, *_OF_EXAMPLES.get(self.version, ())))

    def run(self, specifications: Sequence[Path], last_step: str) -> dict[str, Path]:
        """Run studies whose last step is `last_step`; return their workspaces by name."""
        home = self.directory / "home"
        (home / ".merlin").mkdir(parents=True)
        port = free_port()
        with redis_on(port, self.directory):
            _write_configuration(home, port)
            for path in specifications:
                self._call("run", str(path), home=home)
            with self._workers(specifications[0], home):
                workspaces = {path.stem: _workspace(home, path.stem) for path in specifications}
                finished = [workspace / last_step / "MERLIN_FINISHED" for workspace in workspaces.values()]
                wait_for(lambda: all(path.exists() for path in finished), f"the studies of merlin {self.version}")
        return workspaces

    @contextmanager
    def _workers(self, specification: Path, home: Path) -> Iterator[None]:
        """Run the workers of one study, which serve the task queue of all."""
        echoed = self._call("run-workers", "--echo", str(specification), home=home)
        line = next(line for line in echoed.splitlines() if line.startswith("celery "))
        with (home / "workers.log").open("w") as log:
            workers = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {line}"],
                env=self._environment(home),
                cwd=home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield
            finally:
                os.killpg(workers.pid, signal.SIGKILL)
                workers.wait()

    def _call(self, *words: str, home: Path) -> str:
        answer = subprocess.run(
            [str(self.bin / "merlin"), *words],
            env=self._environment(home),
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def _environment(self, home: Path) -> dict[str, str]:
        # C_FORCE_ROOT: Celery refuses pickle for root, the user in a container.
        path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin"
        return {"HOME": str(home), "PATH": path, "C_FORCE_ROOT": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _write_configuration(home: Path, port: int) -> None:
    server = {"name": "redis", "server": "127.0.0.1", "port": port, "db_num": 0, "username": "", "password": PASSWORD}
    configuration = {
        "broker": {**server, "vhost": "host"},
        "results_backend": {**server, "encryption_key": str(home / "key")},
        "celery": {"override": {"visibility_timeout": 86400}},
    }
    (home / ".merlin" / "app.yaml").write_text(yaml.safe_dump(configuration))


def _workspace(home: Path, name: str) -> Path:
    return next(home.glob(f"**/{name}_2*"))


@pytest.fixture(scope="session")
def merlins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Merlin]:
    """All versions of Merlin, installed. A machine without network fails the test: the comparison is never left out."""
    directory = tmp_path_factory.mktemp("merlin")
    installed = {version: Merlin(version, directory / version) for version in VERSIONS}
    with ThreadPoolExecutor() as pool:
        list(pool.map(Merlin.install, installed.values()))
    return installed


@pytest.fixture(scope="session")
def without_merlin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has what Merlin's examples import, but no `merlin`."""
    directory = tmp_path_factory.mktemp("without_merlin")
    _install(directory, _OF_ITERATIONS)
    assert not (directory / "venv" / "bin" / "merlin").exists()
    return directory / "venv" / "bin"


def _install(directory: Path, packages: Sequence[str]) -> None:
    """Make a virtual environment in a directory, and install packages with the pip of these tests."""
    venv.create(directory / "venv", with_pip=False, symlinks=True)
    python = directory / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile"]
    answer = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def files_of(workspace: Path) -> dict[str, str]:
    """Return what the steps of a study left on disk: texts by path below the workspace.

    The path of the workspace is `WORKSPACE`. A script is its command only, without the line of its shell and without
    empty lines. Output files that are empty are left out, and so are Merlin's own notes about its tasks. A restart's
    output is that of the step: Merlin has another file for it, the plugin appends it below a header line.
    """
    found: dict[str, str] = {}
    steps = [path for path in workspace.iterdir() if path.is_dir() and path.name not in _NO_STEPS]
    for path in sorted(path for step in steps for path in step.rglob("*") if path.is_file()):
        if path.name in _BOOKKEEPING:
            continue
        text = path.read_text().replace(str(workspace), "WORKSPACE")
        name = str(path.relative_to(workspace))
        if path.suffix == ".sh":
            text = "".join(line for line in text.splitlines(keepends=True)[1:] if line.strip())
        elif path.suffix in {".out", ".err"}:
            text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("=== run again"))
            name = name.replace(".restart.", ".")
            if not text:
                continue
        found[name] = found.get(name, "") + text
    return found
