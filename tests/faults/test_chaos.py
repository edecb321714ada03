"""Chaos: some seeds of it for each broker and each kind of workers; `make chaos` runs many."""

from __future__ import annotations

import json
import os
import random

import pytest
from chaos.driver import break_study
from chaos.parts import Parts
from support import Study

# Each seed with a broker and with what is broken; `make chaos SEEDS="1 2 3"` sets other seeds.
SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "2 3").split()]
BROKERS = ("private", "redis", "private", "rabbitmq")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_study_that_is_broken_at_random_keeps_its_promises(run, request, seed):
    broker = BROKERS[seed % 4]
    url = None if broker == "private" else request.getfixturevalue(f"{broker}_server").url

    result = break_study(run, seed, broker_url=url, gentle=seed // 4 % 2 == 1)

    print(json.dumps(result))
    assert not result["wrong"], json.dumps(result, indent=1)


def test_nothing_but_the_study_is_broken(tmp_path):
    """Given the processes of this machine, then none of them is a part of a study that does not run."""
    study = Study(tmp_path / "study", {})
    everything = ("conductor", "worker", "supervisor", "host", "server", "sample", "")

    assert Parts(study, None, None, random.Random(1)).processes(*everything) == []
