"""A chain of studies on the cluster: they share the allocations of one worker group, which open again on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from slurm_studies import SMALL, allocations, assert_nothing_left
from support import Study, wait_for

from maestro_celery_plugin.files import is_locked
from maestro_celery_plugin.study.members import Members

# The nightly value is ten. Two slots need 2 * SLEEP_S seconds for the four samples of an iteration, so that all of them
# need 40 s at least. An allocation of 60 s starts no sample in its last DRAIN_S: two allocations are needed.
ITERATIONS = int(os.environ.get("ITERATIONS", "5"))
SLEEP_S, DRAIN_S = 4, 25
assert 2 * SLEEP_S * ITERATIONS > 60 - DRAIN_S + SLEEP_S
CHAIN = f"""
description: {{name: chain, description: d}}
env: {{variables: {{ITER: 1, MAX: {ITERATIONS}, SLEEP: {SLEEP_S}, NAME: chain}}}}
batch: {{{SMALL}}}
study:
  - name: sim
    description: d
    run: {{cmd: "echo $(X) $(ITER) >> sim.txt; sleep $(SLEEP)", task_queue: q}}
  - name: next
    description: d
    run:
      depends: [sim_*]
      task_queue: q
      cmd: |
        if [ $(ITER) -lt $(MAX) ]; then
            maestro run $(SPECROOT)/$(NAME).yaml --vars ITER=$(( $(ITER) + 1 )) -o $(OUTPUT_PATH)_next
        fi
merlin:
  resources: {{workers: {{w: {{args: --concurrency 2, steps: [all], drain: {DRAIN_S}, warn: 6}}}}}}
  samples: {{file: $(MERLIN_INFO)/a.csv, column_labels: [X], generate: {{cmd: "seq 1 4 > $(MERLIN_INFO)/a.csv"}}}}
"""


@pytest.mark.timeout(300 + 80 * ITERATIONS)
def test_a_chain_of_studies_opens_allocations_again_until_it_ends(launch, slurm):
    """Given allocations of a minute, then each iteration is complete, and no sample has run twice."""
    study = launch(CHAIN, "-s", "1", "-r", "3", name="chain")
    members = Members(study.path / "merlin_info" / "session")
    wait_for(lambda: not members.living(), "the end of the session", 200 + 80 * ITERATIONS)
    found = [Study(Path(member.root), study.environment) for member in members.all()]

    assert len(found) == ITERATIONS
    for number, one in enumerate(found, 1):
        assert set(one.states().values()) == {"FINISHED"}
        assert sorted(one.outputs("sim/*/sim.txt")) == [f"{sample} {number}\n" for sample in range(1, 5)]
    assert len(allocations(study)) > 1
    assert not [one for one in found[1:] if allocations(one)]
    assert_nothing_left(study, slurm)


def test_a_runaway_in_an_allocation_is_stopped(launch, slurm):
    """Given a chain without an end, when the session is stopped, then no job, process or lock remains."""
    study = launch(CHAIN.replace("00:01:00", "00:10:00"), "-s", "1", "--vars", "MAX=1000", "SLEEP=0", "NAME=runaway", name="runaway")
    session = study.path / "merlin_info" / "session"
    members = Members(session)
    wait_for(lambda: len(members.all()) > 2, "some iterations")
    answer = study.command("maestro-celery", "session", "stop", "-f", str(study.path))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert_nothing_left(study, slurm)
    assert not members.living()
    assert not [path for path in study.path.parent.rglob("*.lock") if is_locked(path)]
