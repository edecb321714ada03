"""LSF: its command lines, and the meaning of its output. The outputs have the form of Spectrum LSF 10.1."""

from __future__ import annotations

import subprocess

import pytest
from support import wait_for

from maestro_celery_plugin.batch import lsf_commands
from maestro_celery_plugin.batch.base import CurrentAllocation, JobReport
from maestro_celery_plugin.batch.lsf import LSF_ENDS, LSF_STATES, Lsf, LsfSrun
from maestro_celery_plugin.batch.lsf_commands import Command
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import ScriptCount, StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.spec.launcher import needs_of, with_launcher
from maestro_celery_plugin.states import AllocationState

LSF, LSF_SRUN = Lsf(), LsfSrun()
# JOB STATUS of bjobs(1), and states of its history.
STATES = "PEND PROV PSUSP RUN USUSP SSUSP DONE EXIT UNKWN WAIT ZOMBI FWD_PEND POST_DONE POST_ERR"
# Termination reasons displayed by bacct, bhist and bjobs; TERM_SLURM and TERM_RMS are those of older releases.
ENDS = """
TERM_ADMIN TERM_BUCKET_KILL TERM_CHKPNT TERM_CPULIMIT TERM_CSM_ALLOC TERM_CTRL_PID TERM_CWD_NOTEXIST TERM_DATA
TERM_DEADLINE TERM_EXTERNAL_SIGNAL TERM_FORCE_ADMIN TERM_FORCE_OWNER TERM_KUBE TERM_LOAD TERM_MC_RECALL TERM_MEMLIMIT
TERM_ORPHAN_SYSTEM TERM_OTHER TERM_OWNER TERM_PREEMPT TERM_PRE_EXEC_FAIL TERM_PROCESSLIMIT TERM_RC
TERM_REMOVE_HUNG_JOB TERM_REQUEUE_ADMIN TERM_REQUEUE_OWNER TERM_REQUEUE_RC TERM_RMS TERM_RUNLIMIT TERM_SLURM TERM_SWAP
TERM_THREADLIMIT TERM_UNKNOWN TERM_WINDOW TERM_ZOMBIE
"""


COMMAND = "work --name \'a b\'"


def group(samples_launch=False, **settings):
    settings = BatchSettings(type="lsf", **settings)
    return GroupConfig(group="sim", queues=("q",), nodes=4, batch=settings, samples_launch=samples_launch)


def test_both_batch_systems_are_registered():
    assert type(batch_system("lsf")) is Lsf
    assert type(batch_system("lsf-srun")) is LsfSrun
    assert LSF_SRUN.adapter == LSF.adapter == "lsf"


def test_maestros_adapter_gets_all_required_keys():
    assert LSF.adapter_arguments(BatchSettings()) == {"host": "", "bank": "", "queue": "", "reservation": None}
    settings = BatchSettings(host="h", bank="b", queue="q", reservation="r")
    assert set(LSF.adapter_arguments(settings).values()) == {"h", "b", "q", "r"}


def test_a_batch_script_sets_procs_which_maestros_adapter_requires():
    assert LSF.step_keys(2, None, None) == {"procs": 2}


def test_directives_without_a_value_are_removed_from_the_batch_script():
    script = "#!/bin/bash\n#BSUB -nnodes 2\n#BSUB -q \n#BSUB -G \n#BSUB -W 0:10\n#BSUB -x\n#BSUB -J a\n\necho '#BSUB -q '\n"
    assert LSF.adjusted_script(script) == (
        "#!/bin/bash\n#BSUB -nnodes 2\n#BSUB -W 0:10\n#BSUB -x\n#BSUB -J a\n\necho '#BSUB -q '\n"
    )
    assert LSF.adjusted_script("#BSUB -q\n#BSUB -q pbatch\n#BSUB -G") == "#BSUB -q pbatch\n"


def test_one_worker_starts_on_each_node():
    line = "jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n 4 -r 1 work --name 'a b'"
    assert LSF.worker_line(group(), COMMAND) == line


