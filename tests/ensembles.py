"""Step records, ledger entries and studies on disk, for tests that need no conductor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from msgspec.structs import replace

from maestro_celery_plugin.conductor.new_entries import NewEntries
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings
from maestro_celery_plugin.ledger.entries import ENTRY, Kind
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan

SETTINGS = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings())
RELATIVE = "sim/X.1"


def a_manifest(root: Path = Path("/nowhere"), **changes: Any) -> Manifest:
    """Return the manifest of a step record `sim_X.1`, below a study's root."""
    values: dict[str, Any] = {
        "number": 1,
        "name": "sim_X.1",
        "step": "sim",
        "workspace": str(root / RELATIVE),
        "script": "sim",
        "cmd": "true",
        "restart": "true",
        "shell": "/bin/bash",
        "sampled": True,
        "samples": 10,
        "labels": [],
        "table": None,
        "index_cache": str(root),
        "level_max_dirs": 25,
        "task_queue": "merlin",
        "max_retries": 2,
        "retry_delay_s": 0.0,
    }
    return Manifest(**{**values, **changes})


def states_of(manifest: Manifest) -> SampleStates:
    """Return the states of a step record's samples, before any entry."""
    return SampleStates(manifest.samples, manifest.max_retries)


def a_study(root: Path, **changes: Any) -> tuple[StudyPlan, Manifest]:
    """Make the directory of a study with one step record; its sample table has the index of each row."""
    root.mkdir()
    plan = StudyPlan(root=root, timestamp="20260101-000000", settings=SETTINGS)
    (root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    plan.info.mkdir()
    manifest = a_manifest(root, labels=["V"], table=str(plan.info / "samples.csv"), index_cache=str(plan.info))
    manifest = replace(manifest, **changes)
    (plan.info / "samples.csv").write_text("".join(f"v{i}\n" for i in range(manifest.samples)))
    Path(manifest.workspace).mkdir(parents=True)
    manifest.write(plan.records / RELATIVE / "manifest.json")
    return plan, manifest


def entries(*rows: tuple[Any, ...], record: int = 1) -> np.ndarray[Any, Any]:
    """Return ledger entries from (kind, start, epoch, [code, [stop, [slot]]])."""
    made = np.zeros(len(rows), ENTRY)
    made["record"] = record
    for entry, row in zip(made, rows, strict=True):
        for name, value in zip(("kind", "start", "epoch", "code", "stop", "slot"), row, strict=False):
            entry[name] = value
    return made


def apply_to(record: StepRecord, new: np.ndarray[Any, Any]) -> None:
    """Apply new ledger entries to a step record in the conductor."""
    NewEntries([record.number], np.array([0, len(new)]), new).apply([record])


def span(kind: Kind, start: int, stop: int, epoch: int = 1, slot: int = 0) -> tuple[Any, ...]:
    """Return the row, for `entries`, of an entry about a range."""
    return kind, start, epoch, 0, stop, slot
