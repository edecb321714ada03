"""The environment of samples in an allocation: that of the batch job and of the user, not that of their worker's step."""

from __future__ import annotations

import re
from pathlib import Path

from slurm_studies import assert_nothing_left, ensemble
from support import ROOT

# Variables of one node.
NODE = {"SLURMD_NODENAME", "SLURM_CPUS_ON_NODE", "SLURM_TOPOLOGY_ADDR", "SLURM_JOB_CPUS_PER_NODE_PACK_GROUP_0"}
# Variables of the batch script alone, which is the task 0 of the job.
SCRIPT = {"SLURM_GTIDS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_PROCID", "SLURM_TASK_PID"}
USER = {"VIRTUAL_ENV": "/opt/venv", "CONDA_PREFIX": "/opt/conda", "LOADEDMODULES": "gcc/12:mpi/4"}
MODULE = {"BASH_FUNC_module%%": "() { echo loaded $1; }"}


def variables(path: Path) -> dict[str, str]:
    return dict(text.split("=", 1) for text in path.read_text().split("\0") if text)


def test_a_sample_sees_the_job_and_the_environment_of_the_user(launch, slurm, tmp_path):
    """Given workers that `srun` has started on two nodes, then their samples see the job, and so does a further `srun`."""
    cmd = ": $(A)\n$(LAUNCHER) -n 1 true\nenv -0 > env\nsrun -n 1 -N 1 --overlap env -0 > launched\nmodule spack > module\n"
    # The first sample of a node waits for that of the other one, so that both nodes run samples.
    cmd += f"touch {tmp_path}/on.$SLURMD_NODENAME; until set -- {tmp_path}/on.*; test $# = 2; do sleep 0.1; done"
    batch = f"type: slurm, nodes: 2, walltime: 600, launch_pre: 'env -0 > {tmp_path}/job;'"
    (tmp_path / "env").write_text("TOKEN='s 1'\n")
    spec = ensemble(cmd, count=6, batch=batch, group="args: -c 1, nodes: 2")
    study = launch(spec, "--env-file", str(tmp_path / "env"), name="environment", environment={**USER, **MODULE}).await_end()

    documented = set(re.findall(r"^\| `(MAESTRO_CELERY_\w+)`", (ROOT / "docs" / "reference" / "variables.md").read_text(), re.MULTILINE))
    job, samples = variables(tmp_path / "job"), [variables(path) for path in study.path.glob("sim/*/env")]
    assert study.states() == {"sim": "FINISHED"}
    assert len({sample["SLURMD_NODENAME"] for sample in samples}) == 2
    for sample in samples:
        of_slurm = {name: value for name, value in sample.items() if name.startswith(("SLURM", "SRUN", "PMI")) and name not in NODE}
        assert of_slurm == {name: job[name] for name in job if name.startswith("SLURM") and name not in NODE | SCRIPT}
        assert {**sample, **USER, "TOKEN": "s 1"} == sample
        assert {name for name in sample if name.startswith("MAESTRO_CELERY")} < documented
    for launched in map(variables, study.path.glob("sim/*/launched")):
        assert (launched["SLURM_PROCID"], launched["SLURM_NTASKS"], launched["SLURM_STEP_NUM_TASKS"]) == ("0", "1", "1")
    assert study.outputs("sim/*/module") == ["loaded spack\n"] * 6
    assert "s 1" not in study.log()
    assert (study.path / "meta" / "environment.yaml").stat().st_mode & 0o777 == 0o600
    assert_nothing_left(study, slurm)
