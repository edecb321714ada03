"""The resources that one sample of a step needs: nodes, processes, cores, GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from maestro_celery_plugin.config.conversion import Exact

__all__ = ["ScriptCount", "StepNeeds", "counted"]


class ScriptCount(int):
    """A count that is a reference to a shell variable or to a column of the sample table.

    Command lines contain the reference (`text`); planning uses the number.
    """

    text: str

    def __new__(cls, number: int, text: str) -> ScriptCount:
        """Create the count from the number for planning and the reference."""
        count = super().__new__(cls, number)
        count.text = text
        return count

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.text

    def __str__(self) -> str:
        return self.text


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 node``, ``2 nodes``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class StepNeeds(Exact, frozen=True, kw_only=True):
    """The resources of one sample, from the step keys of Maestro and Merlin.

    Attributes:
        nodes: Number of nodes; 0 when the step has no such key.
        procs: Processes of the whole sample; 0 when the step has no such key.
        cores_per_task: Cores of each process.
        gpus: Value of Maestro's key `gpus`; None when the step has no such key. `planned` says what it counts.
        gpus_per_task: GPUs of each process; None when the step has no such key.
        walltime_s: Time limit of one launch, in seconds; None for no limit.
        reservation: The reservation, for `srun`.
        options: Launcher options, from the step key of the batch system (`slurm`, `lsf`, `flux`).
        more: Other step keys that only one launcher uses (`bind`, `exit_on_error`, ...).
    """

    nodes: int = 0
    procs: int = 0
    cores_per_task: int = 1
    gpus: int | None = None
    gpus_per_task: int | None = None
    walltime_s: int | None = None
    reservation: str | None = None
    options: str = ""
    more: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def planned(self, *, gpus_are_per_process: bool) -> StepNeeds:
        """Return the resources that the launcher of a batch system reserves.

        Args:
            gpus_are_per_process: Whether it reserves `gpus` for each process; 4 procs and 2 gpus are then 8 GPUs.
        """
        if not gpus_are_per_process or self.gpus is None or self.gpus_per_task is not None:
            return self
        return msgspec.structs.replace(self, gpus=None, gpus_per_task=self.gpus)

    @property
    def has_whole_nodes(self) -> bool:
        """Whether the sample has exclusive nodes: the step has `nodes`, but neither processes nor cores."""
        return bool(self.nodes) and not self.procs and str(self.cores_per_task) == "1"

    @property
    def cores(self) -> int:
        """Cores of the whole sample; at least 1."""
        return max(1, self.procs) * self.cores_per_task

    @property
    def text(self) -> str:
        """The resources as text: ``2 nodes, 8 procs, 2 cores per task``."""
        parts = (
            counted(self.nodes, "node") if self.nodes else "",
            counted(self.procs, "proc") if self.procs else "",
            f"{self.cores_per_task} cores per task" if self.cores_per_task > 1 else "",
            counted(self.gpu_count, "GPU") if self.gpu_count else "",
        )
        return ", ".join(filter(None, parts)) or "1 core"

    @property
    def gpu_count(self) -> int:
        """GPUs of the whole sample; 0 when the step has no such key."""
        return max(1, self.procs) * self.gpus_per_task if self.gpus_per_task else self.gpus or 0
