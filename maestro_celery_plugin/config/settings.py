"""Settings: one frozen dataclass per YAML block, each key with its help text, default and unit.

The JSON schema of a specification (`conversion.py`) and the reference of keys in the README are derived from
these classes; there is no other list of keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from maestro_celery_plugin.config.resources import StepNeeds

__all__ = [
    "DEFAULT_GROUP",
    "DEFAULT_TASK_QUEUE",
    "BatchSettings",
    "EnsembleSettings",
    "GenerateSettings",
    "MerlinSettings",
    "ResourceSettings",
    "SampleSettings",
    "StepFacts",
    "StepSettings",
    "WorkerGroupSettings",
]

DEFAULT_GROUP = "default_worker"
DEFAULT_TASK_QUEUE = "merlin"

# An unknown key is an error. Keys such as ``gpus per task`` are not valid Python names, so they have an alias.
# A worker needs the validators of few blocks, so each is built at its first use.
_BLOCK = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True, defer_build=True)


def _seconds(minimum: int, maximum: int | None = 366 * 86400) -> dict[str, Any]:
    """Return limits that `spec/checks.py` checks, because a study of an earlier release may have any number."""
    return {"minimum": minimum} if maximum is None else {"minimum": minimum, "maximum": maximum}


# A block with arbitrary keys, which `spec/checks.py` checks. A study of an earlier release may have keys of any type.
FreeBlock = dict[Any, Any]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Percentage = Annotated[str, Field(pattern=r"^(100|\d{1,2})(\.\d+)?%$", description="a percentage such as `5%`")]


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class GenerateSettings:
    """``merlin.samples.generate``: the command that generates the sample table."""

    cmd: Text = Field(
        description=(
            "Shell command that writes the sample file; runs once, during `maestro run`, in the current directory."
        )
    )


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class SampleSettings:
    """``merlin.samples``: the sample table."""

    file: Text = Field(
        description=(
            "Sample table: `.npy`, `.csv` or `.tab`, one row per sample. A relative path begins at the directory where "
            "`maestro run` was called."
        )
    )
    column_labels: tuple[str, ...] = Field(
        min_length=1, description="Name of each column; in a `cmd`, the value of the column replaces `$(NAME)`."
    )
    generate: GenerateSettings | None = Field(default=None, description="Command that writes the sample table.")
    level_max_dirs: int = Field(
        default=25, ge=2, description="Maximum number of directories per level of the sample hierarchy."
    )


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class BatchSettings:
    """``batch``: the batch system, for Maestro's adapters and for the launch of workers."""

    type: str = Field(
        default="local",
        description=(
            "Where workers run: as processes on this machine (`local`), or in an allocation of a batch system "
            "(`slurm`, `lsf`, `lsf-srun`, `flux`, or the type of an extension)."
        ),
    )
    shell: Text = Field(
        default="/bin/bash", description="Interpreter of the scripts; a step overrides it with its own `shell`."
    )
    bank: str | None = Field(default=None, description="Account to charge.")
    queue: str | None = Field(default=None, description="Partition of the batch system; not a task queue.")
    host: str | None = Field(default=None, description="Name of the cluster, for Maestro's adapters.")
    nodes: Positive | Literal["all"] | None = Field(
        default=None,
        description="Number of nodes of an allocation; `all` for all nodes of the allocation around `maestro run`.",
    )
    procs: Positive | None = Field(default=None, description="Number of processes of an allocation.")
    gpus: Count | None = Field(default=None, description="Number of GPUs of each node of an allocation.")
    walltime: str | int | None = Field(default=None, description="Time limit of an allocation: `HH:MM:SS`, or seconds.")
    qos: str | None = Field(default=None, description="Quality of service.")
    reservation: str | None = Field(default=None, description="Reservation.")
    dry_run: bool = Field(
        default=False, description="Key of Merlin without effect; use `maestro run --dry` to write the scripts only."
    )
    launch_pre: str | None = Field(
        default=None,
        description=(
            "Text before the launch command of the workers, on the same line; end a separate command with `;`."
        ),
    )
    launch_args: str | None = Field(
        default=None, description="Additional arguments of the launch command of the workers."
    )
    worker_launch: str | None = Field(
        default=None, description="Launch command of the workers, instead of the default command."
    )
    flux_path: str | None = Field(default=None, description="Directory of the `flux` command.")
    flux_start_opts: str | None = Field(default=None, description="Options of `flux start`.")
    flux_exec: str | None = Field(default=None, description="Command instead of `flux exec`.")
    flux_exec_workers: bool = Field(default=True, description="Whether `flux exec` launches workers on all nodes.")
    uri: str | None = Field(default=None, description="URI of the Flux instance, for Maestro's adapter.")
    version: str | None = Field(default=None, description="Version of the Flux interface, for Maestro's adapter.")
    args: FreeBlock | None = Field(default=None, description="Additional Flux options, for Maestro's adapter.")
    allocation_args: FreeBlock | None = Field(
        default=None, description="Flux allocation options, for Maestro's adapter."
    )
    launcher_args: FreeBlock | None = Field(default=None, description="Flux launcher options, for Maestro's adapter.")


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class WorkerGroupSettings:
    """``merlin.resources.workers.<name>``: a worker group."""

    args: str = Field(
        default="", description="Options of `celery worker`, such as `--concurrency 4 --prefetch-multiplier 1`."
    )
    steps: tuple[str, ...] = Field(
        default=(), description="Steps whose task queues the group serves; `all` for all steps. Default: all steps."
    )
    task_queues: tuple[str, ...] = Field(
        default=(), description="Task queues that the group serves, instead of `steps`."
    )
    nodes: Positive | Literal["all"] | None = Field(
        default=None, description="Number of nodes of the group's allocation; overrides `batch.nodes`."
    )
    batch: FreeBlock | None = Field(default=None, description="Keys that override those of `batch` for this group.")
    procs: Positive | None = Field(
        default=None, description="Number of processes of the group's allocation; overrides `batch.procs`."
    )
    gpus: Count | None = Field(
        default=None, description="Number of GPUs of each node of the group's allocation; overrides `batch.gpus`."
    )
    allocation: Text | None = Field(
        default=None, description="Name of an allocation; groups with the same name share one allocation."
    )
    machines: tuple[str, ...] = Field(
        default=(), description="Hosts on which the group may run, by name or part of the name. Default: all hosts."
    )
    idle_limit: float = Field(
        default=300.0,
        json_schema_extra=_seconds(1, None),  # infinite: workers never leave because of idleness
        description=(
            "Seconds without work after which workers leave their allocation. Without a conductor, every worker of the "
            "study ends after this time."
        ),
    )
    drain: Annotated[float, Field(json_schema_extra=_seconds(0))] | None = Field(
        default=None,
        description=(
            "Workers start no sample in the last `drain` seconds of an allocation. Default: the longest duration of a "
            "sample of the step so far, plus `warn`; at least 30."
        ),
    )
    warn: float = Field(
        default=20.0,
        json_schema_extra=_seconds(6),
        description=(
            "Seconds before the end of an allocation at which running samples receive their `signal`; samples that "
            "still run 5 seconds before the end are killed."
        ),
    )


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class ResourceSettings:
    """``merlin.resources``: the worker groups."""

    task_server: Literal["celery"] = Field(default="celery", description="The task server; only Celery is supported.")
    sync_ledger: bool = Field(
        default=False,
        description=(
            "Whether workers wait, a few times per second, until the record of finished samples is on the disk. "
            "Without it, a power failure of the file server may cost the outcomes of the last half minute, "
            "and their samples run again."
        ),
    )
    overlap: bool = Field(default=False, description="Whether several worker groups may serve one task queue.")
    unassigned: Literal["workers", "maestro"] = Field(
        default="workers",
        description=(
            "How to run a step that is not sampled, has no `task_queue` and is not listed by name in the `steps` of a "
            "worker group: with the worker group `default_worker` (`workers`), or by Maestro itself (`maestro`), as a "
            "separate batch job (with `nodes` or `procs`) or in the conductor."
        ),
    )
    workers: dict[str, WorkerGroupSettings] = Field(default_factory=dict, description="Worker groups by name.")


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class MerlinSettings:
    """``merlin``: the ensemble."""

    resources: ResourceSettings = Field(default_factory=ResourceSettings, description="The worker groups.")
    samples: SampleSettings | None = Field(default=None, description="The sample table.")


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class StepSettings:
    """``study[].run``: the keys of a step in addition to those of Maestro."""

    task_queue: Text = Field(
        default=DEFAULT_TASK_QUEUE,
        description=(
            "Task queue of the step. If several worker groups would share the default one, the steps that a group "
            "names have a task queue of their own."
        ),
    )
    shell: Text | None = Field(default=None, description="Interpreter of the step's scripts; overrides `batch.shell`.")
    max_retries: Count = Field(
        default=30,
        description="How often a sample may request another run (exit code 100 or 104) before it counts as failed.",
    )
    max_failures: Count | Percentage | None = Field(
        default=None,
        description=(
            "How many samples of a step record may fail, as a number or as a percentage such as `5%`; one more, and "
            "the step fails at once. Default: a sampled step fails if all its samples have failed, any other step if "
            "it ends with another exit code than 0 or 101."
        ),
    )
    retry_delay: float = Field(
        default=1.0,
        json_schema_extra=_seconds(0),
        description="Seconds before a sample that requested another run starts again.",
    )
    time_request: str | int | None = Field(
        default=None,
        description=(
            "Time that a sample needs, `HH:MM:SS` or seconds. A worker starts a sample only if the allocation has at "
            "least this time left."
        ),
    )
    signal: str = Field(
        default="SIGTERM",
        description="Signal that running samples receive before their allocation ends, such as `SIGUSR1`.",
    )
    batch: FreeBlock | None = Field(default=None, description="Keys that override those of `batch` for this step.")
    gpus_per_task: int | str | None = Field(
        default=None, alias="gpus per task", description="Number of GPUs of each process."
    )
    slurm: str | None = Field(default=None, description="Additional options of `srun`.")
    lsf: str | None = Field(default=None, description="Additional options of `jsrun`.")
    flux: str | None = Field(default=None, description="Additional options of `flux run`.")
    exit_on_error: bool | Literal[0, 1] | None = Field(default=None, description="Option -X of `jsrun`.")
    num_resource_set: int | str | None = Field(
        default=None, alias="num resource set", description="Number of LSF resource sets."
    )
    launch_distribution: str | None = Field(default=None, description="LSF task distribution.")
    launch_distribution_spaced: str | None = Field(
        default=None,
        alias="launch distribution",
        description="LSF task distribution, in the spelling of Merlin's schema.",
    )


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class StepFacts:
    """The properties of a step for the planning of worker groups, derived from the specification."""

    queues: tuple[str, ...] = Field(
        description="Task queues of the step records; none for a native step, which Maestro runs."
    )
    depends: tuple[str, ...] = Field(
        default=(), description="Steps that the step depends on, as in the specification: `sim`, or `sim_*`."
    )
    sampled: bool = Field(default=False, description="Whether the step runs once per sample.")
    launches: bool = Field(default=False, description="Whether the step starts parallel programs with `$(LAUNCHER)`.")
    needs: StepNeeds = Field(default_factory=StepNeeds, description="The resources of one sample.")


@dataclass(frozen=True, kw_only=True, config=_BLOCK)
class EnsembleSettings:
    """``merlin`` and ``batch`` together: the settings of a study."""

    batch: BatchSettings = Field(description="The batch block.")
    resources: ResourceSettings = Field(description="The worker groups.")
    samples: SampleSettings | None = Field(default=None, description="The sample table.")
    steps: dict[str, StepFacts] = Field(default_factory=dict, description="The properties of each step, by name.")
    finished_markers: bool = Field(
        default=False, description="Whether a file MERLIN_FINISHED marks each finished sample, because a step uses it."
    )

    @property
    def needs_workers(self) -> bool:
        """Whether a worker group serves a task queue; False when Maestro runs all steps itself."""
        return any(group.task_queues for group in self.resources.workers.values())
