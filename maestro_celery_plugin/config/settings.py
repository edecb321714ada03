"""Settings: one frozen class per YAML block, each key with its type, default, unit and help text.

The JSON schema of a specification (`conversion.py`) and the reference of keys in `docs/` are derived from these
classes; there is no other list of keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from maestro_celery_plugin.config.conversion import Exact
from maestro_celery_plugin.config.priority import MEDIUM_LEVEL
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


class Block(Exact, frozen=True, omit_defaults=True):
    """A block of a specification: its text has only the keys that a user has written."""


def _seconds(minimum: int, maximum: int | None = 366 * 86400) -> Meta:
    """Return limits that `spec/checks.py` checks, because a study of an earlier release may have any number."""
    return Meta(extra_json_schema={"minimum": minimum} if maximum is None else {"minimum": minimum, "maximum": maximum})


# A block with arbitrary keys, which `spec/checks.py` checks. A study of an earlier release may have keys of any type.
FreeBlock = dict[Any, Any]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Text = Annotated[str, Meta(min_length=1)]
Percentage = Annotated[str, Meta(pattern=r"^(100|\d{1,2})(\.\d+)?%$", description="a percentage such as `5%`")]


class GenerateSettings(Block, frozen=True, kw_only=True):
    """``merlin.samples.generate``: the command that generates the sample table."""

    cmd: Text
    """Shell command that writes the sample file; runs once, during `maestro run`, in the current directory. Its
    interpreter is `batch.shell`, or `/bin/bash` if that is another program, such as Python.
    """


class SampleSettings(Block, frozen=True, kw_only=True):
    """``merlin.samples``: the sample table."""

    file: Text
    """Sample table: `.npy`, `.csv` or `.tab`, one row per sample. A relative path begins at the directory where
    `maestro run` was called.
    """
    column_labels: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Name of each column; in a `cmd`, the value of the column replaces `$(NAME)`."""
    generate: GenerateSettings | None = None
    """Command that writes the sample table."""
    level_max_dirs: Annotated[int, Meta(ge=2)] = 25
    """Maximum number of directories per level of the sample hierarchy."""
    max_samples: Positive | None = None
    """The largest number of samples of the study, which `maestro-celery add-samples` does not exceed. It also decides
    on the levels of the sample hierarchy. Default: no limit.
    """


class BatchSettings(Block, frozen=True, kw_only=True):
    """``batch``: the batch system, for Maestro's adapters and for the launch of workers."""

    type: str = "local"
    """Where workers run: as processes on this machine (`local`), or in an allocation of a batch system (`slurm`, `lsf`,
    `lsf-srun`, `flux`, or the type of an extension).
    """
    shell: Text = "/bin/bash"
    """Interpreter of the scripts; a step overrides it with its own `shell`."""
    bank: str | None = None
    """Account to charge."""
    queue: str | None = None
    """Partition of the batch system; not a task queue."""
    host: str | None = None
    """Name of the cluster, for Maestro's adapters."""
    nodes: Positive | Literal["all"] | None = None
    """Number of nodes of an allocation; `all` for all nodes of the allocation around `maestro run`."""
    procs: Positive | None = None
    """Number of processes of an allocation."""
    gpus: Count | None = None
    """Number of GPUs of each node of an allocation."""
    walltime: str | int | None = None
    """Time limit of an allocation: `HH:MM:SS`, `MM:SS`, `D-HH:MM:SS`, or seconds."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation."""
    dry_run: bool = False
    """Whether `maestro run` only writes the scripts, as with `--dry`."""
    launch_pre: str | None = None
    """Text before the launch command of the workers, on the same line; end a separate command with `;`."""
    launch_args: str | None = None
    """Additional arguments of the launch command of the workers."""
    worker_launch: str | None = None
    """Launch command of the workers, instead of the default command."""
    flux_path: str | None = None
    """Directory of the `flux` command."""
    flux_start_opts: str | None = None
    """Options of `flux start`."""
    flux_exec: str | None = None
    """Command instead of `flux exec`."""
    flux_exec_workers: bool = True
    """Whether `flux exec` launches workers on all nodes."""
    uri: str | None = None
    """URI of the Flux instance, for Maestro's adapter."""
    version: str | None = None
    """Version of the Flux interface, for Maestro's adapter."""
    args: FreeBlock | str | None = None
    """Further options of the batch system for each job: a block such as `{constraint: haswell, mail-type: END}`, or
    text such as `--constraint=haswell`. The options of a worker group supplement and override those of `batch`. For
    Flux, the block of Maestro's adapter.
    """
    allocation_args: FreeBlock | None = None
    """Flux allocation options, for Maestro's adapter."""
    launcher_args: FreeBlock | None = None
    """Flux launcher options, for Maestro's adapter."""


class WorkerGroupSettings(Block, frozen=True, kw_only=True):
    """``merlin.resources.workers.<name>``: a worker group."""

    args: str = ""
    """Options of `celery worker`, such as `--concurrency 4 --prefetch-multiplier 1`."""
    steps: tuple[str, ...] = ()
    """Steps whose task queues the group serves; `all` for all steps. Default: all steps."""
    task_queues: tuple[str, ...] = ()
    """Task queues that the group serves, instead of `steps`."""
    nodes: Positive | Literal["all"] | None = None
    """Number of nodes of the group's allocation; overrides `batch.nodes`."""
    batch: FreeBlock | None = None
    """Keys that override those of `batch` for this group."""
    procs: Positive | None = None
    """Number of processes of the group's allocation; overrides `batch.procs`."""
    gpus: Count | None = None
    """Number of GPUs of each node of the group's allocation; overrides `batch.gpus`."""
    allocation: Text | None = None
    """Name of an allocation; groups with the same name share one allocation."""
    machines: tuple[str, ...] = ()
    """Hosts on which the group may run, by name or part of the name. Default: all hosts."""
    idle_limit: Annotated[float, _seconds(1, None)] = 300.0  # infinite: workers never leave because of idleness
    """Seconds without work after which workers leave their allocation. Without a conductor, every worker of the study
    ends after this time.
    """
    drain: Annotated[float, _seconds(0)] | None = None
    """Workers start no sample in the last `drain` seconds of an allocation. Default: the longest duration of a sample
    of the step so far, plus `warn`; at least 30.
    """
    warn: Annotated[float, _seconds(6)] = 20.0
    """Seconds before the end of an allocation at which running samples receive their `signal`; samples that still run 5
    seconds before the end are killed.
    """


