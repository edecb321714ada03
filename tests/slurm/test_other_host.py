"""A group in allocations of Slurm on this machine, and a local group on another host: the scheduler types need not agree."""

from __future__ import annotations

import socket
import subprocess

from other_host import COMMANDS, OtherHost
from slurm_studies import allocations, assert_each_sample_once, assert_nothing_left
from support import BIN, PATIENCE_S, needed

# The first samples of a host wait for one of the other host, so that both run samples.
HOLD = "until test -e PLACE/on.HERE -a -e PLACE/on.otherhost; do sleep 0.1; done"
SPEC = """
description: {name: hosts, description: d}
study:
  - name: sim
    description: d
    run: {cmd: "echo $(A) $(hostname) $SLURM_JOB_ID > where; touch PLACE/on.$(hostname); HOLD"}
merlin:
  resources:
    overlap: True
    workers:
      near: {args: -c 2, machines: [HERE], batch: {type: slurm, nodes: 1, procs: 1, walltime: "00:10:00"}}
      far: {args: -c 2, machines: [otherhost], batch: {type: local}}
  samples:
    generate: {cmd: "seq 1 40 > $(MERLIN_INFO)/a.csv"}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [A]
"""


def test_slurm_on_one_machine_and_no_batch_system_on_the_other(launch, slurm, tmp_path):
    for name in COMMANDS:
        needed(name, "/sbin")
    with OtherHost() as host:
        spec = SPEC.replace("HOLD", HOLD).replace("PLACE", str(tmp_path)).replace("HERE", socket.gethostname())
        study = launch(spec, "--broker-host", host.near, "-s", "2", name="hosts")
        workers = host.command(str(BIN / "maestro-celery"), "workers", str(study.path))
        answer = subprocess.run(workers, env=launch.environment, timeout=PATIENCE_S, check=False, capture_output=True, text=True)
        study.await_end()

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert study.states() == {"sim": "FINISHED"}
    assert_each_sample_once(study, 40)
    (allocation,) = allocations(study)
    places = [tuple(text.split()[1:]) for text in study.outputs("sim/**/where")]
    assert set(places) == {(socket.gethostname(), allocation["job"]), ("otherhost",)}
    assert_nothing_left(study, slurm)
