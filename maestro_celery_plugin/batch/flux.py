"""Flux: the meaning of its job states, its allocations, and the commands that start workers and samples.

Sources are the manual pages of flux-core: flux-jobs(1), flux-job(1), flux-exec(1), flux-run(1),
flux-environment(7) and flux-broker-attributes(7).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.base import CurrentAllocation, JobReport, query, without_launch
from maestro_celery_plugin.batch.directives import Directives
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.states import AllocationState

__all__ = ["FLUX_ENDS", "FLUX_STATES", "Flux"]

# Every value of the field `status` of flux-jobs(1): the states of a job, and the results of an inactive job.
FLUX_STATES: dict[str, AllocationState] = {
    "CANCELED": AllocationState.CANCELLED,
    "CANCELLED": AllocationState.CANCELLED,  # its spelling before flux-core 0.23
    "CLEANUP": AllocationState.RUNNING,
    "COMPLETED": AllocationState.COMPLETED,
    "DEPEND": AllocationState.PENDING,
    "FAILED": AllocationState.FAILED,
    "INACTIVE": AllocationState.COMPLETED,
    "NEW": AllocationState.PENDING,
    "PENDING": AllocationState.PENDING,
    "PRIORITY": AllocationState.PENDING,
    "RUN": AllocationState.RUNNING,
    "RUNNING": AllocationState.RUNNING,
    "SCHED": AllocationState.PENDING,
    "TIMEOUT": AllocationState.TIMED_OUT,
}

# Types of exceptions that are more specific than FAILED or CANCELED.
FLUX_ENDS: dict[str, AllocationState] = {
    "node-failure": AllocationState.NODE_FAILED,
    "preempt": AllocationState.PREEMPTED,
    "prolog": AllocationState.BOOT_FAILED,
    "timeout": AllocationState.TIMED_OUT,
}

_FIELDS = "{id.f58}|{status}|{exception.type}|{returncode}|{exception.note}"
_NOT_FOUND = re.compile(r"(?:flux-jobs: (?:ERROR: )?)?(?:JobID|job) \S+ (?:unknown|not found)\.?", re.IGNORECASE)
_NOTICE = re.compile(r"flux-jobs: WARNING: .*")
# Messages of flux-core and of errno(3) while the broker is away, restarts, or has not yet loaded its modules.
_UNAVAILABLE = re.compile(
    r"Unable to connect|broker is not running|Broken pipe|EPIPE|Connection (?:refused|reset|timed out)|No route to host"
    r"|Host is (?:down|unreachable)|No service matching|Function not implemented|flux_open|shutting down",
    re.IGNORECASE,
)
# Maestro's interface to Flux keeps one connection in the process, which two threads must not use at the same time.
_IN_USE = threading.RLock()
# The output of `flux job timeleft` for a job without a time limit: UINT_MAX of the C language.
_NO_LIMIT_S = 4_294_967_295


class Flux:
    """The Flux resource manager."""

    type = "flux"
    adapter = "flux"
    commands: tuple[str, ...] = ("flux",)
    modules: tuple[str, ...] = ("flux",)
    ignored_keys: tuple[str, ...] = ("qos", "reservation")
    directives: Directives | None = None
    unavailable = _UNAVAILABLE
    shares_nodes = True
    gpus_are_per_process = True  # flux0_49_0.py:461

    def adapter_arguments(self, settings: BatchSettings) -> dict[str, Any]:
        """Return the keyword arguments for Maestro's adapter.

        The adapter reads the three dictionaries, and selects the newest interface when `version` is missing
        (fluxscriptadapter.py:65-124); it fails on None. It supports no reservation and no quality of service.
        """
        chosen = {"uri": settings.uri, "version": settings.version}
        return {
            "bank": settings.bank or "",
            "queue": settings.queue or "",
            "args": settings.args if isinstance(settings.args, dict) else {},
            "allocation_args": settings.allocation_args or {},
            "launcher_args": settings.launcher_args or {},
            **{key: value for key, value in chosen.items() if value},
        }

    @contextlib.contextmanager
    def adapter_context(self) -> Iterator[None]:
        """Let the adapter connect anew, and keep its `print` out of the output (fluxscriptadapter.py:304).

        The adapter keeps its connection for ever (abstracts/interfaces/flux.py:23); after a restart of Flux, every call
        would fail.
        """
        with _IN_USE, contextlib.redirect_stdout(io.StringIO()):
            _forget_connection()
            yield

    def step_keys(self, nodes: int, procs: int | None, gpus: int | None) -> dict[str, Any]:
        """Return one slot for each node if the allocation has GPUs and no whole nodes.

        The adapter requests the GPUs of a node for each slot (flux0_49_0.py:326). Worked example: 1 node, 4 procs and
        2 GPUs make 1 slot of 4 cores and 2 GPUs; 4 slots of 1 core would have 8 GPUs.
        """
        if procs is None or not gpus:
            return {}
        return {"procs": nodes, "cores per task": -(-procs // nodes), "gpus": gpus * nodes}

    def adjusted_script(self, script: str) -> str:
        """Return the script unchanged."""
        return script

    def worker_line(self, group: GroupConfig, command: str) -> str:
        """Return the `flux exec` that starts one worker on each broker; each node has one broker.

        Merlin's keys change the command (study/batch.py:232): a `worker_launch` without `flux` first starts a new
        Flux instance; without `flux_exec_workers` there is one worker, on the first node.
        """
        settings = group.batch
        exec_line = _exec_line(group) if settings.flux_exec_workers else []
        start_line = _start_line(settings)
        if not start_line and exec_line:
            exec_line.append(settings.launch_args or "")
        launch = [*start_line, *exec_line]
        words = [shlex.quote(_shell(settings)), "-c", shlex.quote(command)] if launch else [command]
        return " ".join(word for word in (settings.launch_pre, *launch, *words) if word)

    def worker_count(self, group: GroupConfig) -> int:
        """Return the number of nodes, or 1 when there is no `flux exec`."""
        return group.nodes if group.batch.flux_exec_workers else 1

    def sample_launcher(self, needs: StepNeeds) -> str:
        """Return the `flux run` of one sample, which waits until Flux assigns cores to it exclusively."""
        options = {
            "-n": needs.procs or max(1, needs.nodes),
            "-N": needs.nodes,
            "-c": needs.cores_per_task if str(needs.cores_per_task) != "1" else None,
            "-g": needs.gpus_per_task or needs.gpus,  # for each task, as in Maestro (flux0_49_0.py:461)
            "-t": f"{needs.walltime_s}s" if needs.walltime_s else None,
        }
        words = [word for option, value in options.items() if value for word in (option, str(value))]
        words += ["--exclusive"] if needs.has_whole_nodes else []
        return " ".join(("flux", "run", *words, needs.options)).strip()

    def sample_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment without that of a task: `worker_launch` may be a `flux run`."""
        return without_launch(environ, r"FLUX_TASK_.*")

    def signal_samples(self, names: Collection[str], number: signal.Signals) -> set[str]:
        """Return no name: `flux run` forwards the signal of the process group since flux-core's pull request 6734.

        Earlier versions of `flux run` end at a signal, and their program runs until the end of the allocation.
        """
        return set()

    def current_allocation(self, environ: Mapping[str, str]) -> CurrentAllocation | None:
        """Return the Flux instance around this process if it belongs to the user.

        `flux alloc`, `flux batch` and `flux start` create instances that belong to their user. The system instance
        belongs to another user; a process that can only reach the system instance is not inside an allocation.
        """
        if "FLUX_URI" not in environ:
            return None
        try:
            if _attribute("security.owner") != str(os.getuid()):
                return None
            job = environ.get("FLUX_ENCLOSING_ID") or environ["FLUX_URI"]
            return CurrentAllocation(job, int(_attribute("size")))
        except (AllocationError, ValueError):
            return None

    def end_time(self, environ: Mapping[str, str]) -> float | None:
        """Return the end that `flux job timeleft` reports; None when there is no time limit, or the command fails."""
        with contextlib.suppress(AllocationError, ValueError):
            remaining_s = float(query(["flux", "job", "timeleft"]))
            return clock.now() + remaining_s if remaining_s < _NO_LIMIT_S else None
        return None

    def node_cores(self, environ: Mapping[str, str]) -> int | None:
        """Return None: the environment does not contain the number."""
        return None

    def largest_node(self, settings: BatchSettings) -> int | None:
        """Return None: `flux resource list` reports sums over nodes."""
        return None

    def directories(self, jobs: Sequence[str] | None = None) -> None:
        """Return None: Maestro's adapter submits through Flux's Python interface, which returns the identifier.

        A job whose submission was interrupted cannot be found; its workers exit at the idle limit.
        """

    def reports(self, jobs: Sequence[str]) -> dict[str, JobReport]:
        """Query `flux jobs`, which lists ended jobs until the instance purges them, or is started anew.

        With identifiers, it lists jobs in all states; it warns about the filter ``-a``.
        """
        words = ["flux", "jobs", "-n", "-o", _FIELDS, *jobs]
        found = _parse_reports(query(words, not_found=_NOT_FOUND, notice=_NOTICE) if jobs else "")
        return {job: found.get(_ascii_id(job), JobReport(AllocationState.GONE)) for job in jobs}


