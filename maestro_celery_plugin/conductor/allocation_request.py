"""The request for one allocation: its resources, and the command lines that start the workers in it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from maestro_celery_plugin.batch.deadline import START_VARIABLE
from maestro_celery_plugin.config.settings import BatchSettings

__all__ = ["AllocationRequest"]

# Interpreters that can run the batch script. For any other `batch.shell`, such as Python, /bin/bash runs the script.
_POSIX_SHELLS = ("bash", "sh", "dash", "ksh", "zsh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationRequest:
    """The request for one allocation.

    Attributes:
        name: Name of the allocation: that of its worker group, or a name that several groups share.
        study: Name of the study, for the name of the job.
        settings: The batch settings.
        nodes: Number of nodes.
        procs: Number of processes; None for whole nodes.
        gpus: GPUs of each node; None without GPUs.
        walltime_s: Time limit in seconds; None for the limit of the partition.
        lines: One shell command per worker group, which starts the workers and returns when they have ended.
    """

    name: str
    study: str
    settings: BatchSettings
    nodes: int
    procs: int | None
    gpus: int | None
    walltime_s: int | None
    lines: tuple[str, ...]

    @property
    def job_name(self) -> str:
        """Name of the batch job and of its files."""
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{self.study}-{self.name}")

    @property
    def shell(self) -> str:
        """The interpreter of the batch script."""
        words = shlex.split(self.settings.shell)
        return self.settings.shell if words and Path(words[-1]).name in _POSIX_SHELLS else "/bin/bash"

    @property
    def body(self) -> str:
        """The batch script without its header."""
        export = f"export {START_VARIABLE}=$(date +%s)"
        if len(self.lines) == 1:
            return f"{export}\n{self.lines[0]}"
        return "\n".join((export, *(f"{line} &" for line in self.lines), "wait"))
