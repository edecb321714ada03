"""Slurm: the commands that the plugin builds, and the meaning of their output, which is from Slurm 23.11."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from maestro_celery_plugin.batch.base import CurrentAllocation, JobReport
from maestro_celery_plugin.batch.ownership import find_job
from maestro_celery_plugin.batch.slurm import SLURM_STATES, Slurm
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.states import AllocationState

SLURM = Slurm()
# The section JOB STATE CODES of squeue(1).
STATES = """
BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING PREEMPTED
RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED
SUSPENDED TIMEOUT LAUNCH_FAILED RECONFIG_FAIL POWER_UP_NODE
"""


COMMAND = "work --name 'a b'"


def group(**settings):
    return GroupConfig(group="sim", queues=("q",), nodes=4, batch=BatchSettings(type="slurm", **settings))


def test_the_plugin_manager_has_slurm():
    assert isinstance(batch_system("slurm"), Slurm)


def test_maestros_adapter_receives_every_argument_that_it_requires():
    assert SLURM.adapter_arguments(BatchSettings()) == {
        "host": "", "bank": "", "queue": "", "reservation": "", "qos": None,
    }  # fmt: skip
    settings = BatchSettings(host="h", bank="b", queue="q", reservation="r", qos="s")
    assert set(SLURM.adapter_arguments(settings).values()) == {"h", "b", "q", "r", "s"}


def test_one_worker_starts_on_each_node():
    assert SLURM.worker_line(group(), COMMAND) == (
        "srun --overlap --nodes=4 --ntasks=4 --cpu-bind=none --mem=0 --no-kill --kill-on-bad-exit=0 "
        "--wait=0 work --name 'a b'"
    )


def test_an_allocation_has_as_many_workers_as_nodes():
    assert SLURM.worker_count(group()) == 4


def test_merlins_keys_change_the_launch_of_workers():
    line = SLURM.worker_line(
        group(launch_pre="module load x;", launch_args="--export=ALL", worker_launch="mine -n 4"), COMMAND
    )
    assert line == "module load x; mine -n 4 --export=ALL work --name 'a b'"


@pytest.mark.parametrize(
    ("needs", "line"),
    [
        (StepNeeds(), "-n 1 -N $MAESTRO_CELERY_NODES"),
        (StepNeeds(nodes=2), "-n 2 -N 2 -c $MAESTRO_CELERY_CORES"),
        (StepNeeds(nodes=2, cores_per_task=3), "-n 2 -N 2 -c 3"),
        (StepNeeds(nodes=2, procs=8, cores_per_task=3), "-n 8 -N 2 -c 3"),
        (StepNeeds(nodes=1, procs=4, gpus=2), "-n 4 -N 1 --gpus=2"),
        (StepNeeds(nodes=1, procs=4, gpus=2, gpus_per_task=1), "-n 4 -N 1 --gpus-per-task=1"),
        (StepNeeds(nodes=1, procs=1, walltime_s=5400, reservation="r", options="--mpi=none -v"),
         "-n 1 -N 1 -t 01:30:00 --reservation=r --mpi=none -v"),
    ],
)  # fmt: skip
def test_srun_starts_a_sample_with_its_resources(needs, line):
    assert SLURM.sample_launcher(needs) == f'srun -Q --exact --mem=0 -J "$MAESTRO_CELERY_LAUNCH" {line}'


def test_maestros_adapter_requires_no_step_keys():
    assert SLURM.step_keys(2, None, None) == {}


def test_slurm_neither_requeues_a_job_nor_ends_it_when_it_loses_a_node():
    assert SLURM.adjusted_script("#!/bin/bash\n#SBATCH --nodes=2\n\nsrun x\n\ny\n") == (
        "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --no-requeue\n#SBATCH --no-kill\n\nsrun x\n\ny\n"
    )


@pytest.mark.parametrize(
    ("environ", "current"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, CurrentAllocation("7", 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}, CurrentAllocation("7", 3)),
    ],
)
def test_the_environment_shows_the_current_allocation(environ, current):
    assert SLURM.current_allocation(environ) == current


def test_the_environment_contains_the_end_of_the_allocation():
    assert SLURM.end_time({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}) == 1_700_000_000.0


def test_squeue_reports_the_end_when_the_environment_does_not_contain_it(recorded):
    recorded.answer("squeue", "1714561200\n")
    assert SLURM.end_time({"SLURM_JOB_ID": "7"}) == 1_714_561_200.0
    assert recorded.asked("squeue") == ["-h", "-j", "7", "-o", "%e"]


def test_an_unknown_end_is_none(recorded):
    assert SLURM.end_time({}) is None
    recorded.answer("squeue", "NONE\n")
    assert SLURM.end_time({"SLURM_JOB_ID": "7"}) is None
    recorded.answer("squeue", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert SLURM.end_time({"SLURM_JOB_ID": "7"}) is None


def test_a_signal_goes_only_to_the_job_steps_of_the_given_samples(recorded, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    recorded.answer("squeue", "7.0|python3\n7.3|w-1-1.0\n7.4|w-1-2.0\n7.batch|batch\n")
    recorded.answer("scancel", "")

    assert SLURM.signal_samples(["w-1-1.0", "w-1-1.1"], signal.SIGUSR1) == {"w-1-1.0"}

    assert recorded.asked("squeue") == ["-h", "-s", "-j", "7", "-o", "%i|%j"]
    assert recorded.asked("scancel") == ["--signal=SIGUSR1", "7.3"]


def test_a_sample_counts_as_signalled_despite_foreign_job_steps_and_a_failed_scancel(recorded, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    recorded.answer("squeue", "7.1|my run | two\n7.3|w-1-1.0\n")
    recorded.answer("scancel", err="scancel: error: Kill job error on job step id 7.3: Job/step already completed\n", code=1)

    assert SLURM.signal_samples(["w-1-1.0"], signal.SIGTERM) == {"w-1-1.0"}


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "InvalidAccount", "BadConstraints"])
def test_a_pending_job_that_never_starts_has_failed(recorded, reason):
    recorded.answer("squeue", f"7|PENDING|{reason}\n")
    assert SLURM.reports(["7"]) == {"7": JobReport(AllocationState.FAILED, reason, waits_forever=True)}


def test_slurm_reports_the_cores_of_this_node_and_of_the_largest_node(recorded):
    assert SLURM.node_cores({"SLURM_CPUS_ON_NODE": "36"}) == 36
    assert SLURM.node_cores({}) is None
    recorded.answer("sinfo", "36\n48+\n")
    assert SLURM.largest_node(BatchSettings(queue="pbatch")) == 48
    assert recorded.asked("sinfo") == ["--noheader", "--format=%c", "-p", "pbatch"]
    recorded.answer("sinfo", err="slurm_load_partitions: Unable to contact slurm controller\n", code=1)
    assert SLURM.largest_node(BatchSettings()) is None


def test_every_state_of_the_manual_is_in_the_table():
    assert set(SLURM_STATES) == set(STATES.split())


@pytest.mark.parametrize("state", SLURM_STATES)
def test_each_state_of_a_job_is_an_allocation_state(state, recorded):
    recorded.answer("squeue", f"7|{state}|None\n")
    assert SLURM.reports(["7"]) == {"7": JobReport(SLURM_STATES[state])}
    assert recorded.asked("squeue")[-2:] == ["-j", "7"]


def test_sacct_reports_the_jobs_that_squeue_no_longer_lists(recorded):
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


def test_without_accounting_a_job_that_squeue_no_longer_lists_is_gone(recorded):
    recorded.answer("squeue", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    recorded.answer("sacct", err="Slurm accounting storage is disabled\n", code=1)
    assert SLURM.reports(["7"]) == {"7": JobReport(AllocationState.GONE)}


def test_a_job_in_an_unknown_state_counts_as_running(recorded):
    recorded.answer("squeue", "7|TELEPORTING|None\n")
    assert SLURM.reports(["7"]) == {"7": JobReport(AllocationState.RUNNING, "TELEPORTING")}


def test_a_job_is_found_by_the_directory_of_its_submission(recorded):
    recorded.answer("squeue", "7|/home/ada\n8|/study/merlin_info/allocations/w/1\n")
    assert find_job(SLURM, Path("/study/merlin_info/allocations/w/1")) == "8"
    assert find_job(SLURM, Path("/study/merlin_info/allocations/w/2")) is None
    recorded.answer("squeue", err="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    with pytest.raises(BatchSystemUnavailableError):
        find_job(SLURM, Path("/study"))


def test_a_query_that_fails_is_an_error(recorded):
    with pytest.raises(AllocationError, match=r"^'squeue' does not answer: .*No such file"):
        SLURM.reports(["7"])
    recorded.answer("squeue", err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", code=1)
    with pytest.raises(AllocationError, match=r"^'squeue' has failed: slurm_load_jobs error: Unable to contact"):
        SLURM.reports(["7"])


# --- a Slurm that is away -----------------------------------------------------------------------------

NOT_LISTED = "slurm_load_jobs error: Invalid job id specified\n"


@pytest.mark.parametrize(
    ("err", "is_known"),
    [
        ("Slurm accounting storage is disabled\n", True),
        ("sacct: error: Problem talking to the database: Connection refused\n", False),
    ],
)
def test_an_accounting_that_is_away_is_not_the_absence_of_a_job(recorded, err, is_known):
    """Given a job that `squeue` does not list, then its end is unknown while `sacct` does not answer."""
    recorded.answer("squeue", err=NOT_LISTED, code=1)
    recorded.answer("sacct", err=err, code=1)
    report = SLURM.reports(["7"])["7"]
    assert report.state is AllocationState.GONE
    assert (report.reason == "") is is_known


def test_a_job_is_gone_on_a_cluster_without_sacct(recorded):
    recorded.answer("squeue", err=NOT_LISTED, code=1)
    assert SLURM.reports(["7"]) == {"7": JobReport(AllocationState.GONE)}


@pytest.mark.parametrize(
    ("text", "is_away"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch: error: Batch job submission failed: Slurm backup controller in standby mode", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: _establish_config_source: failed to fetch config", True),
        ("sbatch: error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\"", True),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", False),
        ("sbatch: error: invalid partition specified: nosuch", False),
        ("sbatch: error: Batch job submission failed: Node count specification invalid", False),
    ],
)
def test_only_a_slurm_that_is_away_is_unavailable(text, is_away):
    assert bool(SLURM.unavailable.search(text)) is is_away


def test_samples_see_the_job_and_not_the_step_of_their_worker():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_CPUS_PER_NODE": "36(x2)"}
    job |= {"SLURMD_NODENAME": "n2", "SLURM_MEM_PER_NODE": "100", "SLURM_SUBMIT_DIR": "/d", "PATH": "/bin", "PMIX": "mine"}
    names = "STEP_ID STEPID STEP_NODELIST PROCID LOCALID NODEID NTASKS NTASKS_PER_NODE NPROCS CPU_BIND CPU_BIND_TYPE DISTRIBUTION"
    step = {f"SLURM_{name}": "1" for name in (*names.split(), "TASKS_PER_NODE", "NNODES", "GTIDS", "TASK_PID", "SRUN_COMM_PORT", "PMIX_DIR")}
    mpi = {"PMI_RANK": "1", "PMI_FD": "3", "PMI2_X": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "SLURM_MPI_TYPE": "pmix"}

    of_job = {"SLURM_NNODES": "2", "SLURM_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "36(x2)"}
    assert SLURM.sample_environment({**job, **step, **mpi}) == {**job, **of_job}