def test_the_worker_count_is_the_number_of_nodes_or_one_without_a_launcher():
    assert LSF.worker_count(group()) == 4
    assert LSF.worker_count(group(samples_launch=True)) == LSF_SRUN.worker_count(group()) == 1
    assert LSF_SRUN.worker_count(group(worker_launch="lrun -T1")) == 4


def test_a_worker_starts_without_jsrun_if_its_samples_use_a_launcher():
    assert LSF.worker_line(group(samples_launch=True), COMMAND) == "work --name 'a b'"
    assert LSF_SRUN.worker_line(group(), COMMAND) == "work --name 'a b'"
    assert LSF.worker_line(group(samples_launch=True, launch_pre="module load x;", launch_args="-v"), COMMAND) == (
        "module load x; work --name 'a b'"
    )


def test_merlins_keys_change_the_launch_of_workers():
    line = LSF.worker_line(group(launch_pre="module load x;", launch_args="--smpiargs=off"), COMMAND)
    assert line == (
        "module load x; jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n 4 -r 1 --smpiargs=off work --name 'a b'"
    )
    for samples_launch in (False, True):
        line = LSF.worker_line(group(samples_launch, worker_launch="lrun -T1", launch_args="-v"), COMMAND)
        assert line == "lrun -T1 -v work --name 'a b'"


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ({}, "--np 1 --nrs 1 -b rs -d plane:1 -X 1"),
        ({"nodes": 2, "procs": 4}, "--np 4 --nrs 2 -b rs -d plane:2 -X 1"),
        ({"nodes": 2}, "--np 2 --nrs 2 -b rs -d plane:1 -X 1 -c ALL_CPUS -r 1"),
        ({"nodes": 2, "procs": 8, "cores per task": 4, "gpus per task": 2},
         "--np 8 --nrs 2 -b rs -d plane:4 -X 1 -c 4 -g 2"),
        ({"procs": 8, "num resource set": 4, "bind": "packed:4", "launch_distribution": "packed", "exit_on_error": 0},
         "--np 8 --nrs 4 -b packed:4 -d packed -X 0"),
        ({"procs": 8, "launch distribution": "cyclic", "exit_on_error": False, "gpus": 1},
         "--np 8 --nrs 1 -b rs -d cyclic -X 0 -g 1"),
        ({"procs": 9, "tasks per rs": 4, "rs per node": 2, "cpus per rs": 20, "bind gpus": "none"},
         "--nrs 3 -a 4 -b rs -d plane:9 -X 1 -c 20 -r 2 -B none"),
        ({"procs": 1, "reservation": "r", "walltime": "10:00"}, "--np 1 --nrs 1 -b rs -d plane:1 -X 1"),
    ],
)  # fmt: skip
def test_the_launcher_has_the_resources_of_a_sample(run, line):
    assert LSF.sample_launcher(needs_of(run)) == f"jsrun {line}"


def test_the_options_of_the_step_follow_the_resources():
    run = {"procs": 2, "lsf": "--smpiargs='-gpu'", "slurm": "--mpi=none"}
    assert with_launcher("$(LAUNCHER) a", "lsf", run) == "jsrun --np 2 --nrs 1 -b rs -d plane:2 -X 1 --smpiargs='-gpu' a"
    assert with_launcher("$(LAUNCHER) a", "lsf-srun", run) == "srun -n 2 --mpi=none a"


def test_the_shell_divides_counts_that_are_variables_of_the_script():
    needs = StepNeeds(nodes=ScriptCount(2, "${MERLIN_NODES}"), procs=ScriptCount(4, "${MERLIN_PROCS}"))
    assert LSF.sample_launcher(needs) == (
        "jsrun --np ${MERLIN_PROCS} --nrs ${MERLIN_NODES} -b rs -d plane:$((${MERLIN_PROCS}/${MERLIN_NODES})) -X 1"
    )
    needs = StepNeeds(procs=ScriptCount(4, "${P}"), more={"tasks per rs": 2})
    assert LSF.sample_launcher(needs).startswith("jsrun --nrs $(((${P}+2-1)/2)) -a 2 ")