def _forget_connection() -> None:
    """Drop the connections of Maestro's interfaces to Flux."""
    from maestrowf.interfaces.script import FluxFactory  # not in workers, which need no Maestro

    for interface in FluxFactory.factories.values():
        interface.flux_handle = None


def _flux_command(settings: BatchSettings) -> str:
    return str(Path(settings.flux_path, "flux")) if settings.flux_path else "flux"


def _shell(settings: BatchSettings) -> str:
    """Return a shell that accepts ``-c``; the interpreter of the steps may be another program, such as Python."""
    interpreter = shlex.split(settings.shell)[0]
    return interpreter if interpreter.endswith("sh") else "/bin/sh"


def _start_line(settings: BatchSettings) -> list[str]:
    """Return the command that starts a Flux instance with the user's launch command; empty without one.

    The further arguments are those of the launch command (Merlin: study/batch.py:365).
    """
    line = settings.worker_launch
    if not line:
        return []
    start = [] if "flux" in line else [_flux_command(settings), "start", settings.flux_start_opts or ""]
    return [line, settings.launch_args or "", *start]


def _exec_line(group: GroupConfig) -> list[str]:
    settings = group.batch
    if settings.flux_exec:
        return [settings.flux_exec]
    if settings.worker_launch:  # the user's command determines the size of the instance
        return ["flux exec --noinput"]
    ranks = f"0-{group.nodes - 1}" if group.nodes > 1 else "0"
    return [f"{_flux_command(settings)} exec --noinput --rank={ranks}"]


def _attribute(name: str) -> str:
    return query(["flux", "getattr", name]).strip()


def _ascii_id(job: str) -> str:
    """Return an identifier as Flux writes it in a locale without ``ƒ``."""
    return job.replace("ƒ", "f", 1)


def _parse_reports(output: str) -> dict[str, JobReport]:
    """Parse lines of ``id|status|exception|return code|note``; fields without a value are empty.

    A status that is not in the table counts as running, with its name as the reason.
    """
    reports = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|", 4)]
        if len(fields) == 5:
            job, status, exception, code, note = fields
            state = FLUX_STATES.get(status)
            if state is None:
                reports[_ascii_id(job)] = JobReport(AllocationState.RUNNING, status)
            elif state.is_open or state is AllocationState.COMPLETED:
                reports[_ascii_id(job)] = JobReport(state)
            else:
                reason = ": ".join(text for text in (exception, note) if text) or f"exit code {code}"
                reports[_ascii_id(job)] = JobReport(FLUX_ENDS.get(exception, state), reason)
    return reports
