"""Fixtures of this directory: the cluster that all its tests share, and studies on the cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from slurm_cluster import COMMANDS, SlurmCluster
from slurm_studies import Launcher
from support import needed


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A Slurm cluster of four nodes on this machine."""
    for command in COMMANDS:
        needed(command)
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("the daemons of a cluster require root")
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def launch(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Run `maestro run` with a specification; the studies of a module may run in parallel."""
    launcher = Launcher(tmp_path_factory.mktemp("studies"), slurm)
    yield launcher
    launcher.close()
