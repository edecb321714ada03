"""Settings: one frozen dataclass per YAML block, each key with its help text, default and unit.

The JSON schema that a specification is checked against (`schema.py`) and the reference of keys in the
README are derived from these classes; there is no other list of keys.
"""

# ruff: noqa: RUF009 - `setting` returns a dataclass field, as `dataclasses.field` does.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

__all__ = [
    "BatchSettings",
    "EnsembleSettings",
    "GenerateSettings",
    "ResourceSettings",
    "SampleSettings",
    "StepFacts",
    "StepSettings",
    "WorkerGroupSettings",
    "key_of",
]

DEFAULT_GROUP = "default_worker"
DEFAULT_TASK_QUEUE = "merlin"


def setting(help: str, *, default: Any = dataclasses.MISSING, key: str | None = None, **limits: Any) -> Any:
    """Declare one key of a block.

    Args:
        help: One sentence for the reference, with the unit when there is one.
        default: Value when the key is absent; without one the key is required.
        key: The key in YAML where it is no Python name (``gpus per task``).
        limits: JSON schema keywords that restrict the value (``minimum``, ``minLength``, ...).
    """
    metadata = {"help": help, "key": key, "limits": limits}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """``merlin.samples.generate``: how the sample table comes into being."""

    cmd: str = setting(
        "Shell command that writes the sample file; runs once, during `maestro run`.", minLength=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """``merlin.samples``: the sample table."""

    file: str = setting("Sample table: `.npy`, `.csv` or `.tab`, one row per sample.", minLength=1)
    column_labels: tuple[str, ...] = setting(
        "Name of each column; `$(NAME)` in a cmd is its value.", minItems=1
    )
    generate: GenerateSettings | None = setting("Command that writes the table.", default=None)
    level_max_dirs: int = setting("Directories per level of the sample hierarchy.", default=25, minimum=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """``batch``: the batch system, for Maestro's adapters and for worker launch."""

    type: str = setting(
        "Where workers run: processes of this machine (`local`), or an allocation of a batch system (`slurm`, `lsf`, "
        "`lsf-srun`, `flux`, or one that an extension adds).",
        default="local",
    )
    shell: str = setting(
        "Interpreter of the scripts of steps that name none.", default="/bin/bash", minLength=1
    )
    bank: str | None = setting("Account to charge.", default=None)
    queue: str | None = setting(
        "Partition of the batch system (a task queue is something else).", default=None
    )
    host: str | None = setting("Name of the cluster, for Maestro's adapters.", default=None)
    nodes: int | Literal["all"] | None = setting("Nodes of an allocation.", default=None, minimum=1)
    procs: int | None = setting("Processes of an allocation.", default=None, minimum=1)
    gpus: int | None = setting("GPUs of each node of an allocation.", default=None, minimum=0)
    walltime: str | int | None = setting("Time limit of an allocation: `HH:MM:SS`, or seconds.", default=None)
    qos: str | None = setting("Quality of service.", default=None)
    reservation: str | None = setting("Reservation.", default=None)
    dry_run: bool = setting(
        "Merlin's switch for script generation only; `maestro run --dry` here.", default=False
    )
    launch_pre: str | None = setting(
        "What stands before the launch command of the workers, on its line: end a command of its own with `;`.",
        default=None,
    )
    launch_args: str | None = setting("Further arguments of the worker launch command.", default=None)
    worker_launch: str | None = setting("Replaces the worker launch command.", default=None)
    flux_path: str | None = setting("Directory of the `flux` command.", default=None)
    flux_start_opts: str | None = setting("Options of `flux start`.", default=None)
    flux_exec: str | None = setting("Replaces `flux exec`.", default=None)
    flux_exec_workers: bool = setting("Launch workers on all nodes with `flux exec`.", default=True)
    uri: str | None = setting("Flux instance, for Maestro's adapter.", default=None)
    version: str | None = setting("Flux interface version, for Maestro's adapter.", default=None)
    args: dict[str, Any] | None = setting("Further Flux options, for Maestro's adapter.", default=None)
    allocation_args: dict[str, Any] | None = setting(
        "Flux allocation options, for Maestro's adapter.", default=None
    )
    launcher_args: dict[str, Any] | None = setting(
        "Flux launcher options, for Maestro's adapter.", default=None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerGroupSettings:
    """``merlin.resources.workers.<name>``: a worker group."""

    args: str = setting(
        "Options of `celery worker`, such as `--concurrency 4 --prefetch-multiplier 1`.", default=""
    )
    steps: tuple[str, ...] = setting(
        "Steps whose task queues the group serves; `all` for every step. Default: all.", default=()
    )
    task_queues: tuple[str, ...] = setting("Task queues the group serves, instead of `steps`.", default=())
    nodes: int | Literal["all"] | None = setting(
        "Nodes of the group's allocation; before `batch.nodes`.", default=None, minimum=1
    )
    batch: dict[str, Any] | None = setting("Keys of `batch` that differ for this group.", default=None)
    procs: int | None = setting("Processes of the group's allocation; before `batch.procs`.", default=None, minimum=1)
    gpus: int | None = setting(
        "GPUs of each node of the group's allocation; before `batch.gpus`.", default=None, minimum=0
    )
    allocation: str | None = setting(
        "Name of an allocation: groups that give the same one share it.", default=None, minLength=1
    )
    machines: tuple[str, ...] = setting("Host names the group may run on; any when empty.", default=())
    idle_limit: float = setting(
        "Seconds without work after which workers leave their allocation, and any when nobody conducts the study.",
        default=300.0,
        minimum=1,
    )
    drain: float | None = setting(
        "Seconds before the end of an allocation from which no sample is started. Default: as long as samples "
        "of the step have needed so far, and `warn`; at least 30.",
        default=None,
        minimum=0,
    )
    warn: float = setting(
        "Seconds before the end of an allocation at which running samples get their `signal`; they are killed "
        "5 s before it.",
        default=20.0,
        minimum=6,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """``merlin.resources``: who runs the samples."""

    task_server: Literal["celery"] = setting("The task server; Celery is the only one.", default="celery")
    overlap: bool = setting("Whether several worker groups may serve one task queue.", default=False)
    unassigned: Literal["workers", "maestro"] = setting(
        "Who runs steps that are not sampled, name no `task_queue` and are not in the `steps` of a worker group "
        "(`all` names none of them): the `default_worker`, or Maestro itself, as batch jobs of their own (with "
        "`nodes` or `procs`) or in the conductor.",
        default="workers",
    )
    workers: dict[str, WorkerGroupSettings] = setting("Worker groups by name.", default={})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """``study[].run``: the keys of a step beside Maestro's own."""

    task_queue: str = setting("Task queue of the step.", default=DEFAULT_TASK_QUEUE, minLength=1)
    shell: str | None = setting(
        "Interpreter of the step's scripts; before `batch.shell`.", default=None, minLength=1
    )
    max_retries: int = setting(
        "How often a sample may ask to be run again (exit code 100 or 104) before it counts as failed.",
        default=30,
        minimum=0,
    )
    retry_delay: float = setting(
        "Seconds before a sample that asked for it runs again.", default=1.0, minimum=0
    )
    time_request: str | int | None = setting(
        "Time a sample needs, `HH:MM:SS` or seconds: it is not started when its allocation would end it earlier.",
        default=None,
    )
    signal: str = setting(
        "Signal that running samples get before their allocation ends, such as `SIGUSR1`.", default="SIGTERM"
    )
    batch: dict[str, Any] | None = setting("Keys of `batch` that differ for this step.", default=None)
    gpus_per_task: int | str | None = setting("GPUs of each task.", default=None, key="gpus per task")
    slurm: str | None = setting("Further options of `srun`.", default=None)
    lsf: str | None = setting("Further options of `jsrun`.", default=None)
    flux: str | None = setting("Further options of `flux run`.", default=None)
    exit_on_error: bool | Literal[0, 1] | None = setting("`jsrun`'s switch -X.", default=None)
    num_resource_set: int | str | None = setting("LSF resource sets.", default=None, key="num resource set")
    launch_distribution: str | None = setting("LSF task distribution.", default=None)
    launch_distribution_spaced: str | None = setting(
        "LSF task distribution, as Merlin's schema spells it.", default=None, key="launch distribution"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What of a step has to be known to plan for its worker group; derived from the specification."""

    queues: tuple[str, ...] = setting("Task queues of its step records; none when Maestro runs it itself.")
    depends: tuple[str, ...] = setting("Steps that it waits for, as written: `sim`, or `sim_*`.", default=())
    sampled: bool = setting("Whether it fans out to samples.", default=False)
    launches: bool = setting("Whether it starts parallel programs with `$(LAUNCHER)`.", default=False)
    needs: dict[str, Any] = setting("What a sample of it needs: the fields of `batch_systems.StepNeeds`.", default={})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleSettings:
    """``merlin`` and ``batch`` together: what the plugin knows of a study besides its steps."""

    batch: BatchSettings = setting("The batch block.")
    resources: ResourceSettings = setting("Who runs the samples.")
    samples: SampleSettings | None = setting("The sample table.", default=None)
    steps: dict[str, StepFacts] = setting("What has to be known of each step.", default={})

    @property
    def needs_workers(self) -> bool:
        """Whether a worker group has anything to do; not so when Maestro runs all steps itself."""
        return any(group.task_queues for group in self.resources.workers.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain YAML types, to be read back with `schema.build`."""
        return plain(self)  # type: ignore[no-any-return]


def key_of(field: dataclasses.Field[Any]) -> str:
    """Return the YAML key of a setting."""
    return field.metadata["key"] or field.name


def plain(value: Any) -> Any:
    """Return settings as dicts, lists and scalars, without what is at its default."""
    if dataclasses.is_dataclass(value):
        return {
            key_of(field): plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) not in (field.default, {})
        }
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value
