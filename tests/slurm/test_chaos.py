"""Chaos on the cluster: besides processes, jobs end and nodes go down; `make chaos` runs many seeds."""

from __future__ import annotations

import pytest
from chaos.case import Case
from chaos.driver import break_study


@pytest.mark.timeout(1200)
def test_a_study_whose_jobs_and_nodes_fail_keeps_its_promises(launch, slurm):
    case = Case.of(3048, slurm=True)

    result = break_study(launch, case, slurm=slurm)

    print(result.line(), result.done)
    assert not result.wrong, result.to_json()
