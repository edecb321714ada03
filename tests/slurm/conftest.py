"""Fixtures of this directory: studies on the cluster that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_cluster import SlurmCluster
from slurm_studies import Launcher


@pytest.fixture(scope="module")
def launch(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Run `maestro run` with a specification; the studies of a module may run in parallel."""
    launcher = Launcher(tmp_path_factory.mktemp("studies"), slurm)
    yield launcher
    launcher.close()
