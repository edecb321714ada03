"""The manifest of a step record: one file with all that a worker needs to run any of its samples."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.samples.paths import SamplePaths

__all__ = ["Manifest", "write_atomically"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A step record's scripts and rules.

    Attributes:
        number: Identifies the step record in messages and in the ledger; unique in the study.
        name: Maestro's name of the step record.
        step: The step's name in the specification.
        workspace: Its Maestro workspace.
        script: Base name of its scripts, stdout and stderr files.
        cmd: The script's text, with tokens of samples still in it.
        restart: The same for a sample that runs again after it was started.
        shell: Interpreter with its arguments, as after ``#!``.
        sampled: Whether it fans out to samples; otherwise it is run once, in its workspace.
        samples: The number of samples; 1 for a record that is not sampled.
        labels: Column labels of the sample table.
        table: The sample table, for sampled records.
        index_cache: Where the index of a text table is.
        level_max_dirs: Directories per level of the sample hierarchy.
        task_queue: Celery's queue, without the session's prefix.
        max_retries: How often a sample may ask to be run again.
        retry_delay_s: Seconds before a sample that asked for it runs again.
        time_request_s: Seconds that a sample needs, as its step says; None when it does not.
        signal: Signal that running samples get before their allocation ends.
        needs: What one sample needs of an allocation.
        launches: Whether its scripts start parallel programs with `$(LAUNCHER)`.
    """

    number: int
    name: str
    step: str
    workspace: str
    script: str
    cmd: str
    restart: str
    shell: str
    sampled: bool
    samples: int
    labels: list[str]
    table: str | None
    index_cache: str
    level_max_dirs: int
    task_queue: str
    max_retries: int
    retry_delay_s: float
    time_request_s: int | None = None
    signal: str = "SIGTERM"
    needs: StepNeeds = dataclasses.field(default_factory=StepNeeds)
    launches: bool = False

    @property
    def paths(self) -> SamplePaths:
        """The directories of the samples, below the workspace."""
        return SamplePaths(self.samples, self.level_max_dirs)

    def write(self, path: Path) -> None:
        """Store the manifest, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Load a manifest."""
        values: dict[str, Any] = json.loads(path.read_text())
        return cls(**{**values, "needs": StepNeeds(**values.get("needs", {}))})

    @classmethod
    def read_all(cls, directory: Path) -> list[Manifest]:
        """Load all manifests of a study in the order of their numbers."""
        return sorted((cls.read(path) for path in directory.rglob("manifest.json")), key=lambda m: m.number)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file by another, so that a reader sees the old or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)