def test_srun_on_lsf_has_only_procs_and_nodes():
    assert LSF_SRUN.sample_launcher(StepNeeds(nodes=2, procs=8, gpus=1)) == "srun -n 8 -N 2"


@pytest.mark.parametrize(
    ("environ", "current"),
    [
        ({}, None),
        ({"LSB_JOBID": "7"}, CurrentAllocation("7", 1)),
        ({"LSB_JOBID": "7", "LSB_HOSTS": "batch1 n1 n1 n2 n2"}, CurrentAllocation("7", 2)),
        ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "batch1 1 n1 40 n2 40 n3 40"}, CurrentAllocation("7", 3)),
        ({"LSB_JOBID": "7", "LSB_HOSTS": "n1 n1"}, CurrentAllocation("7", 1)),
        ({"LSB_HOSTS": "batch1 n1"}, None),
    ],
)
def test_the_environment_gives_the_current_allocation(environ, current):
    assert LSF.current_allocation(environ) == LSF_SRUN.current_allocation(environ) == current


def test_the_environment_gives_the_cores_of_a_node_and_no_end():
    assert LSF.node_cores({"LSB_MCPU_HOSTS": "batch1 1 n1 40 n2 40"}) == 40
    assert LSF.node_cores({}) is None
    assert LSF.end_time({"LSB_JOBID": "7"}) is None
    assert LSF.largest_node(BatchSettings()) is None


def test_the_tables_have_every_state_and_reason_of_the_manual():
    assert set(LSF_STATES) == set(STATES.split())
    assert set(LSF_ENDS) == set(ENDS.split())


@pytest.mark.parametrize("state", LSF_STATES)
def test_each_state_of_lsf_gives_a_state_of_the_allocation(state, recorded):
    recorded.answer("bjobs", f"7|{state}|-|-|-\n")
    assert LSF.reports(["7"]) == {"7": JobReport(LSF_STATES[state])}


@pytest.mark.parametrize("reason", LSF_ENDS)
def test_a_termination_reason_gives_the_state_of_the_allocation(reason, recorded):
    recorded.answer("bjobs", f"7|EXIT|140|{reason}: job killed|-\n")
    assert LSF.reports(["7"]) == {"7": JobReport(LSF_ENDS[reason], f"{reason}: job killed")}


def test_one_call_of_bjobs_reports_several_jobs(recorded):
    recorded.answer(
        "bjobs",
        "7|PEND|-|-|New job is waiting for scheduling; | Not enough hosts;\n8|RUN|-|-|-\n9|DONE|-|-|-\n10|EXIT|1|-|-\n"
        "11|EXIT|130|TERM_OWNER: job killed by owner|-\n",
        err="Job <12> is not found\n",
        code=255,
    )
    assert LSF.reports(["7", "8", "9", "10", "11", "12"]) == {
        "7": JobReport(AllocationState.PENDING, "New job is waiting for scheduling; | Not enough hosts;"),
        "8": JobReport(AllocationState.RUNNING),
        "9": JobReport(AllocationState.COMPLETED),
        "10": JobReport(AllocationState.FAILED, "exit code 1"),
        "11": JobReport(AllocationState.CANCELLED, "TERM_OWNER: job killed by owner"),
        "12": JobReport(AllocationState.GONE),
    }
    assert recorded.asked("bjobs") == [
        "-a", "-noheader", "-o", "jobid stat exit_code exit_reason pend_reason delimiter='|'",
        "7", "8", "9", "10", "11", "12",
    ]  # fmt: skip


def test_without_jobs_bjobs_is_not_called(recorded):
    assert LSF.reports([]) == {}


def test_an_unknown_state_counts_as_running_and_an_unknown_reason_as_failed(recorded):
    recorded.answer("bjobs", "7|FLYING|-|-|-\n8|EXIT|1|TERM_BOREDOM: job got bored|-\n")
    assert LSF.reports(["7", "8"]) == {
        "7": JobReport(AllocationState.RUNNING, "FLYING"),
        "8": JobReport(AllocationState.FAILED, "TERM_BOREDOM: job got bored"),
    }


