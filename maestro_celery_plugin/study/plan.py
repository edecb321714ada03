"""The layout of a study: the paths of its files, and the plan that the launch has stored.

The plugin writes to the directory ``merlin_info`` of the study:

    merlin_info/
      cmd.sh cmd.out cmd.err        script and output of the sample generation
      <name>.{orig,partial,expanded}.yaml   versions of the specification (`provenance.py`)
      samples.csv ...               the sample file, if the generation writes it there
      samples/                      a copy of the sample file, if it is elsewhere
      records/<workspace>/manifest.json
      records/<workspace>/assignment-<epoch>.npy
                                    which samples run under an epoch, if its messages do not say it (`assignment.py`)
      ledger/<writer>.ledger        attempts of all step records, one file per writer
      claims/<study>/<number>/      who has taken which message (`ledger/claims.py`)
      plain/<step record>/          state of a native step, which Maestro runs
      workers/<worker>.log          log of a worker of the session
      workers/<worker>.json         machine, slots and versions of the worker (`worker_facts.py`)
      allocations/<name>/<number>/  batch script, output and state of an allocation of the session
      specifications/               all versions of a corrected specification (`maestro/correction.py`)
      launch.lock                   locked while `maestro run` creates the study
      conductor.lock                locked while a conductor lives
      conductor.starts              how many conductors have begun so far (`conductor_starts.py`)
      reasons.json                  why step records do not run or have ended
      notify.log                    output of the commands of notifications
      notified.json                 events for which such a command was started (`notifications.py`)
      limits.json                   limits that a user has changed (`maestro/limits.py`)
      cancelled_steps.json          step records that a user has cancelled (`cancelled_steps.py`)
      purged_steps.json             step records whose waiting samples a user has purged (`cancelled_steps.py`)
      additions.json added/         samples that were added after the launch (`additions.py`)
      refusals.json                 why step records could not be submitted
      broken_machines.json          machines whose worker has left the study because of them
      session/                      0700: secret, broker, heartbeats

A study that a sample or a step of another study has started joins the session of that study (`members.py`): the session
with its workers and allocations is in the ``merlin_info`` of the first one, the home of the session.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import DamagedFileError, StudyError
from maestro_celery_plugin.files import read_text
from maestro_celery_plugin.spec.overrides import Overrides
from maestro_celery_plugin.study.provenance import specification_files
from maestro_celery_plugin.study.session import STUDY_VARIABLE
from maestro_celery_plugin.study.stored_plan import StoredPlan, path_of

__all__ = ["CANCEL_REQUEST", "StudyPlan", "study_around"]

# The file with which Maestro requests the cancellation of a study from the conductor (conductor.py:143).
CANCEL_REQUEST = ".cancel.lock"


def study_around() -> Path | None:
    """Return the study whose step calls this process; None outside of steps.

    The directory comes first: a native step of a study that a sample of another study has launched has the variable of
    that study.
    """
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / "batch.info").is_file() and (directory / "merlin_info").is_dir():
            return directory
    named = os.environ.get(STUDY_VARIABLE)
    return Path(named) if named else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The plan of a study, which does not change after the launch; Maestro stores it in ``batch.info``.

    Attributes:
        root: The study's workspace, ``$(OUTPUT_PATH)``.
        timestamp: Time of the launch, ``YYYYMMDD-HHMMSS``.
        id: Identity of the study: 16 random hexadecimal digits, different for each launch; 0 for a study of
            release 0.1.
        settings: The settings of the study.
        table: The sample table; None for a study without samples.
        rows: Number of samples of the launch; 0 without a table. Others may have been added (`additions.py`).
        planned: The `max_samples` of the launch; 0 without it.
        specification: The specification, outside of the study; None for a study of an earlier release.
        batch_defaults: The keys of `batch` that the user's configuration has added at the launch.
        overrides: What the command line of the launch has set in place of the specification, except its `environment`,
            which may have secrets (`session.py`).
        home: The directory ``merlin_info`` of the study whose session this study has joined; None for its own session.
    """

    root: Path
    timestamp: str
    settings: EnsembleSettings
    table: Path | None = None
    rows: int = 0
    planned: int = 0
    id: str = "0"
    specification: Path | None = None
    batch_defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    overrides: Overrides = dataclasses.field(default_factory=Overrides)
    home: Path | None = None

    def to_batch(self) -> dict[str, Any]:
        """Return the plan as Maestro's batch dictionary."""
        return {
            "type": "celery",
            "shell": self.settings.batch.shell,
            "study": str(self.root),
            "id": self.id,
            "timestamp": self.timestamp,
            "table": str(self.table) if self.table else None,
            "rows": self.rows,
            "planned": self.planned,
            "settings": conversion.to_dict(self.settings),
            "specification": str(self.specification) if self.specification else None,
            "batch_defaults": self.batch_defaults,
            "vars": dict(self.overrides.variables),
            "samplesfile": str(self.overrides.samples_file) if self.overrides.samples_file else None,
            "no_errors": self.overrides.no_errors,
            "home": str(self.home) if self.home else None,
        }

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> StudyPlan:
        """Read the plan from Maestro's batch dictionary; the errors are those of `StoredPlan.of`."""
        stored = StoredPlan.of(batch)
        return cls(
            root=Path(stored.study),
            id=stored.id,
            timestamp=stored.timestamp,
            settings=stored.settings,
            table=path_of(stored.table),
            rows=stored.rows,
            planned=stored.planned,
            specification=path_of(stored.specification),
            batch_defaults=stored.batch_defaults or {},
            overrides=Overrides(
                variables=stored.vars or {}, samples_file=path_of(stored.samplesfile), no_errors=stored.no_errors
            ),
            home=path_of(stored.home),
        )

    @classmethod
    def read(cls, directory: Path) -> StudyPlan:
        """Read the plan of a study from its directory.

        Raises:
            StudyError: the directory is not that of an ensemble study, or its plan is damaged.
        """
        path = directory / "batch.info"
        try:
            batch = parsed_yaml(read_text(path))
        except OSError as cause:
            words = f"not the directory of a Maestro study (no readable batch.info: {cause.strerror})"
            if isinstance(cause, NotADirectoryError):
                words = "a file, and not the directory of a study"
            raise StudyError(f"'{directory}' is {words}; give the directory that `maestro run` has created.") from cause
        except yaml.YAMLError as cause:
            raise DamagedFileError.at(path, "it is not YAML") from cause
        if batch is None:
            raise DamagedFileError.at(path, "it is empty")
        if not isinstance(batch, dict) or batch.get("type") != "celery" or "study" not in batch:
            raise StudyError(
                f"'{directory}' is a Maestro study without an ensemble; use `maestro status` and `maestro cancel`."
            )
        try:
            return cls.from_batch(batch)
        except (KeyError, TypeError, ValueError) as cause:
            problem = f"batch.info has no key {cause}" if isinstance(cause, KeyError) else str(cause)
            raise StudyError(
                f"'{directory}' was created by another version of maestro-celery-plugin; use that version, or "
                f"launch the study again ({problem})."
            ) from cause

    @property
    def hierarchy(self) -> int:
        """The number of samples that decides on the levels of the sample hierarchy."""
        return max(self.planned, self.rows)

    @property
    def level_max_dirs(self) -> int:
        """Directories per level of the sample hierarchy."""
        return self.settings.samples.level_max_dirs if self.settings.samples else 25

    @property
    def column_labels(self) -> tuple[str, ...]:
        """The column labels of the sample table; empty for a study without samples."""
        return self.settings.samples.column_labels if self.settings.samples else ()

    @property
    def info(self) -> Path:
        """The directory of all files of the plugin."""
        return self.root / "merlin_info"

    @property
    def specification_files(self) -> dict[str, str]:
        """The versions of the specification by the names of their tokens (`provenance.py`)."""
        return specification_files(self.info, self.specification)

    def is_of(self, file: Path) -> bool:
        """Tell whether a file is the specification of this study, or one of its versions in the study."""
        if self.specification is None:
            return False
        own = (self.specification, self.root / self.specification.name, *map(Path, self.specification_files.values()))
        path = file.resolve()
        return path in {one.resolve() for one in own} or path.parent == (self.info / "specifications").resolve()

    @property
    def session(self) -> Path:
        """The directory of the session (`session.py`)."""
        return (self.home or self.info) / "session"

    @property
    def number(self) -> int:
        """The identity of the study as a number."""
        return int(self.id, 16)

    @property
    def claims(self) -> Path:
        """The directory of the claims (`ledger/claims.py`)."""
        return self.info / "claims"

    @property
    def ledger(self) -> Path:
        """The directory of the ledger (`ledger/`)."""
        return self.info / "ledger"

    @property
    def records(self) -> Path:
        """The directory of the manifests (`manifest.py`)."""
        return self.info / "records"

    @property
    def native(self) -> Path:
        """The directory of the state of native steps (`maestro/native_step_state.py`)."""
        return self.info / "plain"

    @property
    def cancel_request(self) -> Path:
        """The file with which Maestro requests the cancellation of the study."""
        return self.root / CANCEL_REQUEST

    @property
    def cancelled_steps(self) -> Path:
        """The file with the step records that a user has cancelled one by one (`cancelled_steps.py`)."""
        return self.info / "cancelled_steps.json"

    @property
    def purged_steps(self) -> Path:
        """The file with the step records whose waiting samples a user has purged (`cancelled_steps.py`)."""
        return self.info / "purged_steps.json"

    @property
    def steps_to_repeat(self) -> Path:
        """The file with the step records that run again after their end, because of added samples (`additions.py`)."""
        return self.info / "steps_to_repeat.json"

    @property
    def update_request(self) -> Path:
        """The file with which Maestro announces new settings to the conductor (conductor.py:144)."""
        return self.root / ".study.update.lock"

    @property
    def reasons(self) -> Path:
        """The file with the reasons why step records do not run or have ended (`reasons.py`)."""
        return self.info / "reasons.json"

    @property
    def refusals(self) -> Path:
        """The file with the reasons why step records could not be submitted (`reasons.py`)."""
        return self.info / "refusals.json"

    @property
    def broken_machines(self) -> Path:
        """The file with the machines whose worker has left the study because of them (`broken_machines.py`)."""
        return self.info / "broken_machines.json"

    @property
    def allocations(self) -> Path:
        """The directory of the session's allocations (`batch/allocation.py`)."""
        return (self.home or self.info) / "allocations"

    @property
    def conductor_starts(self) -> Path:
        """The file with the number of conductors that have begun so far."""
        return self.info / "conductor.starts"

    @property
    def conductor_lock(self) -> Path:
        """The file that the conductor locks while it lives (`conductor_lock.py`)."""
        return self.info / "conductor.lock"
