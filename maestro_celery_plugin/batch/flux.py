"""Flux: what a job's state means, where a process is, and the lines that start workers and samples.

Sources are the manual pages of flux-core: flux-jobs(1), flux-job(1), flux-exec(1), flux-run(1),
flux-environment(7) and flux-broker-attributes(7).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.base import HeldAllocation, JobReport, ask
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.states import AllocationState

__all__ = ["FLUX_ENDS", "FLUX_STATES", "Flux"]

# Every value of flux-jobs(1)'s field `status`: the states of a job, and its results once it is inactive.
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

# Types of exceptions that say more than FAILED or CANCELED.
FLUX_ENDS: dict[str, AllocationState] = {
    "node-failure": AllocationState.NODE_FAILED,
    "preempt": AllocationState.PREEMPTED,
    "prolog": AllocationState.BOOT_FAILED,
    "timeout": AllocationState.TIMED_OUT,
}

_FIELDS = "{id.f58}|{status}|{exception.type}|{returncode}|{exception.note}"
_NOT_FOUND = re.compile(r"(?:flux-jobs: (?:ERROR: )?)?(?:JobID|job) \S+ (?:unknown|not found)\.?", re.IGNORECASE)
# What `flux job timeleft` answers when there is no limit: UINT_MAX of the C language.
_NO_LIMIT_S = 4_294_967_295


class Flux:
    """The Flux resource manager."""

    type = "flux"
    adapter = "flux"
    commands: tuple[str, ...] = ("flux",)
    modules: tuple[str, ...] = ("flux",)
    ignores: tuple[str, ...] = ("qos", "reservation")
    away = re.compile(r"Connection refused|broker is not running|Unable to connect", re.IGNORECASE)
    step_variables: tuple[str, ...] = ()
    shares_nodes = True

    def adapter_arguments(self, settings: BatchSettings) -> dict[str, Any]:
        """Return the keywords for Maestro's adapter.

        It looks into the three dictionaries and takes the newest interface where `version` is missing
        (fluxscriptadapter.py:65-124); None would break it. It knows no reservation and no quality of service.
        """
        chosen = {"uri": settings.uri, "version": settings.version}
        return {
            "bank": settings.bank or "",
            "queue": settings.queue or "",
            "args": settings.args or {},
            "allocation_args": settings.allocation_args or {},
            "launcher_args": settings.launcher_args or {},
            **{key: value for key, value in chosen.items() if value},
        }

    def step_keys(self, nodes: int) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def tidied(self, script: str) -> str:
        """Return the script as it is."""
        return script

    def worker_line(self, group: GroupConfig, command: str) -> str:
        """Return the `flux exec` that starts one worker on each broker, one broker being on each node.

        With Merlin's keys (study/batch.py:232): a `worker_launch` that is not Flux's starts a Flux
        instance of its own first; without `flux_exec_workers` there is one worker, on the first node.
        """
        settings = group.batch
        words = [shlex.quote(_shell(settings)), "-c", shlex.quote(command)]
        spread = _spread(group) if settings.flux_exec_workers else []
        start = _start(settings)
        if not start and not spread:
            words, args = [command], None
        else:
            args = settings.launch_args
        line = (settings.launch_pre, *start, *((args, *spread) if start else (*spread, args)), *words)
        return " ".join(word for word in line if word)

    def worker_count(self, group: GroupConfig) -> int:
        """Return the number of nodes, or 1 where there is no `flux exec`."""
        return group.nodes if group.batch.flux_exec_workers else 1

    def sample_launcher(self, needs: StepNeeds) -> str:
        """Return the `flux run` of one sample; Flux gives it cores of its own, and lets it wait for them."""
        options = {
            "-n": needs.procs or max(1, needs.nodes),
            "-N": needs.nodes,
            "-c": needs.cores_per_task if str(needs.cores_per_task) != "1" else None,
            "-g": needs.gpus_per_task or needs.gpus,  # for each task, as in Maestro (flux0_49_0.py:458)
            "-t": f"{needs.walltime_s}s" if needs.walltime_s else None,
        }
        words = [word for option, value in options.items() if value for word in (option, str(value))]
        words += ["--exclusive"] if needs.has_whole_nodes else []
        return " ".join(("flux", "run", *words, needs.options)).strip()

    def signal_samples(self, names: Collection[str], number: signal.Signals) -> set[str]:
        """Leave it to the process groups: `flux run` passes signals on since flux-core's pull request 6734.

        Before that one it ends at a signal, and leaves its program to the end of the allocation.
        """
        return set()

    def held(self, environ: Mapping[str, str]) -> HeldAllocation | None:
        """Return the Flux instance around this process, when it is the user's own.

        `flux alloc`, `flux batch` and `flux start` make instances that belong to their user. The system
        instance belongs to another one: to reach it, as any job does, is not to be inside an allocation.
        """
        if "FLUX_URI" not in environ:
            return None
        try:
            if _attribute("security.owner") != str(os.getuid()):
                return None
            job = environ.get("FLUX_ENCLOSING_ID") or environ["FLUX_URI"]
            return HeldAllocation(job, int(_attribute("size")))
        except (AllocationError, ValueError):
            return None

    def end_time(self, environ: Mapping[str, str]) -> float | None:
        """Return the end that `flux job timeleft` tells; None when there is no limit, or no answer."""
        with contextlib.suppress(AllocationError, ValueError):
            left_s = float(ask(["flux", "job", "timeleft"]))
            return clock.now() + left_s if left_s < _NO_LIMIT_S else None
        return None

    def node_cores(self, environ: Mapping[str, str]) -> int | None:
        """Return None: the environment does not tell."""
        return None

    def largest_node(self, settings: BatchSettings) -> int | None:
        """Return None: `flux resource list` tells sums over nodes."""
        return None

    def find(self, directory: Path) -> str | None:
        """Know nothing: a job whose submission was cut off is not found again, and ends by its idle limit."""
        return None

    def reports(self, jobs: Sequence[str]) -> dict[str, JobReport]:
        """Ask `flux jobs`, which knows ended jobs until the instance purges them."""
        output = ask(["flux", "jobs", "-a", "-n", "-o", _FIELDS, *jobs], forgotten=_NOT_FOUND) if jobs else ""
        found = _parsed(output)
        return {job: found.get(_plain(job), JobReport(AllocationState.GONE)) for job in jobs}


def _flux(settings: BatchSettings) -> str:
    return str(Path(settings.flux_path, "flux")) if settings.flux_path else "flux"


def _shell(settings: BatchSettings) -> str:
    """Return a shell for ``-c``; the interpreter of the steps may be something else, such as Python."""
    word = shlex.split(settings.shell)[0]
    return word if word.endswith("sh") else "/bin/sh"


def _start(settings: BatchSettings) -> list[str]:
    """Return the words that start a Flux instance below the user's own launch command."""
    line = settings.worker_launch
    if not line:
        return []
    if "flux" in line:
        return [line]
    return [line, _flux(settings), "start", settings.flux_start_opts or ""]