def test_an_lsf_that_does_not_answer_is_an_error(recorded):
    recorded.answer("bjobs", err="Failed in an LSF library call: LIM is down; try later\n", code=255)
    with pytest.raises(AllocationError, match=r"^'bjobs' has failed: Failed in an LSF library call: LIM is down"):
        LSF.reports(["7"])


# --- an LSF that is busy or away ----------------------------------------------------------------------

BUSY = "LSF is processing your request. Please wait ...\n"


def test_an_unknown_job_of_a_busy_lsf_is_gone(recorded):
    """Given notices of `bjobs` before its answer, then an unknown job is gone nevertheless."""
    err = f"{BUSY}Batch system concurrent query limit exceeded ... retrying in 1 second(s).\nJob <7> is not found\n"
    recorded.answer("bjobs", err=err, code=255)
    assert LSF.reports(["7"]) == {"7": JobReport(AllocationState.GONE)}


def test_an_lsf_that_only_asks_to_wait_does_not_answer(recorded):
    recorded.answer("bjobs", err="LSF is down. Please wait ...\n", code=255)
    with pytest.raises(AllocationError, match="LSF is down"):
        LSF.reports(["7"])


def run_command(script, caplog):
    """Run a command as Maestro's adapter for LSF does; return its output and its log."""
    command = Command(script, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, _ = command.communicate()
    command.wait()
    return output, [record.getMessage() for record in caplog.records]


def test_the_message_of_a_refusal_is_logged_without_notices(caplog):
    script = f"echo '{BUSY.strip()}' >&2; echo 'x: No such queue. Job not submitted.' >&2; exit 255"
    assert run_command(script, caplog) == (b"", ["x: No such queue. Job not submitted."])


def test_a_successful_command_logs_nothing(caplog):
    assert run_command(f"echo '{BUSY.strip()}' >&2; echo 7", caplog) == (b"7\n", [])


def test_a_command_that_waits_for_ever_is_ended(caplog, monkeypatch, tmp_path):
    """The limit begins when the command has printed its message: its shell may need longer to start."""
    communicate = subprocess.Popen.communicate

    def communicate_later(command, *args):
        wait_for((tmp_path / "begun").exists, "the message of the command")
        return communicate(command, *args)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate_later)
    monkeypatch.setattr(lsf_commands, "COMMAND_LIMIT_S", 0.3)
    _, log = run_command(f"echo 'LSF is down. Please wait ...' >&2; touch {tmp_path}/begun; sleep 600; true", caplog)
    assert log == ["LSF does not answer for 0 s.", "LSF is down. Please wait ..."]
    assert all(LSF.unavailable.search(line) for line in log)


@pytest.mark.parametrize(
    ("text", "is_away"),
    [
        ("Cannot connect to LSF. Please wait ...", True),
        ("batch system daemon not responding ... still trying", True),
        ("Failed in an LSF library call: Communication time out. Job not submitted.", True),
        ("Slave LIM configuration is not ready yet. Job not submitted.", True),
        ("nosuch: No such queue. Job not submitted.", False),
        ("User cannot use the queue. Job not submitted.", False),
    ],
)
def test_only_an_lsf_that_is_away_is_unavailable(text, is_away):
    assert bool(LSF.unavailable.search(text)) is is_away


def test_maestros_adapter_runs_its_commands_with_the_name_that_is_replaced():
    from maestrowf.interfaces.script import lsfscriptadapter

    assert issubclass(lsfscriptadapter.Popen, subprocess.Popen)
    with LSF.adapter_context():
        assert lsfscriptadapter.Popen is Command


def test_samples_do_not_see_the_rank_of_their_worker():
    rank = {"JSM_NAMESPACE_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1"}
    job = {"LSB_JOBID": "7", "LSB_HOSTS": "a b"}
    assert Lsf().sample_environment({**job, **rank}) == job
