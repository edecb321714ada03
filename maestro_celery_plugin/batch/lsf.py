"""LSF: the meaning of its job states, its allocations, and the commands that start workers and samples.

Sources are IBM's Spectrum LSF 10.1 command reference (bjobs, bkill), its list of termination reasons, and
Merlin's use of `jsrun` on LSF machines (study/batch.py, study/script_adapter.py).
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from maestro_celery_plugin.batch.base import CurrentAllocation, JobReport, query, without_launch
from maestro_celery_plugin.batch.directives import Directives
from maestro_celery_plugin.batch.lsf_commands import NOTICE, keep_errors
from maestro_celery_plugin.batch.slurm import srun_line
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import ScriptCount, StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.states import AllocationState

__all__ = ["LSF_ENDS", "LSF_STATES", "Lsf", "LsfSrun"]

# Every value of the column STAT of bjobs(1). `LSF_ENDS` has the reasons for which a job in state EXIT has ended.
LSF_STATES: dict[str, AllocationState] = {
    "DONE": AllocationState.COMPLETED,
    "EXIT": AllocationState.FAILED,
    "FWD_PEND": AllocationState.PENDING,  # forwarded to another cluster
    "PEND": AllocationState.PENDING,
    "POST_DONE": AllocationState.COMPLETED,
    "POST_ERR": AllocationState.FAILED,
    "PROV": AllocationState.PENDING,  # LSF is powering its node up
    "PSUSP": AllocationState.PENDING,  # suspended before its start
    "RUN": AllocationState.RUNNING,
    "SSUSP": AllocationState.RUNNING,
    "UNKWN": AllocationState.RUNNING,  # its node does not answer now; the job may still run
    "USUSP": AllocationState.RUNNING,
    "WAIT": AllocationState.PENDING,
    "ZOMBI": AllocationState.NODE_FAILED,  # killed while its node did not answer
}

# Termination reasons that bjobs, bhist and bacct display.
LSF_ENDS: dict[str, AllocationState] = {
    "TERM_ADMIN": AllocationState.CANCELLED,
    "TERM_BUCKET_KILL": AllocationState.CANCELLED,
    "TERM_CHKPNT": AllocationState.PREEMPTED,
    "TERM_CPULIMIT": AllocationState.TIMED_OUT,
    "TERM_CSM_ALLOC": AllocationState.BOOT_FAILED,
    "TERM_CTRL_PID": AllocationState.FAILED,
    "TERM_CWD_NOTEXIST": AllocationState.FAILED,
    "TERM_DATA": AllocationState.FAILED,
    "TERM_DEADLINE": AllocationState.TIMED_OUT,
    "TERM_EXTERNAL_SIGNAL": AllocationState.FAILED,
    "TERM_FORCE_ADMIN": AllocationState.CANCELLED,
    "TERM_FORCE_OWNER": AllocationState.CANCELLED,
    "TERM_KUBE": AllocationState.FAILED,
    "TERM_LOAD": AllocationState.PREEMPTED,
    "TERM_MC_RECALL": AllocationState.PREEMPTED,
    "TERM_MEMLIMIT": AllocationState.OUT_OF_MEMORY,
    "TERM_ORPHAN_SYSTEM": AllocationState.CANCELLED,
    "TERM_OTHER": AllocationState.FAILED,
    "TERM_OWNER": AllocationState.CANCELLED,
    "TERM_PREEMPT": AllocationState.PREEMPTED,
    "TERM_PRE_EXEC_FAIL": AllocationState.BOOT_FAILED,
    "TERM_PROCESSLIMIT": AllocationState.FAILED,
    "TERM_RC": AllocationState.PREEMPTED,
    "TERM_REMOVE_HUNG_JOB": AllocationState.NODE_FAILED,
    "TERM_REQUEUE_ADMIN": AllocationState.PREEMPTED,
    "TERM_REQUEUE_OWNER": AllocationState.PREEMPTED,
    "TERM_REQUEUE_RC": AllocationState.PREEMPTED,
    "TERM_RMS": AllocationState.NODE_FAILED,
    "TERM_RUNLIMIT": AllocationState.TIMED_OUT,
    "TERM_SLURM": AllocationState.NODE_FAILED,
    "TERM_SWAP": AllocationState.OUT_OF_MEMORY,
    "TERM_THREADLIMIT": AllocationState.FAILED,
    "TERM_UNKNOWN": AllocationState.FAILED,
    "TERM_WINDOW": AllocationState.TIMED_OUT,
    "TERM_ZOMBIE": AllocationState.NODE_FAILED,
}

_COLUMNS = "jobid stat exit_code exit_reason pend_reason delimiter='|'"
_NOT_FOUND = re.compile(r"Job <[^>]*> is not found|No .*jobs? found.*")
# Options of bsub(1) that have a key of their own, or that would separate the job from its study.
_BELONGS_TO_STUDY = "the plugin names the job and its files, and watches the job; remove the option"
_DIRECTIVES = Directives(
    "#BSUB",
    {
        "-G": "use the key `bank` instead",
        "-U": "use the key `reservation` instead",
        "-W": "use the key `walltime` instead",
        "-nnodes": "use the key `nodes` instead",
        "-q": "use the key `queue` instead",
        **dict.fromkeys(("-J", "-K", "-I", "-Ip", "-Is", "-cwd", "-e", "-eo", "-o", "-oo", "-r"), _BELONGS_TO_STUDY),
    },
    has_long_options=False,
)
# Maestro writes these directives without a value when a setting is empty (lsfscriptadapter.py:84).
_EMPTY_DIRECTIVE = re.compile(r"^#BSUB +-(?:q|G|U|W|nnodes)[ \t]*(?:\n|\Z)", re.MULTILINE)


class Lsf:
    """The Load Sharing Facility, with `jsrun` to launch parallel programs."""

    _workers_on_nodes = True
    type = "lsf"
    adapter = "lsf"
    commands: tuple[str, ...] = ("bsub", "bjobs", "bkill")  # `jsrun` is needed on the launch node only
    modules: tuple[str, ...] = ()
    ignored_keys: tuple[str, ...] = ("qos",)
    directives: Directives | None = _DIRECTIVES
    # The messages while mbatchd does not answer (lsf.conf: LSB_MBD_DOWN_MSG, LSB_MBD_CONNECT_FAIL_MSG,
    # LSB_MBD_BUSY_MSG), and those of failed library calls.
    unavailable = re.compile(
        r"LSF is down|not responding|Cannot connect to LSF|lim is down|LSF is processing your request"
        r"|concurrent query limit|Communication time ?out|Connection (?:refused|timed out|reset)|does not answer"
        r"|LIM configuration is not ready",
        re.IGNORECASE,
    )
    shares_nodes = False  # jsrun places two resource sets on one node if both fit
    gpus_are_per_process = False

    def adapter_arguments(self, settings: BatchSettings) -> dict[str, Any]:
        """Return the keyword arguments for Maestro's adapter, which requires three (lsfscriptadapter.py:73-75)."""
        return {
            "host": settings.host or "",
            "bank": settings.bank or "",
            "queue": settings.queue or "",
            "reservation": settings.reservation,
        }

    @contextlib.contextmanager
    def adapter_context(self) -> Iterator[None]:
        """Keep the error messages of LSF's commands, and limit the time for which they try to reach LSF."""
        keep_errors()
        yield

    def step_keys(self, nodes: int, procs: int | None, gpus: int | None) -> dict[str, Any]:
        """Return `procs`: the adapter always composes a launcher command, which needs it (lsfscriptadapter.py:170)."""
        return {"procs": nodes} if procs is None else {}

    def adjusted_script(self, script: str) -> str:
        """Return the script without directives that have no value: `bsub` refuses them."""
        return _EMPTY_DIRECTIVE.sub("", script)

    def worker_line(self, group: GroupConfig, command: str) -> str:
        """Return the `jsrun` that starts one worker on each node; each node is one resource set.

        A program that `jsrun` has started cannot call `jsrun` (Merlin: study/batch.py:347). If samples launch
        parallel programs, one worker therefore runs on the launch node, and its samples run on the other nodes.
        """
        settings, line = group.batch, self._launch_line(group)
        words = (settings.launch_pre, line, settings.launch_args if line else None, command)
        return " ".join(word for word in words if word)

    def worker_count(self, group: GroupConfig) -> int:
        """Return the number of nodes, or 1 for a worker on the launch node."""
        return group.nodes if self._launch_line(group) else 1

    def _launch_line(self, group: GroupConfig) -> str:
        """Return the launcher of the worker's command; empty text for a worker on the launch node."""
        if group.batch.worker_launch:
            return group.batch.worker_launch
        if group.samples_launch or not self._workers_on_nodes:
            return ""
        return f"jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n {group.nodes} -r 1"

    def sample_launcher(self, needs: StepNeeds) -> str:
        """Return the `jsrun` of one sample, in the form of Merlin's adapter (script_adapter.py:141).

        If the step has Maestro's ``tasks per rs``, it determines the number of resource sets, and the line has no
        number of tasks: 8 procs and 4 tasks per rs make ``--nrs 2 -a 4``.
        """
        more = needs.more
        nodes, procs = needs.nodes or 1, needs.procs or max(1, needs.nodes)
        sets, per_set = more.get("num resource set"), more.get("tasks per rs")
        if per_set:
            words = ["--nrs", str(sets or _ceil_div(procs, per_set)), "-a", str(per_set)]
        else:
            words = ["--np", str(procs), "--nrs", str(sets or nodes)]
        distribution = more.get("launch_distribution") or more.get("launch distribution")
        distribution = distribution or f"plane:{_procs_per_node(procs, nodes)}"
        words += ["-b", str(more.get("bind", "rs")), "-d", str(distribution)]
        words += ["-X", str(int(more.get("exit_on_error", 1)))]
        cores = more.get("cpus per rs") or (needs.cores_per_task if str(needs.cores_per_task) != "1" else None)
        sets_per_node = more.get("rs per node")
        if needs.has_whole_nodes and not (sets or per_set or cores or sets_per_node):
            cores, sets_per_node = "ALL_CPUS", 1
        options = {
            "-c": cores,
            "-g": needs.gpus_per_task or needs.gpus,
            "-r": sets_per_node,
            "-B": more.get("bind gpus"),
        }
        words += [word for option, value in options.items() if value for word in (option, str(value))]
        return " ".join(("jsrun", *words, needs.options)).strip()

    def sample_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment without the rank that `jsrun` gives to the worker."""
        return without_launch(environ, r"JSM_.*")

    def signal_samples(self, names: Collection[str], number: signal.Signals) -> set[str]:
        """Return no name: the launcher forwards the signal of the process group."""
        return set()

    def current_allocation(self, environ: Mapping[str, str]) -> CurrentAllocation | None:
        """Return the allocation of a batch job around this process.

        One of its hosts is the launch node, which only runs the script (Merlin: study/batch.py:188).
        """
        job = environ.get("LSB_JOBID")
        return CurrentAllocation(job, max(1, len(_hosts(environ)) - 1)) if job else None

    def end_time(self, environ: Mapping[str, str]) -> float | None:
        """Return None: `bjobs` reports whole minutes, which is less precise than start + walltime."""
        return None

    def node_cores(self, environ: Mapping[str, str]) -> int | None:
        """Return the largest number of cores of the job on one of its hosts, because the launch node has fewer."""
        words = environ.get("LSB_MCPU_HOSTS", "").split()
        return max((int(count) for count in words[1::2]), default=None)

    def largest_node(self, settings: BatchSettings) -> int | None:
        """Return None: `bhosts` reports job slots, which are not cores on every cluster."""
        return None

    def directories(self, jobs: Sequence[str] | None = None) -> dict[str, str]:
        """Return the directories of submission: Maestro calls ``bsub -cwd`` in this directory."""
        which = [] if jobs is None else ["-a"]
        words = ["bjobs", *which, "-noheader", "-o", "jobid sub_cwd delimiter='|'", *(jobs or ())]
        lines = query(words, not_found=_NOT_FOUND, notice=NOTICE).splitlines()
        return {job.strip(): place.strip() for job, _, place in (line.partition("|") for line in lines)}

    def reports(self, jobs: Sequence[str]) -> dict[str, JobReport]:
        """Query `bjobs`, which lists a job until the cluster's CLEAN_PERIOD after its end, an hour by default."""
        words = ["bjobs", "-a", "-noheader", "-o", _COLUMNS, *jobs]
        found = _parse_reports(query(words, not_found=_NOT_FOUND, notice=NOTICE) if jobs else "")
        return {job: found.get(job, JobReport(AllocationState.GONE)) for job in jobs}


