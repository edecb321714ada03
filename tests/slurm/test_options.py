"""Options of `batch.args` on a real Slurm, and a local step beside a step in an allocation."""

from __future__ import annotations

from slurm_cluster import SlurmCluster
from slurm_studies import Launcher, assert_nothing_left

SPEC = """
description: {name: options, description: d}
batch: {type: slurm, walltime: 0:10:00, args: {comment: "two words", mail-type: NONE}}
study:
  - name: sim
    description: in an allocation
    run: {cmd: "scontrol show job $SLURM_JOB_ID | grep -o 'Comment=.*\\\\|TimeLimit=[^ ]*'; echo $(A)"}
  - name: native
    description: a batch job of Maestro
    run: {cmd: "scontrol show job $SLURM_JOB_ID | grep -o 'Comment=.*\\\\|TimeLimit=[^ ]*'", nodes: 1, walltime: 0:05:00}
  - name: local
    description: beside it
    run: {cmd: "echo job ${SLURM_JOB_ID:-none}", batch: {type: local}, depends: [sim, native]}
merlin:
  resources:
    unassigned: maestro
    workers:
      w: {steps: [sim], nodes: 1, batch: {args: {comment: it's mine}}}
  samples:
    generate: {cmd: "seq 1 2 > $(MERLIN_INFO)/a.csv"}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [A]
"""


def test_options_and_a_local_step(launch: Launcher, slurm: SlurmCluster):
    """Given options with blanks and quotes and unquoted times, then Slurm reads them as written; a local step has no job."""
    study = launch(SPEC, name="options").await_end()

    assert set(study.states().values()) == {"FINISHED"}, study.log()
    for text in study.outputs("sim/*/sim.out"):
        assert [line.strip() for line in text.splitlines()[:2]] == ["TimeLimit=00:10:00", "Comment=it's mine"]
    (native,) = (path for path in (study.path / "native").glob("native.*out"))
    assert [line.strip() for line in native.read_text().splitlines()] == ["TimeLimit=00:05:00", "Comment=two words"]
    assert study.outputs("local/local.out") == ["job none\n"]
    assert_nothing_left(study, slurm)
