"""The manifest of a step record: one file with everything that a worker needs to run its samples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from msgspec import Meta, field

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.conversion import Exact
from maestro_celery_plugin.config.priority import MEDIUM_LEVEL
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.stored import Count, Seconds, Word
from maestro_celery_plugin.errors import DamagedFileError, StudyError
from maestro_celery_plugin.files import read_text, write_atomically
from maestro_celery_plugin.samples.paths import SamplePaths

__all__ = ["FILE", "Manifest"]

# Directories per level: with fewer than two, no number of levels would be enough.
LevelSize = Annotated[int, Meta(ge=2, le=2**31 - 1)]

# The name of a manifest in the directory of its step record.
FILE = "manifest.json"


class Manifest(Exact, frozen=True, kw_only=True):
    """The scripts and rules of a step record.

    Attributes:
        study_id: Identity of the study.
        number: Number of the step record in messages and in the ledger; unique in the study.
        name: Maestro's name of the step record.
        step: Name of the step in the specification.
        workspace: Maestro's workspace of the step record.
        script: Base name of the files for script, stdout and stderr.
        cmd: Text of the script, with the tokens that depend on the sample.
        restart: The same for a sample that has started before.
        shell: Interpreter with its arguments, as after ``#!``.
        sampled: Whether the scripts run once per sample; otherwise they run once, in the workspace.
        samples: Number of samples; 1 for a record that is not sampled.
        labels: Column labels of the sample table.
        table: The sample table; None for a record that is not sampled.
        index_cache: Directory with the index of a text table.
        level_max_dirs: Directories per level of the sample hierarchy.
        launched: Number of rows of the sample table; the samples beyond it were added later (`additions.py`). 0 in a
            study of an earlier release, for `samples`.
        planned: The number of samples that decides on the levels of the hierarchy; 0 for `samples`.
        task_queue: Celery's queue, without the session's prefix.
        max_retries: How often a sample may request another run.
        retry_delay_s: Seconds before a sample that requested another run starts again.
        finished_marker: Whether a file `FINISHED_MARKER` in the directory of a sample shows that it has finished.
        max_failures: Number of samples that may fail; None for the default (`study/failures.py`).
        time_request_s: Seconds that the step requests for a sample; None without a request.
        signal: Signal that running samples receive before their allocation ends.
        needs: Resources of one sample.
        launches: Whether the scripts start parallel programs with `$(LAUNCHER)`.
        priority: Level of the messages of the step record (`config/priority.py`).
    """

    number: Count
    name: str
    step: str
    workspace: Word
    script: Word
    cmd: str
    restart: str
    shell: str
    sampled: bool
    samples: Count
    labels: list[str]
    table: Word | None
    index_cache: Word
    level_max_dirs: LevelSize
    task_queue: str
    max_retries: Count
    retry_delay_s: Seconds
    time_request_s: int | None = None
    signal: str = "SIGTERM"
    needs: StepNeeds = field(default_factory=StepNeeds)
    launches: bool = False
    study_id: str = "0"
    max_failures: Count | None = None
    finished_marker: bool = False
    priority: int = MEDIUM_LEVEL
    launched: Count = 0
    planned: Count = 0

    @property
    def paths(self) -> SamplePaths:
        """The directories of the samples, below the workspace."""
        return SamplePaths(self.samples, self.level_max_dirs, self.planned)

    def write(self, path: Path) -> None:
        """Store the manifest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, conversion.to_json(self))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Load a manifest.

        Raises:
            OSError: the file cannot be read.
            StudyError: the file is not a manifest of this version.
        """
        try:
            return conversion.from_json(cls, read_text(path))
        except DamagedFileError:
            raise
        except ValueError as cause:
            raise StudyError(
                f"'{path}' is damaged, or was written by another version of maestro-celery-plugin; use that version, "
                f"or launch the study again ({cause})."
            ) from cause

    @classmethod
    def read_all(cls, directory: Path) -> list[Manifest]:
        """Load all manifests below a directory, which may not exist, in the order of their numbers.

        Raises:
            OSError: a directory or a file cannot be read.
            StudyError: a file is not a manifest of this version.
        """
        # Something else than a file is found as well, and is an error below.
        found = (path for path, others, files in os.walk(directory, onerror=_raise) if FILE in (*others, *files))
        return sorted((cls.read(Path(path, FILE)) for path in found), key=lambda manifest: manifest.number)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
