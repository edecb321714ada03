"""A study as the plugin sees it: where things are, and what was fixed when it was launched.

Everything of ours lies in the study's ``merlin_info`` directory:

    merlin_info/
      cmd.sh cmd.out cmd.err        the sample generation
      samples.csv ...               what it wrote, if it writes there
      records/<workspace>/manifest.json
      ledger/<writer>.ledger        attempts of all step records, one file per writer
      plain/<step record>/          what became of steps that Maestro runs itself
      workers/<worker>.log
      allocations/<name>/<number>/  batch script, what the job printed, its state
      session/                      0700: secret, broker, heartbeats
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maestro_celery_plugin.config import schema
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.errors import StudyError

__all__ = ["CANCEL_NOTE", "StudyPlan"]

# The file by which Maestro tells the conductor to cancel a study (conductor.py:143).
CANCEL_NOTE = ".cancel.lock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What was fixed when the study was launched; stored in Maestro's ``batch.info``.

    Attributes:
        root: The study's workspace, ``$(OUTPUT_PATH)``.
        timestamp: When it was launched, ``YYYYMMDD-HHMMSS``.
        settings: The ensemble's settings.
        table: The sample table, or None for a study without samples.
        rows: The number of samples; 0 without a table.
    """

    root: Path
    timestamp: str
    settings: EnsembleSettings
    table: Path | None = None
    rows: int = 0

    def to_batch(self) -> dict[str, Any]:
        """Return the keys that make up the plan in Maestro's batch dictionary."""
        return {
            "type": "celery",
            "shell": self.settings.batch.shell,
            "study": str(self.root),
            "timestamp": self.timestamp,
            "table": str(self.table) if self.table else None,
            "rows": self.rows,
            "settings": self.settings.to_dict(),
        }

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> StudyPlan:
        """Read the plan from Maestro's batch dictionary."""
        return cls(
            root=Path(batch["study"]),
            timestamp=batch["timestamp"],
            settings=schema.build(EnsembleSettings, batch["settings"]),
            table=Path(batch["table"]) if batch["table"] else None,
            rows=batch["rows"],
        )

    @classmethod
    def read(cls, directory: Path) -> StudyPlan:
        """Read the plan of a study from its directory.

        Raises:
            StudyError: it is not the directory of an ensemble study.
        """
        try:
            batch = yaml.safe_load((directory / "batch.info").read_text())
        except (OSError, yaml.YAMLError) as cause:
            raise StudyError(
                f"'{directory}' is not the directory of a Maestro study (no batch.info that can be read); "
                "give the directory that `maestro run` has made."
            ) from cause
        if not isinstance(batch, dict) or batch.get("type") != "celery" or "study" not in batch:
            raise StudyError(
                f"'{directory}' is a Maestro study without an ensemble; use `maestro status` and `maestro cancel`."
            )
        try:
            return cls.from_batch(batch)
        except (KeyError, TypeError) as cause:
            raise StudyError(
                f"'{directory}' was made by another version of maestro-celery-plugin; use that one, or launch the "
                "study anew."
            ) from cause

    @property
    def level_max_dirs(self) -> int:
        """Directories per level of the sample hierarchy."""
        return self.settings.samples.level_max_dirs if self.settings.samples else 25

    @property
    def info(self) -> Path:
        """The directory of everything that is ours."""
        return self.root / "merlin_info"

    @property
    def session(self) -> Path:
        """The directory of the session (`session.py`)."""
        return self.info / "session"

    @property
    def ledger(self) -> Path:
        """The directory of the ledger (`ledger.py`)."""
        return self.info / "ledger"

    @property
    def records(self) -> Path:
        """The directory of the manifests (`manifest.py`)."""
        return self.info / "records"

    @property
    def plain(self) -> Path:
        """The directory of what is kept of plain steps (`plain_steps.py`)."""
        return self.info / "plain"

    @property
    def worker_logs(self) -> Path:
        """The directory of what the workers print."""
        return self.info / "workers"

    @property
    def cancel_note(self) -> Path:
        """The file by which Maestro tells the conductor to cancel the study."""
        return self.root / CANCEL_NOTE

    @property
    def update_note(self) -> Path:
        """The file by which Maestro tells the conductor that its settings have changed (conductor.py:144)."""
        return self.root / ".study.update.lock"

    @property
    def reasons(self) -> Path:
        """The file of reasons, by step record, why it does not run or has ended (`reasons.py`)."""
        return self.info / "reasons.json"

    @property
    def allocations(self) -> Path:
        """The directory of the allocations (`allocations.py`)."""
        return self.info / "allocations"
