"""Batch systems: what has to be known of Slurm, LSF and Flux beside Maestro's adapters for them.

Maestro's adapters write, submit and cancel the batch jobs (`allocations.py`). What they do not tell is
here: why a job has ended, whether this process is inside an allocation and how long that lasts, and the
command lines that start workers and samples in it. Command lines are returned as text; nothing here runs
them. A further batch system registers through the hook `batch_system`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.states import AllocationState

__all__ = [
    "LAUNCH_CORES",
    "LAUNCH_NAME",
    "LAUNCH_NODES",
    "LOCAL",
    "BatchSystem",
    "HeldAllocation",
    "JobReport",
    "WorkerLaunch",
    "ask",
    "batch_system",
    "batch_systems",
]

# The `batch.type` of workers that are processes of this machine, with no batch system.
LOCAL = "local"
# In the environment of samples that launch: a name for what they launch, the nodes that hold their processes, and the
# cores of a node.
LAUNCH_NAME = "MAESTRO_CELERY_LAUNCH"
LAUNCH_NODES = "MAESTRO_CELERY_NODES"
LAUNCH_CORES = "MAESTRO_CELERY_CORES"
ANSWER_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerLaunch:
    """How the workers of one group are to be started in an allocation.

    Attributes:
        command: The command line of one worker, quoted for a shell.
        nodes: On how many nodes one is started each.
        settings: The group's batch block, with Merlin's `launch_pre`, `worker_launch` and so on.
        samples_launch: Whether samples of the group start parallel programs with `$(LAUNCHER)`.
    """

    command: str
    nodes: int
    settings: BatchSettings
    samples_launch: bool = False


@dataclasses.dataclass(frozen=True)
class HeldAllocation:
    """An allocation that this process is inside of.

    Attributes:
        job: Identifier of the batch job.
        nodes: The number of its nodes on which workers can be started.
    """

    job: str
    nodes: int


@dataclasses.dataclass(frozen=True)
class JobReport:
    """What the batch system says of a job.

    Attributes:
        state: The job's state.
        reason: Its own words: why the job waits, or how it ended.
    """

    state: AllocationState
    reason: str = ""


class BatchSystem(Protocol):
    """One batch system.

    Attributes:
        type: `batch.type` in a specification.
        adapter: Key of Maestro's adapter for it.
        commands: What has to be on PATH to submit, ask and cancel.
        modules: Python packages that Maestro's adapter for it imports.
        away: What it says when a submission fails because it does not answer now.
        ignores: Keys of `batch` that Maestro's adapter takes no notice of.
        step_variables: Environment variables of the workers' own launch that samples shall not inherit.
        shares_nodes: Whether samples that launch on several nodes can share these with others.
    """

    type: str
    adapter: str
    commands: tuple[str, ...]
    modules: tuple[str, ...]
    away: re.Pattern[str]
    ignores: tuple[str, ...]
    step_variables: tuple[str, ...]
    shares_nodes: bool

    def adapter_arguments(self, settings: BatchSettings) -> dict[str, Any]:
        """Return the keywords for Maestro's adapter, with all that it insists on."""

    def step_keys(self, nodes: int) -> dict[str, Any]:
        """Return step keys without which Maestro's adapter writes no batch script for so many whole nodes."""

    def tidied(self, script: str) -> str:
        """Return a batch script of Maestro's adapter without what the batch system would refuse in it."""

    def worker_line(self, launch: WorkerLaunch) -> str:
        """Return the shell command that starts the workers of a group and returns when they have ended."""

    def worker_count(self, launch: WorkerLaunch) -> int:
        """Return how many workers that command starts: the samples of an allocation are shared out to them."""

    def sample_launcher(self, needs: StepNeeds) -> str:
        """Return what `$(LAUNCHER)` stands for in a sample, such that samples run side by side."""

    def signal_samples(self, names: Collection[str], number: signal.Signals) -> set[str]:
        """Send a signal to programs that samples have started with `$(LAUNCHER)`, past a launcher that keeps it.

        Args:
            names: Values of `LAUNCH_NAME` in the environments of the samples.
            number: The signal.

        Returns:
            The names whose programs it was sent to; others get it through their process group.

        Raises:
            AllocationError: the batch system does not answer now.
        """

    def held(self, environ: Mapping[str, str]) -> HeldAllocation | None:
        """Return the allocation that a process with this environment is inside of, or None."""

    def end_time(self, environ: Mapping[str, str]) -> float | None:
        """Return when the allocation around this process ends, in Unix seconds; None when it does not tell."""

    def node_cores(self, environ: Mapping[str, str]) -> int | None:
        """Return the cores of this node that the allocation holds; None when the environment does not tell."""

    def largest_node(self, settings: BatchSettings) -> int | None:
        """Return the most cores a node of the partition has, asked before a launch; None when nobody tells."""

    def find(self, directory: Path) -> str | None:
        """Return the user's job that was submitted in a directory and has not ended; None when nobody tells.

        Raises:
            BatchSystemAwayError: it does not answer now.
        """

    def reports(self, jobs: Sequence[str]) -> dict[str, JobReport]:
        """Ask the batch system what became of jobs; one that it does not know any more is `GONE`.

        Raises:
            AllocationError: it does not answer now.
        """


def batch_systems() -> dict[str, BatchSystem]:
    """Return all batch systems that are registered, by `batch.type`."""
    from maestro_celery_plugin.plugins import plugin_manager

    return {system.type: system for system in reversed(plugin_manager().hook.batch_system())}


def batch_system(type: str) -> BatchSystem | None:
    """Return the batch system of a `batch.type`; None for `local`.

    Raises:
        AllocationError: nothing is registered for it.
    """
    if type == LOCAL:
        return None
    systems = batch_systems()
    if type not in systems:
        raise AllocationError(f"nothing here knows the batch type '{type}'; known: {', '.join((LOCAL, *systems))}.")
    return systems[type]


def ask(
    words: Sequence[str], *, forgotten: re.Pattern[str] | None = None, environ: Mapping[str, str] | None = None
) -> str:
    """Run a command of a batch system that only asks, and return what it prints.

    Args:
        words: The command line.
        forgotten: What a line on stderr looks like that says no more than that a job is not known any more;
            a command that fails with such lines alone has answered.
        environ: Environment variables beside those of this process.

    Raises:
        AllocationError: it is not there, fails, or does not answer in time.
    """
    try:
        answer = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_LIMIT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environ or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise AllocationError(f"'{words[0]}' does not answer: {cause}") from cause
    complaints = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    if forgotten is not None and complaints and all(forgotten.fullmatch(line) for line in complaints):
        return answer.stdout
    if answer.returncode:
        reason = " ".join(complaints) or f"exit code {answer.returncode}"
        raise AllocationError(f"'{words[0]}' has failed: {reason}")
    return answer.stdout
