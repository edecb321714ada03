"""Broken machines: machines whose worker has left a study because of them, stored for `status` and `explain`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count
from maestro_celery_plugin.files import read_json, write_atomically

__all__ = ["BrokenMachine", "read_broken_machines", "write_broken_machines"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokenMachine:
    """A worker that could not run samples which other machines could run.

    Attributes:
        node: Name of the machine.
        worker: Name of the worker.
        reason: How the samples failed on this machine.
        samples: Number of samples that have failed there in a row, and that run again on other machines.
    """

    node: str
    worker: str
    reason: str
    samples: Count

    @property
    def sentence(self) -> str:
        """The description for a user."""
        return (
            f"Worker '{self.worker}' has left the study, because machine '{self.node}' is broken: {self.samples} "
            f"samples in a row failed there ({self.reason}); they run again on other machines."
        )


def write_broken_machines(path: Path, machines: Sequence[BrokenMachine]) -> None:
    """Store the broken machines of a study.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, json.dumps([dataclasses.asdict(machine) for machine in machines], indent=1))


def read_broken_machines(path: Path) -> list[BrokenMachine]:
    """Return the broken machines of a study; empty without a readable file."""
    try:
        return conversion.from_dict(list[BrokenMachine], read_json(path))
    except (OSError, ValueError):
        return []
