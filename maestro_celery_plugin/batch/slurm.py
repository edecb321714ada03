"""Slurm: the meaning of its job states, its allocations, and the commands that start workers and samples."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin.batch.base import (
    LAUNCH_CORES,
    LAUNCH_NAME,
    LAUNCH_NODES,
    CurrentAllocation,
    JobReport,
    query,
    without_launch,
)
from maestro_celery_plugin.batch.directives import Directives
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import ScriptCount, StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.config.walltime import clock_text
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.states import AllocationState

__all__ = ["SLURM_STATES", "Slurm", "srun_line"]

# Every state of squeue(1), section JOB STATE CODES, Slurm 22.05 to 24.11.
SLURM_STATES: dict[str, AllocationState] = {
    "BOOT_FAIL": AllocationState.BOOT_FAILED,
    "CANCELLED": AllocationState.CANCELLED,
    "COMPLETED": AllocationState.COMPLETED,
    "COMPLETING": AllocationState.RUNNING,  # Slurm is still ending its processes
    "CONFIGURING": AllocationState.PENDING,
    "DEADLINE": AllocationState.TIMED_OUT,
    "FAILED": AllocationState.FAILED,
    "LAUNCH_FAILED": AllocationState.BOOT_FAILED,
    "NODE_FAIL": AllocationState.NODE_FAILED,
    "OUT_OF_MEMORY": AllocationState.OUT_OF_MEMORY,
    "PENDING": AllocationState.PENDING,
    "POWER_UP_NODE": AllocationState.PENDING,
    "PREEMPTED": AllocationState.PREEMPTED,
    "RECONFIG_FAIL": AllocationState.BOOT_FAILED,
    "REQUEUED": AllocationState.PENDING,
    "REQUEUE_FED": AllocationState.PENDING,
    "REQUEUE_HOLD": AllocationState.PENDING,
    "RESIZING": AllocationState.RUNNING,
    "RESV_DEL_HOLD": AllocationState.PENDING,
    "REVOKED": AllocationState.CANCELLED,
    "RUNNING": AllocationState.RUNNING,
    "SIGNALING": AllocationState.RUNNING,
    "SPECIAL_EXIT": AllocationState.FAILED,
    "STAGE_OUT": AllocationState.RUNNING,
    "STOPPED": AllocationState.RUNNING,
    "SUSPENDED": AllocationState.RUNNING,
    "TIMEOUT": AllocationState.TIMED_OUT,
}

# Reasons for which a pending job never starts unless its limits change: squeue(1), section JOB REASON CODES.
NEVER_STARTS = frozenset(
    {
        *("AccountNotAllowed", "BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionNodeLimit"),
        *("PartitionTimeLimit", "QOSNotAllowed"),
    }
)
# What `srun` sets for its tasks (srun(1), section OUTPUT ENVIRONMENT VARIABLES).
_STEP_VARIABLES = (
    r"SLURM_(STEP.*|SRUN_COMM_.*|LAUNCH_NODE_IPADDR|PROCID|LOCALID|NODEID|GTIDS|TASK_PID|NPROCS|NTASKS.*|DISTRIBUTION"
    r"|CPU_BIND.*|MEM_BIND.*|OVERLAP|EXACT|MPI_TYPE|PMI.*|UMASK)|SRUN_DEBUG"
)
# Variables that `srun` sets as well as the job, by name, each with a variable of the job that has the same value.
# `mpirun` counts its slots by them.
_OF_JOB = {
    "SLURM_NNODES": "SLURM_JOB_NUM_NODES",
    "SLURM_NODELIST": "SLURM_JOB_NODELIST",
    "SLURM_TASKS_PER_NODE": "SLURM_JOB_CPUS_PER_NODE",
}
# Options of sbatch(1) that have a key of their own, or that would separate the job from its study.
_USE = "use the key `{}` instead"
_BELONGS_TO_STUDY = "the plugin names the job and its files, and watches the job; remove the option"
_DIRECTIVES = Directives(
    "#SBATCH",
    {
        **dict.fromkeys(("--account", "-A"), _USE.format("bank")),
        **dict.fromkeys(("--nodes", "-N"), _USE.format("nodes")),
        **dict.fromkeys(("--ntasks", "-n"), _USE.format("procs")),
        **dict.fromkeys(("--partition", "-p"), _USE.format("queue")),
        **dict.fromkeys(("--qos", "-q"), _USE.format("qos")),
        "--reservation": _USE.format("reservation"),
        **dict.fromkeys(("--time", "-t"), _USE.format("walltime")),
        **dict.fromkeys(("--array", "-a", "--chdir", "-D", "--error", "-e", "--job-name", "-J"), _BELONGS_TO_STUDY),
        **dict.fromkeys(("--output", "-o", "--requeue", "--test-only", "--wait", "-W", "--wrap"), _BELONGS_TO_STUDY),
    },
)
_NOT_FOUND = re.compile(r"slurm_load_jobs error: Invalid job id specified")


class Slurm:
    """The Slurm workload manager."""

    type = "slurm"
    adapter = "slurm"
    commands: tuple[str, ...] = ("sbatch", "squeue", "scancel", "srun")
    modules: tuple[str, ...] = ()
    ignored_keys: tuple[str, ...] = ()
    directives: Directives | None = _DIRECTIVES
    shares_nodes = True
    gpus_are_per_process = False
    # Messages of slurm_errno.c, of a client that cannot fetch its configuration, and of MUNGE while it is not running.
    unavailable = re.compile(
        r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Slurm backup|standby mode"
        r"|Communication connection failure|Connection (?:refused|timed out|reset)|Slurm temporarily unable"
        r"|Resource temporarily unavailable|failed to fetch config|Could not establish a configuration source"
        r"|Munge encode failed|Protocol authentication error",
        re.IGNORECASE,
    )

    def adapter_arguments(self, settings: BatchSettings) -> dict[str, Any]:
        """Return the keyword arguments for Maestro's adapter, which requires three (slurmscriptadapter.py:76-78)."""
        return {
            "host": settings.host or "",
            "bank": settings.bank or "",
            "queue": settings.queue or "",
            "reservation": settings.reservation or "",
            "qos": settings.qos,
        }

    def adapter_context(self) -> AbstractContextManager[None]:
        """Return an empty context."""
        return contextlib.nullcontext()

    def step_keys(self, nodes: int, procs: int | None, gpus: int | None) -> dict[str, Any]:
        """Return an empty dictionary: the adapter requests `gpus` for each node, too (slurmscriptadapter.py:100)."""
        return {}

    def adjusted_script(self, script: str) -> str:
        """Return the script with two more directives.

        ``--no-requeue``: a job that Slurm requeues would start again minutes later and bypass the restart limit.
        ``--no-kill``: a job that loses a node continues on its other nodes.
        """
        header, blank, body = script.partition("\n\n")
        return f"{header}\n#SBATCH --no-requeue\n#SBATCH --no-kill{blank}{body}"

    def worker_line(self, group: GroupConfig, command: str) -> str:
        """Return the `srun` that starts one worker on each node.

        The job step of the workers shares its cores with the job steps of the samples (``--overlap``). It may use
        the whole node, because samples that launch nothing run inside it.
        """
        settings, nodes = group.batch, group.nodes
        spread = f"srun --overlap --nodes={nodes} --ntasks={nodes} --cpu-bind=none --mem=0"
        line = settings.worker_launch or f"{spread} --no-kill --kill-on-bad-exit=0 --wait=0"
        words = (settings.launch_pre, line, settings.launch_args, command)
        return " ".join(word for word in words if word)

    def worker_count(self, group: GroupConfig) -> int:
        """Return the number of nodes."""
        return group.nodes

    def sample_launcher(self, needs: StepNeeds) -> str:
        """Return the `srun` of one sample, with cores that no other sample uses (``--exact``).

        Without ``-N``, `srun` would spread the sample over all nodes of the job; a sample without `nodes` therefore
        gets the smallest number of nodes on which its processes fit. A sample with whole nodes takes all cores of
        each node; otherwise `srun` would place another sample on the same node. ``-Q`` keeps messages about waiting
        for cores out of the sample's stderr.
        """
        if needs.has_whole_nodes:
            needs = replace(needs, cores_per_task=ScriptCount(1, f"${LAUNCH_CORES}"))
        if not needs.nodes:
            needs = replace(needs, nodes=ScriptCount(1, f"${LAUNCH_NODES}"))
        gpus = []
        if needs.gpus_per_task:
            gpus = [f"--gpus-per-task={needs.gpus_per_task}"]
        elif needs.gpus:
            gpus = [f"--gpus={needs.gpus}"]
        return srun_line(needs, before=("-Q", "--exact", "--mem=0", "-J", f'"${LAUNCH_NAME}"'), gpus=gpus)

    def sample_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment with the nodes of the job, and without the job step of the workers.

        The `srun` of a sample would read its options from the latter; a program that is linked with MPI, and that a
        sample starts without `srun`, would take itself for a task of that step.
        """
        found = without_launch(environ, _STEP_VARIABLES)
        return found | {name: environ[of_job] for name, of_job in _OF_JOB.items() if of_job in environ}

    def signal_samples(self, names: Collection[str], number: signal.Signals) -> set[str]:
        """Send a signal to the job steps with these names: `srun` forwards SIGTERM as SIGKILL."""
        job = os.environ.get("SLURM_JOB_ID", "")
        lines = query(["squeue", "-h", "-s", "-j", job, "-o", "%i|%j"]).splitlines()
        steps = {step.strip(): name for step, _, name in (line.partition("|") for line in lines)}
        matching = [step for step, name in steps.items() if name in names]
        if matching:
            # `scancel` fails if a step has ended meanwhile; it has signalled all other steps by then.
            with contextlib.suppress(AllocationError):
                query(["scancel", f"--signal={number.name}", *matching])
        return {steps[step] for step in matching}

    def current_allocation(self, environ: Mapping[str, str]) -> CurrentAllocation | None:
        """Return the allocation of `salloc` or of a batch script around this process."""
        job = environ.get("SLURM_JOB_ID")
        return CurrentAllocation(job, int(environ.get("SLURM_JOB_NUM_NODES", 1))) if job else None

    def end_time(self, environ: Mapping[str, str]) -> float | None:
        """Return the end from the environment, or from `squeue` when the environment does not contain it."""
        if "SLURM_JOB_END_TIME" in environ:
            return float(environ["SLURM_JOB_END_TIME"])
        job = environ.get("SLURM_JOB_ID")
        return _end_of(job) if job else None

    def node_cores(self, environ: Mapping[str, str]) -> int | None:
        """Return the number of cores of the job on this node."""
        return int(environ["SLURM_CPUS_ON_NODE"]) if "SLURM_CPUS_ON_NODE" in environ else None

    def largest_node(self, settings: BatchSettings) -> int | None:
        """Return the largest number of cores of a node in the partition."""
        words = ["sinfo", "--noheader", "--format=%c", *(["-p", settings.queue] if settings.queue else [])]
        try:
            counts = [int(count) for count in re.findall(r"\d+", query(words))]
        except AllocationError:
            return None
        return max(counts, default=None)

    def directories(self, jobs: Sequence[str] | None = None) -> dict[str, str]:
        """Return the working directories: Maestro submits with ``sbatch -D``."""
        which = ["-u", getpass.getuser()] if jobs is None else ["-t", "all", "-j", ",".join(jobs)]
        output = query(["squeue", "--noheader", *which, "-o", "%A|%Z"], not_found=_NOT_FOUND)
        return {job: place for job, _, place in (line.partition("|") for line in output.splitlines())}

    def reports(self, jobs: Sequence[str]) -> dict[str, JobReport]:
        """Query `squeue`, and `sacct` for jobs that `squeue` no longer lists."""
        words = ["squeue", "--noheader", "-t", "all", "-o", "%A|%T|%r", "-j", ",".join(jobs)]
        found = _parse_reports(query(words, not_found=_NOT_FOUND))
        missing = [job for job in jobs if job not in found]
        gone = JobReport(AllocationState.GONE)
        if missing:
            columns = "--format=JobIDRaw,State,Reason"
            try:
                found |= _parse_reports(query(["sacct", "-n", "-X", "-P", columns, "-j", ",".join(missing)]))
            except AllocationError as error:
                if not _has_no_accounting(error):
                    gone = JobReport(AllocationState.GONE, str(error))
        return {job: found.get(job, gone) for job in jobs}


def srun_line(needs: StepNeeds, before: Sequence[str] = (), gpus: Sequence[str] = ()) -> str:
    """Return the `srun` of one sample.

    Args:
        needs: Resources of the sample.
        before: Options that precede the options from the step's keys.
        gpus: Options for GPUs.
    """
    words = ["srun", *before, "-n", str(needs.procs or max(1, needs.nodes))]
    if needs.nodes:
        words += ["-N", str(needs.nodes)]
    if str(needs.cores_per_task) != "1":
        words += ["-c", str(needs.cores_per_task)]
    words += gpus
    if needs.walltime_s:
        words += ["-t", clock_text(needs.walltime_s)]
    if needs.reservation:
        words += [f"--reservation={needs.reservation}"]
    return " ".join((*words, needs.options)).strip()


def _has_no_accounting(error: AllocationError) -> bool:
    """Tell whether `sacct` has failed because the cluster has no accounting, and not because it is away."""
    return isinstance(error.__cause__, FileNotFoundError) or "accounting storage is disabled" in str(error)


def _end_of(job: str) -> float | None:
    """Return the end of a job in Unix seconds; None when it has no time limit, or `squeue` fails."""
    with contextlib.suppress(AllocationError):
        end = query(["squeue", "-h", "-j", job, "-o", "%e"], environ={"SLURM_TIME_FORMAT": "%s"}).strip()
        return float(end) if end.isdigit() else None
    return None


def _parse_reports(output: str) -> dict[str, JobReport]:
    """Parse lines of ``id|STATE|reason``; a state may have a suffix, as in ``CANCELLED by 1000``.

    A state that is not in the table counts as running, with its name as the reason: it may come from a later version
    of Slurm, and the job may still run.
    """
    reports = {}
    for line in output.splitlines():
        job, _, rest = line.strip().partition("|")
        name, _, reason = rest.partition("|")
        state = SLURM_STATES.get(name.split(" ")[0].rstrip("+"))
        if state is AllocationState.PENDING and reason in NEVER_STARTS:
            reports[job] = JobReport(AllocationState.FAILED, reason, waits_forever=True)
        elif state is not None:
            reports[job] = JobReport(state, "" if reason in ("None", "") else reason)
        elif name:
            reports[job] = JobReport(AllocationState.RUNNING, name)
    return reports
