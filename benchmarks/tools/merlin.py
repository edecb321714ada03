"""Merlin with its own Redis server."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

import yaml

from benchmarks.errors import MissingToolError, ToolFailedError
from benchmarks.processes import Processes
from benchmarks.venvs import SideVenv
from benchmarks.workloads import NullSamples, Study, write_table

__all__ = ["Merlin"]

# Merlin imports pkg_resources, which later versions of setuptools do not have.
_VENV = SideVenv("merlin", ("merlin==1.13.0", "celery==5.5.3", "setuptools<81"))
_SERVERS = ("redis-server", "valkey-server")
_START_LIMIT_S = 10.0
_RUN_LIMIT_S = 600.0


class Merlin:
    """``merlin run`` and ``merlin run-workers``, with a configuration in its own home directory.

    Its workers do not end by themselves: a run ends with the step after the samples.
    """

    key = "merlin"
    title = "Merlin 1.13, Celery 5.5.3, Redis"

    def prepare(self, samples: NullSamples, processes: Processes) -> None:
        """Install Merlin unless it is installed; start a Redis server; write configuration and specification."""
        _VENV.ensure()
        port = _start_server(processes)
        _write_configuration(samples.directory, port)
        table = write_table(samples.directory / "samples.npy", samples.count)
        Study(
            table=table,
            worker_args=f"--concurrency {samples.slots} --prefetch-multiplier 1 -l WARNING",
            results=samples.results,
            closing=f"touch {samples.directory / 'done'}",
        ).write(samples.directory / "study.yaml")

    def run(self, samples: NullSamples, processes: Processes) -> None:
        """Enqueue the study, start the workers, and wait for the last step."""
        env = {
            "HOME": str(samples.directory),
            "PATH": f"{_VENV.bin}{os.pathsep}{os.environ['PATH']}",
            "C_FORCE_ROOT": "1",  # without it, Celery refuses pickle for root, the user in a container
        }
        for command in ("run", "run-workers"):
            processes.run([_VENV.bin / "merlin", command, "study.yaml"], env=env, cwd=samples.directory)
        _wait_for(samples.directory / "done")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _RUN_LIMIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise ToolFailedError(f"merlin: not finished after {_RUN_LIMIT_S:.0f} s")
        time.sleep(0.02)


def _start_server(processes: Processes) -> int:
    """Start a server on a free port of the loopback address; return the port."""
    server = next(filter(None, map(shutil.which, _SERVERS)), None)
    if server is None:
        raise MissingToolError(f"no server for Merlin on PATH: {' or '.join(_SERVERS)}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    processes.start([server, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"])
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port
        except OSError as cause:
            if time.monotonic() > deadline:
                raise ToolFailedError(f"{server} does not start") from cause
            time.sleep(0.02)


def _write_configuration(home: Path, port: int) -> None:
    server = {"name": "redis", "server": "127.0.0.1", "port": port, "db_num": 0, "username": ""}
    configuration = {
        "broker": {**server, "vhost": "host"},
        "results_backend": {**server, "encryption_key": str(home / "key")},
        "celery": {"override": {"visibility_timeout": 86400}},
    }
    (home / ".merlin").mkdir()
    (home / ".merlin" / "app.yaml").write_text(yaml.safe_dump(configuration))
