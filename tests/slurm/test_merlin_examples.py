"""An example of Merlin on a cluster: Merlin needs an allocation and a command in it, the plugin opens the allocation."""

from __future__ import annotations

import pytest
from slurm_studies import assert_nothing_left
from support import BIN

pytestmark = pytest.mark.timeout(600)  # waits for the installation of Merlin


def test_null_spec(launch, slurm, merlins):
    path = f"{BIN}:{launch.environment['PATH']}"  # the example generates its samples with NumPy
    specification = merlins["1.13.0"].examples / "null_spec" / "null_spec.yaml"

    study = launch(specification, "-s", "1", name="null_spec", environment={"PATH": path}).await_end()

    assert study.states() == {"null_step": "FINISHED", "verify": "FINISHED"}
    assert study.outputs("verify/*.out") == ["Done\n"]
    assert len(list(study.path.glob("null_step/*/null_step.sh"))) == 10
    assert_nothing_left(study, slurm)