class ResourceSettings(Block, frozen=True, kw_only=True):
    """``merlin.resources``: the worker groups."""

    task_server: Literal["celery"] = "celery"
    """The task server; only Celery is supported."""
    sync_ledger: bool = False
    """Whether workers wait, a few times per second, until the record of finished samples is on the disk. Without it, a
    power failure of the file server may cost the outcomes of the last half minute, and their samples run again.
    """
    overlap: bool = False
    """Whether several worker groups may serve one task queue."""
    unassigned: Literal["workers", "maestro"] = "workers"
    """How to run a step that is not sampled, has no `task_queue` and is not listed by name in the `steps` of a worker
    group: with the worker group `default_worker` (`workers`), or by Maestro itself (`maestro`), as a separate batch job
    (with `nodes` or `procs`) or in the conductor.
    """
    workers: dict[str, WorkerGroupSettings] = field(default_factory=dict)
    """Worker groups by name."""


class MerlinSettings(Block, frozen=True, kw_only=True):
    """``merlin``: the ensemble."""

    resources: ResourceSettings = field(default_factory=ResourceSettings)
    """The worker groups."""
    samples: SampleSettings | None = None
    """The sample table."""
    notify: Text | None = None
    """Command that runs when the study has ended, when its first sample or step has failed, and when a further
    allocation is submitted; it receives a JSON object.
    """


class StepSettings(
    Block,
    frozen=True,
    kw_only=True,
    rename={
        "gpus_per_task": "gpus per task",
        "num_resource_set": "num resource set",
        "launch_distribution_spaced": "launch distribution",
    },
):
    """``study[].run``: the keys of a step in addition to those of Maestro."""

    task_queue: Text = DEFAULT_TASK_QUEUE
    """Task queue of the step. If several worker groups would share the default one, the steps that a group names have a
    task queue of their own.
    """
    shell: Text | None = None
    """Interpreter of the step's scripts; overrides `batch.shell`."""
    max_retries: Count = 30
    """How often a sample may request another run (exit code 100 or 104) before it counts as failed."""
    max_failures: Count | Percentage | None = None
    """How many samples of a step record may fail, as a number or as a percentage such as `5%`; one more, and the step
    fails at once. Default: a sampled step fails if all its samples have failed, any other step if it ends with another
    exit code than 0 or 101.
    """
    retry_delay: Annotated[float, _seconds(0)] = 1.0
    """Seconds before a sample that requested another run starts again."""
    time_request: str | int | None = None
    """Time that a sample needs, in the forms of `walltime`. A worker starts a sample only if the allocation has at
    least this time left.
    """
    signal: str = "SIGTERM"
    """Signal that running samples receive before their allocation ends, such as `SIGUSR1`."""
    batch: FreeBlock | None = None
    """Keys that override those of `batch` for this step, which then has a worker group of its own, with the name of the
    step. If a worker group names the step, only `type`, for `$(LAUNCHER)`, and `shell`.
    """
    gpus_per_task: int | str | None = None
    """Number of GPUs of each process."""
    slurm: str | None = None
    """Additional options of `srun`."""
    lsf: str | None = None
    """Additional options of `jsrun`."""
    flux: str | None = None
    """Additional options of `flux run`."""
    exit_on_error: bool | Literal[0, 1] | None = None
    """Option -X of `jsrun`."""
    num_resource_set: int | str | None = None
    """Number of LSF resource sets."""
    launch_distribution: str | None = None
    """LSF task distribution."""
    launch_distribution_spaced: str | None = None
    """LSF task distribution, in the spelling of Merlin's schema."""


class StepFacts(Block, frozen=True, kw_only=True):
    """The properties of a step for the planning of worker groups, derived from the specification."""

    queues: tuple[str, ...]
    """Task queues of the step records; none for a native step, which Maestro runs."""
    depends: tuple[str, ...] = ()
    """Steps that the step depends on, as in the specification: `sim`, or `sim_*`."""
    sampled: bool = False
    """Whether the step runs once per sample."""
    launches: bool = False
    """Whether the step starts parallel programs with `$(LAUNCHER)`."""
    needs: StepNeeds = field(default_factory=StepNeeds)
    """The resources of one sample."""
    priority: int = MEDIUM_LEVEL
    """Level of the step's messages."""


class EnsembleSettings(Block, frozen=True, kw_only=True):
    """``merlin`` and ``batch`` together: the settings of a study."""

    batch: BatchSettings
    """The batch block."""
    resources: ResourceSettings
    """The worker groups."""
    samples: SampleSettings | None = None
    """The sample table."""
    steps: dict[str, StepFacts] = field(default_factory=dict)
    """The properties of each step, by name."""
    notify: str | None = None
    """The command of notifications; None without one in the specification."""
    finished_markers: bool = False
    """Whether a file MERLIN_FINISHED marks each finished sample, because a step uses it."""

    @property
    def needs_workers(self) -> bool:
        """Whether a worker group serves a task queue; False when Maestro runs all steps itself."""
        return any(group.task_queues for group in self.resources.workers.values())
