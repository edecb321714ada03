"""Examples of Merlin on a cluster: Merlin needs an allocation and a command in it, the plugin opens the allocation."""

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


def test_null_chain(launch, slurm, merlins):
    """Given no Merlin on `PATH`, when the last step calls `merlin run` with ten times the samples, then they run as well."""
    path = f"{BIN}:{launch.environment['PATH']}"
    specification = merlins["1.13.0"].examples / "null_spec" / "null_chain.yaml"
    values = ("--vars", "MAX_SAMPLES=10", "TIME=0.1")

    study = launch(specification, "-s", "1", *values, name="null_chain", environment={"PATH": path})
    study.await_session()
    (second,) = study.iterations()

    for one, directories in ((study, 0), (second, 10)):  # a single sample runs in the workspace of its step
        assert set(one.states().values()) == {"FINISHED"}
        assert len(list(one.path.glob("null_step/*/null_step.sh"))) == directories
        assert one.outputs("verify/*.out") == ["Done\n"]
    assert study.outputs("launch_next/*.out") == ["Starting next iteration\n"]
    assert second.outputs("launch_next/*.out") == ["Chain complete\n"]
    assert_nothing_left(study, slurm)
