"""`batch.args`: options of the batch system become directives of batch scripts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from maestro_celery_plugin.batch.lsf import Lsf
from maestro_celery_plugin.batch.slurm import Slurm
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.config.groups import batch_of
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.maestro.native_adapter import insert_options

SLURM, LSF = Slurm().directives, Lsf().directives


@pytest.mark.parametrize(
    ("directives", "args", "lines"),
    [
        (SLURM, {"constraint": "a b", "C": "x"}, ["#SBATCH --constraint='a b'", "#SBATCH -C x"]),
        (SLURM, {"exclusive": True, "hint": False, "-k": None}, ["#SBATCH --exclusive", "#SBATCH -k"]),
        (SLURM, {"mail-type": ["END", "FAIL"]}, ["#SBATCH --mail-type=END", "#SBATCH --mail-type=FAIL"]),
        (SLURM, {"--mem": 5}, ["#SBATCH --mem=5"]),
        (SLURM, "--constraint=a -L b:1\n\n -k\n", ["#SBATCH --constraint=a -L b:1", "#SBATCH -k"]),
        (LSF, {"R": "span[ptile=4]", "app": "x"}, ["#BSUB -R 'span[ptile=4]'", "#BSUB -app x"]),
        (LSF, {"x": True}, ["#BSUB -x"]),
    ],
)
def test_options_become_directives(directives, args, lines):
    assert directives.lines(args) == lines
    assert directives.problem(args) is None


@pytest.mark.parametrize(
    ("directives", "args", "problem"),
    [
        (SLURM, {"time": 5}, "found '--time'; use the key `walltime` instead"),
        (SLURM, "-C x -t5", "found '-t'; use the key `walltime` instead"),
        (SLURM, "--job-name=x", "found '--job-name'; the plugin names the job and its files"),
        (LSF, {"W": 5}, "found '-W'; use the key `walltime` instead"),
        (SLURM, {"comment": "a\n#SBATCH -t 5"}, "found the value 'a\n#SBATCH -t 5' with a line break"),
        (SLURM, {"mem": {"x": 1}}, "found a block or a list as the value of an option"),
        (SLURM, "--comment='x", "found '--comment='x': No closing quotation"),
        (SLURM, "haswell", "found 'haswell'; an option begins with '-'"),
    ],
)
def test_options_with_a_key_of_their_own_and_invalid_ones_have_a_message(directives, args, problem):
    assert directives.problem(args).startswith(problem)


def test_no_option_of_lsf_is_the_beginning_of_another():
    assert LSF.problem({"Ipx": 1, "qq": 1, "nnodess": 1}) is None


def test_the_options_stand_after_the_directives_of_maestro(tmp_path):
    """Given options, when Maestro's adapter writes the script of an allocation, then it has them before its commands."""
    settings = BatchSettings(type="slurm", args={"constraint": "x y"})
    request = AllocationRequest(
        name="sim", study="s", settings=settings, nodes=2, procs=None, gpus=None, walltime_s=90, lines=("worker",)
    )
    lines = BatchJobs(Slurm()).script(request, tmp_path).read_text().splitlines()
    assert lines.index("#SBATCH --constraint='x y'") == lines.index("#SBATCH --no-kill") + 1
    assert lines[lines.index("#SBATCH --constraint='x y'") + 1] == ""


def test_a_native_step_has_the_options_in_both_scripts_of_a_batch_job(tmp_path):
    scripts = [tmp_path / name for name in ("a.sh", "b.sh")]
    batch = BatchSettings(type="slurm", args="-C x")
    for is_scheduled, expected in ((False, "#!/bin/sh\n\nx\n"), (True, "#!/bin/sh\n#SBATCH -C x\n\nx\n")):
        for script in scripts:
            script.write_text("#!/bin/sh\n\nx\n")
        insert_options(batch, (is_scheduled, *map(str, scripts)))
        assert [script.read_text() for script in scripts] == [expected, expected]
    insert_options(batch, (True, str(scripts[0]), str(scripts[0])))
    assert scripts[0].read_text().count("-C x") == 2


def test_the_options_of_a_group_supplement_and_override_those_of_the_study():
    common = {"constraint": "a", "mem": 1}
    settings = EnsembleSettings(batch=BatchSettings(type="slurm", args=common), resources=ResourceSettings())

    def options(**batch):
        return batch_of(settings, WorkerGroupSettings(batch=batch)).args

    assert options() == common
    assert options(args={"mem": 2, "C": "x"}) == {"constraint": "a", "mem": 2, "C": "x"}
    assert options(args="-C y") == "-C y"
    assert options(type="lsf") is None
    assert options(type="lsf", args={"R": "x"}) == {"R": "x"}
    text = replace(settings, batch=BatchSettings(type="slurm", args="-k"))
    assert batch_of(text, WorkerGroupSettings(batch={"args": {"C": "x"}})).args == {"C": "x"}
