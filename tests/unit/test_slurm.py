"""Slurm: the lines it is given, and what its answers mean; outputs are those of Slurm 23.11."""

from __future__ import annotations

import datetime
import getpass

import pytest

from maestro_celery_plugin.batch_systems import HeldAllocation, JobReport, StepNeeds, WorkerLaunch, batch_system
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.settings import BatchSettings
from maestro_celery_plugin.slurm import SLURM_STATES, Slurm
from maestro_celery_plugin.states import AllocationState

SLURM = Slurm()
# The section JOB STATE CODES of squeue(1).
STATES = """
BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING PREEMPTED
RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED
SUSPENDED TIMEOUT LAUNCH_FAILED RECONFIG_FAIL POWER_UP_NODE
"""


def launch(**settings):
    return WorkerLaunch(command="work --name 'a b'", nodes=4, settings=BatchSettings(type="slurm", **settings))


def test_the_plugin_manager_has_it():
    assert isinstance(batch_system("slurm"), Slurm)


def test_maestros_adapter_gets_all_it_insists_on():
    assert SLURM.adapter_arguments(BatchSettings()) == {
        "host": "", "bank": "", "queue": "", "reservation": "", "qos": None,
    }  # fmt: skip
    settings = BatchSettings(host="h", bank="b", queue="q", reservation="r", qos="s")
    assert set(SLURM.adapter_arguments(settings).values()) == {"h", "b", "q", "r", "s"}


def test_one_worker_on_each_node():
    assert SLURM.worker_line(launch()) == (
        "srun --overlap --nodes=4 --ntasks=4 --cpu-bind=none --mem=0 --kill-on-bad-exit=0 --wait=0 "
        "work --name 'a b'"
    )


def test_its_workers_are_as_many_as_its_nodes():
    assert SLURM.worker_count(launch()) == 4


def test_merlins_keys_for_the_launch_of_workers():
    line = SLURM.worker_line(launch(launch_pre="module load x;", launch_args="--export=ALL", worker_launch="mine -n 4"))
    assert line == "module load x; mine -n 4 --export=ALL work --name 'a b'"


@pytest.mark.parametrize(
    ("needs", "line"),
    [
        (StepNeeds(), "-n 1"),
        (StepNeeds(nodes=2), "-n 2 -N 2"),
        (StepNeeds(nodes=2, procs=8, cores_per_task=3), "-n 8 -N 2 -c 3"),
        (StepNeeds(procs=4, gpus=2), "-n 4 --gpus=2"),
        (StepNeeds(procs=4, gpus=2, gpus_per_task=1), "-n 4 --gpus-per-task=1"),
        (StepNeeds(procs=1, walltime_s=5400, reservation="r", options="--mpi=none -v"),
         "-n 1 -t 01:30:00 --reservation=r --mpi=none -v"),
    ],
)  # fmt: skip
def test_one_sample(needs, line):
    assert SLURM.sample_launcher(needs) == f"srun --exact --mem=0 {line}"


def test_the_batch_script_stays_as_it_is():
    assert SLURM.step_keys(2) == {}
    assert SLURM.tidied("#SBATCH -p \nx\n") == "#SBATCH -p \nx\n"


@pytest.mark.parametrize(
    ("environ", "held"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, HeldAllocation("7", 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}, HeldAllocation("7", 3)),
    ],
)
def test_whether_it_is_inside(environ, held):
    assert SLURM.held(environ) == held


def test_the_end_is_in_the_environment():
    assert SLURM.end_time({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}) == 1_700_000_000.0


def test_else_slurm_is_asked_for_the_end(recorded):
    recorded.answer("scontrol", "JobId=7 JobName=x\n   StartTime=2024-05-01T10:00:00 EndTime=2024-05-01T11:00:00 X=1\n")
    assert SLURM.end_time({"SLURM_JOB_ID": "7"}) == datetime.datetime(2024, 5, 1, 11).timestamp()
    assert recorded.asked("scontrol") == ["show", "job", "7"]


def test_an_end_that_nobody_tells(recorded):
    assert SLURM.end_time({}) is None
    recorded.answer("scontrol", "JobId=7 EndTime=Unknown\n")
    assert SLURM.end_time({"SLURM_JOB_ID": "7"}) is None
    recorded.answer("scontrol", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert SLURM.end_time({"SLURM_JOB_ID": "7"}) is None


def test_cores(recorded):
    assert SLURM.node_cores({"SLURM_CPUS_ON_NODE": "36"}) == 36
    assert SLURM.node_cores({}) is None
    recorded.answer("sinfo", "36\n48+\n")
    assert SLURM.largest_node(BatchSettings(queue="pbatch")) == 48
    assert recorded.asked("sinfo") == ["--noheader", "--format=%c", "-p", "pbatch"]
    recorded.answer("sinfo", err="slurm_load_partitions: Unable to contact slurm controller\n", code=1)
    assert SLURM.largest_node(BatchSettings()) is None


def test_every_state_of_the_manual_has_its_row():
    assert set(SLURM_STATES) == set(STATES.split())


@pytest.mark.parametrize("word", SLURM_STATES)
def test_a_job_is_in_a_state(word, recorded):
    recorded.answer("squeue", f"7|{word}|None\n")
    assert SLURM.reports(["7"]) == {"7": JobReport(SLURM_STATES[word])}
    assert recorded.asked("squeue")[-1] == getpass.getuser()


def test_jobs_that_squeue_has_forgotten_are_asked_of_the_accounting(recorded):
    recorded.answer("squeue", "7|PENDING|Priority\n8|RUNNING|None\n")
    recorded.answer("sacct", "9|CANCELLED by 1000|None\n10|OUT_OF_MEMORY|None\n")
    assert SLURM.reports(["7", "8", "9", "10", "11"]) == {
        "7": JobReport(AllocationState.PENDING, "Priority"),
        "8": JobReport(AllocationState.RUNNING),
        "9": JobReport(AllocationState.CANCELLED),
        "10": JobReport(AllocationState.OUT_OF_MEMORY),
        "11": JobReport(AllocationState.GONE),
    }
    assert recorded.asked("sacct")[-1] == "9,10,11"


def test_without_accounting_a_forgotten_job_is_gone(recorded):
    recorded.answer("squeue", "")
    recorded.answer("sacct", err="Slurm accounting storage is disabled\n", code=1)
    assert SLURM.reports(["7"]) == {"7": JobReport(AllocationState.GONE)}


def test_a_word_that_no_table_has_counts_as_open(recorded):
    recorded.answer("squeue", "7|TELEPORTING|None\n")
    assert SLURM.reports(["7"]) == {"7": JobReport(AllocationState.RUNNING, "TELEPORTING")}


def test_slurm_that_does_not_answer(recorded):
    with pytest.raises(AllocationError, match=r"^'squeue' does not answer: .*No such file"):
        SLURM.reports(["7"])
    recorded.answer("squeue", err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", code=1)
    with pytest.raises(AllocationError, match=r"^'squeue' has failed: slurm_load_jobs error: Unable to contact"):
        SLURM.reports(["7"])