def _spread(group: GroupConfig) -> list[str]:
    settings = group.batch
    if settings.flux_exec:
        return [settings.flux_exec]
    if settings.worker_launch:  # the instance is as large as that line makes it
        return ["flux exec --noinput"]
    ranks = f"0-{group.nodes - 1}" if group.nodes > 1 else "0"
    return [f"{_flux(settings)} exec --noinput --rank={ranks}"]


def _attribute(name: str) -> str:
    return ask(["flux", "getattr", name]).strip()


def _plain(job: str) -> str:
    """Return an identifier as Flux writes it where the locale has no ``ƒ``."""
    return job.replace("ƒ", "f", 1)


def _parsed(output: str) -> dict[str, JobReport]:
    """Read lines of ``id|status|exception|return code|note``; fields without a value are empty.

    A status that the table does not have counts as open, with its word as the reason.
    """
    reports = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|", 4)]
        if len(fields) == 5:
            job, word, exception, code, note = fields
            state = FLUX_STATES.get(word)
            if state is None:
                reports[_plain(job)] = JobReport(AllocationState.RUNNING, word)
            elif state.is_open or state is AllocationState.COMPLETED:
                reports[_plain(job)] = JobReport(state)
            else:
                reason = ": ".join(text for text in (exception, note) if text) or f"exit code {code}"
                reports[_plain(job)] = JobReport(FLUX_ENDS.get(exception, state), reason)
    return reports
