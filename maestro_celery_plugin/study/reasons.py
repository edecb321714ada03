"""Reasons: why step records do not run or have ended, in words, as the conductor leaves them for `explain`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from maestro_celery_plugin.study.manifest import write_atomically

__all__ = ["Reason", "read_reasons", "write_reasons"]


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a step record does not run, or has ended.

    Attributes:
        text: In words.
        is_failure: Whether it cannot go on until something has been mended.
    """

    text: str
    is_failure: bool = False


def write_reasons(path: Path, reasons: Mapping[str, Reason]) -> None:
    """Store the reasons by the name of the step record.

    Raises:
        OSError: they cannot be written.
    """
    write_atomically(path, json.dumps({name: dataclasses.asdict(reason) for name, reason in reasons.items()}, indent=1))


def read_reasons(path: Path) -> dict[str, Reason]:
    """Return the reasons by the name of the step record; none when there is no file that can be read."""
    try:
        return {name: Reason(**values) for name, values in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError):
        return {}
