"""The cluster that the tests of this directory share, and studies on it."""

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
        missing("a cluster's daemons need root")
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def launch(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Run `maestro run` on a specification; studies of one module may run side by side."""
    launcher = Launcher(tmp_path_factory.mktemp("studies"), slurm)
    yield launcher
    launcher.close()
