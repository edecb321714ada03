"""The cluster that the tests of this directory share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from slurm_cluster import COMMANDS, SlurmCluster
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
