"""Chaos: some seeds of it for each broker, each kind of workers and each kind of study; `make chaos` runs many."""

from __future__ import annotations

import random

import pytest
from chaos.case import Case
from chaos.driver import break_study
from chaos.parts import Parts
from support import Study

SEEDS = [(2, "plain", "threads"), (3, "growing", "groups"), (5, "nested", "prefork")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "shape", "pool"), SEEDS)
def test_a_study_that_is_broken_at_random_keeps_its_promises(run, request, seed, shape, pool):
    case = Case.of(seed, shape=shape, pool=pool)
    url = None if case.broker == "private" else request.getfixturevalue(f"{case.broker}_server").url

    result = break_study(run, case, broker_url=url)

    print(result.line())
    assert not result.wrong, result.to_json()


def test_nothing_but_the_study_is_broken(tmp_path):
    """Given the processes of this machine, then none of them is a part of a study that does not run."""
    study = Study(tmp_path / "study", {})
    everything = ("conductor", "worker", "supervisor", "host", "server", "sample", "step", "")

    assert Parts(study, random.Random(1)).processes(*everything) == []
