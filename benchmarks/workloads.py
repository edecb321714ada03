"""Workloads: null samples, and the studies in which the plugin and Merlin run them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import yaml

__all__ = ["NullSamples", "PlainStudy", "Study", "write_table"]


@dataclasses.dataclass(frozen=True)
class NullSamples:
    """Samples that print their number, each with a script in its own directory.

    Attributes:
        count: The number of samples.
        slots: Number of samples that run at the same time.
        directory: An empty directory, for the results and for other files of the tool.
    """

    count: int
    slots: int
    directory: Path

    @property
    def results(self) -> Path:
        """The parent directory of the directories of the samples."""
        return self.directory / "results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study of steps with one sample table.

    Attributes:
        table: The sample table, with one column.
        cmd: Command of each step.
        steps: The number of steps.
        worker_args: Options of the workers.
        results: The workspace, for Merlin, which has no option for it.
        closing: Command of a last step without samples.
        batch: The batch block.
        sync_ledger: Whether workers wait until the record of finished samples is on the disk.
        values: Number of values of the parameter P, and so of step records per step; 0 without parameters.
        is_chain: Whether each step depends on the previous one.
    """

    table: Path
    worker_args: str
    cmd: str = "echo $(MERLIN_SAMPLE_ID)"
    steps: int = 1
    results: Path | None = None
    closing: str | None = None
    batch: dict[str, Any] | None = None
    sync_ledger: bool = False
    values: int = 0
    is_chain: bool = True

    def write(self, path: Path) -> None:
        """Write the specification."""
        specification: dict[str, Any] = {
            "description": {"name": "benchmark", "description": "null samples"},
            "study": self._steps(),
            "merlin": {
                "resources": {"workers": {"slots": {"args": self.worker_args, "steps": ["all"]}}},
                "samples": {"file": str(self.table), "column_labels": ["VALUE"]},
            },
        }
        if self.sync_ledger:
            specification["merlin"]["resources"]["sync_ledger"] = True
        if self.values:
            specification["global.parameters"] = _parameters(self.values)
        if self.batch:
            specification["batch"] = self.batch
        if self.results:
            specification["env"] = {"variables": {"OUTPUT_PATH": str(self.results)}}
        path.write_text(yaml.safe_dump(specification, sort_keys=False))

    def _steps(self) -> list[dict[str, Any]]:
        commands = [(f"null{number}", self.cmd) for number in range(self.steps)]
        if self.closing:
            commands.append(("closing", self.closing))
        steps, before = [], None
        for name, cmd in commands:
            run = {"cmd": cmd, **({"depends": [f"{before}_*"]} if before else {})}
            steps.append({"name": name, "description": "a null step", "run": run})
            before = name if self.is_chain else None
        return steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainStudy:
    """A study of independent steps without an ensemble, which plain Maestro runs in its conductor.

    Attributes:
        cmd: Command of each step.
        values: Number of values of the parameter P, and so of step records per step; 0 without parameters.
        steps: The number of steps.
    """

    cmd: str
    values: int = 0
    steps: int = 1

    def write(self, path: Path) -> None:
        """Write the specification."""
        specification: dict[str, Any] = {
            "description": {"name": "benchmark", "description": "steps without an ensemble"},
            "study": [
                {"name": f"plain{number}", "description": "a step", "run": {"cmd": self.cmd}}
                for number in range(self.steps)
            ],
        }
        if self.values:
            specification["global.parameters"] = _parameters(self.values)
        path.write_text(yaml.safe_dump(specification, sort_keys=False))


def _parameters(count: int) -> dict[str, Any]:
    return {"P": {"values": list(range(count)), "label": "P.%%"}}


def write_table(path: Path, rows: int) -> Path:
    """Write a sample table of one column, as `.npy` or `.csv`; return its path."""
    values = np.arange(rows) / 8
    if path.suffix == ".npy":
        np.save(path, values[:, None])
    else:
        path.write_text("\n".join(map(str, values.tolist())) + "\n")
    return path