class LsfSrun(Lsf):
    """LSF on a machine where `srun` launches parallel programs; one worker runs, on the launch node."""

    _workers_on_nodes = False
    type = "lsf-srun"

    def sample_launcher(self, needs: StepNeeds) -> str:
        """Return the `srun` of one sample, without `--exact`: no Slurm controller assigns the cores of a node."""
        return srun_line(needs)


def _hosts(environ: Mapping[str, str]) -> set[str]:
    if "LSB_HOSTS" in environ:  # one entry per slot; LSF omits the variable when it would be too long
        return set(environ["LSB_HOSTS"].split())
    return set(environ.get("LSB_MCPU_HOSTS", "").split()[::2])


def _procs_per_node(procs: int, nodes: int) -> str:
    """Return the number of processes on each node; a shell expression when a count is a `ScriptCount`."""
    if isinstance(procs, ScriptCount) or isinstance(nodes, ScriptCount):
        return f"$(({procs}/{nodes}))"
    return str(procs // nodes)


def _ceil_div(procs: int, per_set: Any) -> str:
    if isinstance(procs, ScriptCount) or not str(per_set).isdigit():
        return f"$((({procs}+{per_set}-1)/{per_set}))"
    return str(-(-procs // int(per_set)))


def _parse_reports(output: str) -> dict[str, JobReport]:
    """Parse lines of ``id|STAT|exit code|exit reason|pending reason``, with ``-`` for a missing value.

    A state that is not in the table counts as running, with its name as the reason.
    """
    reports = {}
    for line in output.splitlines():
        fields = [field.strip().removeprefix("-") for field in line.split("|", 4)]
        if len(fields) == 5:
            job, name, code, end, pending_reason = fields
            state = LSF_STATES.get(name)
            if state is None:
                reports[job] = JobReport(AllocationState.RUNNING, name)
            elif name == "EXIT":
                reason = end or (f"exit code {code}" if code else "")
                reports[job] = JobReport(LSF_ENDS.get(end.split(":")[0], state), reason)
            else:
                reports[job] = JobReport(state, pending_reason if state is AllocationState.PENDING else "")
    return reports
