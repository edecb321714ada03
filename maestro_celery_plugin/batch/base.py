"""The interface of a batch system: the functions that Maestro's adapters do not have.

Maestro's adapters write, submit and cancel batch jobs. A `BatchSystem` adds the missing facts: why a job
has ended, whether this process is inside an allocation and when that ends, and the command lines that start
workers and samples. It returns these command lines as text; it runs only queries and signals. Extensions add a batch
system through the hook `batch_system`.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from maestro_celery_plugin.batch.directives import Directives
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.states import AllocationState

__all__ = [
    "LAUNCH_CORES",
    "LAUNCH_NAME",
    "LAUNCH_NODES",
    "BatchSystem",
    "CurrentAllocation",
    "JobReport",
    "import_problem",
    "query",
    "without_launch",
]

# Environment variables of samples that launch parallel programs: the name of the launch, the smallest number of nodes
# on which its processes fit, and the cores of a node.
LAUNCH_NAME = "MAESTRO_CELERY_LAUNCH"
LAUNCH_NODES = "MAESTRO_CELERY_NODES"
LAUNCH_CORES = "MAESTRO_CELERY_CORES"
# The variables of PMI, PMIx and mpirun, with which a program finds its rank among the tasks of a launch.
_MPI_VARIABLES = r"(PMI2?|PMIX|PALS|OMPI_COMM_WORLD)_.*|OMPI_UNIVERSE_SIZE"
QUERY_TIMEOUT_S = 30.0
# Queries are repeated at every poll, so the error of one query needs no action of a user.
_AGAIN = " (a running conductor asks again)"


@dataclasses.dataclass(frozen=True)
class CurrentAllocation:
    """The allocation around this process.

    Attributes:
        job: Identifier of the batch job.
        nodes: The number of nodes on which workers can start.
    """

    job: str
    nodes: int


@dataclasses.dataclass(frozen=True)
class JobReport:
    """A job as the batch system reports it.

    Attributes:
        state: State of the job.
        reason: The message of the batch system: why the job waits, how it ended, or why its end is not known.
        waits_forever: Whether the job counts as failed because it can never start, but is still in the queue.
    """

    state: AllocationState
    reason: str = ""
    waits_forever: bool = False

    @property
    def is_in_queue(self) -> bool:
        """Whether the batch system still has the job, so that it can be cancelled."""
        return self.state.is_open or self.waits_forever


class BatchSystem(Protocol):
    """One batch system.

    Attributes:
        type: `batch.type` in a specification.
        adapter: Key of Maestro's adapter for it.
        commands: Commands that must be on PATH to submit, query and cancel jobs.
        modules: Python packages that Maestro's adapter imports.
        unavailable: Pattern of the error message of a submission while the batch system does not answer. A submission
            with such a message is repeated, however often it fails.
        ignored_keys: Keys of `batch` that Maestro's adapter ignores.
        directives: How `batch.args` becomes directives of a batch script; None if Maestro's adapter reads this key.
        shares_nodes: Whether samples on several nodes can share these nodes with other samples.
        gpus_are_per_process: Whether the launcher reserves the `gpus` of a step for each process, as Maestro's adapter
            for this batch system does, and not for the whole sample.
    """

    type: str
    adapter: str
    commands: tuple[str, ...]
    modules: tuple[str, ...]
    unavailable: re.Pattern[str]
    ignored_keys: tuple[str, ...]
    directives: Directives | None
    shares_nodes: bool
    gpus_are_per_process: bool

    def adapter_arguments(self, settings: BatchSettings) -> dict[str, Any]:
        """Return the keyword arguments for Maestro's adapter, including all that it requires."""

    def adapter_context(self) -> AbstractContextManager[None]:
        """Return the context in which Maestro's adapter is created and used; it corrects faults of the adapter."""

    def step_keys(self, nodes: int, procs: int | None, gpus: int | None) -> dict[str, Any]:
        """Return the step keys with which Maestro's adapter requests the resources of an allocation.

        They replace the keys `nodes`, `procs` and `gpus` with the values of the arguments.

        Args:
            nodes: Number of nodes.
            procs: Number of processes; None for whole nodes.
            gpus: GPUs of each node; None without GPUs.
        """

    def adjusted_script(self, script: str) -> str:
        """Return a batch script of Maestro's adapter with the changes that the batch system needs."""

    def worker_line(self, group: GroupConfig, command: str) -> str:
        """Return the shell command that starts the workers of a group and returns when they have ended.

        Args:
            group: The worker group; its batch settings include Merlin's keys, such as `launch_pre` and `worker_launch`.
            command: The command line of one worker, quoted for a shell.
        """

    def worker_count(self, group: GroupConfig) -> int:
        """Return the number of workers that `worker_line` starts; they share the slots of the allocation."""

    def sample_launcher(self, needs: StepNeeds) -> str:
        """Return the text that replaces `$(LAUNCHER)` in a sample and lets samples run in parallel."""

    def sample_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of samples: that of the allocation, without what the launch of their worker has set.

        Programs that samples launch would take its rank, its step or its options for their own.

        Args:
            environ: The environment of the worker.
        """

    def signal_samples(self, names: Collection[str], number: signal.Signals) -> set[str]:
        """Send a signal to programs that samples have started with `$(LAUNCHER)` if the launcher does not forward it.

        Args:
            names: Values of `LAUNCH_NAME` in the environments of the samples.
            number: The signal.

        Returns:
            The names whose programs have received the signal; all others receive it through their process group.

        Raises:
            AllocationError: the batch system does not answer.
        """

    def current_allocation(self, environ: Mapping[str, str]) -> CurrentAllocation | None:
        """Return the allocation around a process with this environment; None outside of an allocation."""

    def end_time(self, environ: Mapping[str, str]) -> float | None:
        """Return the end of the allocation around this process in Unix seconds; None when it is unknown."""

    def node_cores(self, environ: Mapping[str, str]) -> int | None:
        """Return the number of cores of this node in the allocation; None when the environment does not contain it."""

    def largest_node(self, settings: BatchSettings) -> int | None:
        """Return the largest number of cores of a node in the partition; None when it is unknown."""

    def directories(self, jobs: Sequence[str] | None = None) -> dict[str, str] | None:
        """Return the directory in which each job was submitted.

        Args:
            jobs: Identifiers of jobs, which may have ended; None for all open jobs of the user.

        Returns:
            The directories of the jobs that the batch system lists. None when it does not know directories; then
            Maestro's adapter must take identifiers from an interface, and not from the output of a command.

        Raises:
            AllocationError: the batch system does not answer.
        """

    def reports(self, jobs: Sequence[str]) -> dict[str, JobReport]:
        """Return the report of each job; a job that the batch system no longer lists is `GONE`.

        Raises:
            AllocationError: the batch system does not answer.
        """


def without_launch(environ: Mapping[str, str], launcher: str) -> dict[str, str]:
    """Return an environment without the variables of a launcher, and without those with which MPI finds its rank.

    Args:
        environ: The environment.
        launcher: Pattern of the names of the launcher's variables.
    """
    pattern = re.compile(f"{_MPI_VARIABLES}|{launcher}")
    return {name: value for name, value in environ.items() if not pattern.fullmatch(name)}


def import_problem(system: BatchSystem) -> str | None:
    """Return why Maestro's adapter cannot use the packages that it imports, and what to do; None if it can."""
    for name in system.modules:
        needed = f"which Maestro's adapter for '{system.type}' needs"
        try:
            importlib.import_module(name)
        except Exception as cause:  # a package that lacks a library can raise any error
            if isinstance(cause, ModuleNotFoundError) and cause.name == name:
                return f"this Python has no package '{name}', {needed}; add it to PYTHONPATH"
            return (
                f"this Python cannot import the package '{name}', {needed} ({cause}); install what it lacks in the "
                "environment of Maestro"
            )
    return None


def query(
    words: Sequence[str],
    *,
    not_found: re.Pattern[str] | None = None,
    notice: re.Pattern[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run a query command of a batch system, and return its output.

    Args:
        words: The command line.
        not_found: Pattern of the line on stderr for a job that the batch system no longer lists. If stderr has only
            such lines, the query counts as successful.
        notice: Pattern of a line on stderr that is no error, whatever the exit code.
        environ: Environment variables in addition to those of this process.

    Raises:
        AllocationError: the command is missing, fails, or does not answer in time.
    """
    try:
        result = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=QUERY_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environ or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise AllocationError(f"'{words[0]}' does not answer: {cause}{_AGAIN}") from cause
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if notice is None or not notice.fullmatch(line)]
    if not_found is not None and errors and all(not_found.fullmatch(line) for line in errors):
        return result.stdout
    if result.returncode:
        reason = " ".join(errors or lines) or f"exit code {result.returncode}"
        raise AllocationError(f"'{words[0]}' has failed: {reason}{_AGAIN}")
    return result.stdout
