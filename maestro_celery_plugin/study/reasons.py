"""Reasons: why step records do not run or have ended; the conductor writes them for `maestro-celery explain`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.files import read_text, write_atomically

__all__ = ["Reason", "read_reasons", "write_reasons"]


@dataclasses.dataclass(frozen=True)
class Reason:
    """The reason why a step record does not run or has ended.

    Attributes:
        text: The reason, as sentences.
        is_failure: Whether the step record cannot continue until a user has corrected the cause.
    """

    text: str
    is_failure: bool = False


def write_reasons(path: Path, reasons: Mapping[str, Reason]) -> None:
    """Store the reasons by name of the step record.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, json.dumps({name: dataclasses.asdict(reason) for name, reason in reasons.items()}, indent=1))


def read_reasons(path: Path) -> dict[str, Reason]:
    """Return the reasons by name of the step record; empty without a readable file."""
    try:
        return conversion.from_json(dict[str, Reason], read_text(path))
    except (OSError, ValueError):
        return {}
