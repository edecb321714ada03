"""Reasons: why step records do not run or have ended; the conductor writes them for `maestro-celery explain`.

The coordinator rewrites its file with the reasons of all step records that it knows. A step record that could not be
submitted is unknown to it, so that the adapter has a file of its own for these: the refusals.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.files import read_text, write_atomically

__all__ = ["Reason", "read_reasons", "store_failure", "store_refusal", "write_reasons"]


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


def store_refusal(path: Path, name: str, problem: str | None) -> None:
    """Store why a step record could not be submitted; None after a submission, which removes the refusal.

    Raises:
        OSError: the file cannot be written.
    """
    store_failure(path, name, None if problem is None else f"It could not be submitted: {problem}")


def store_failure(path: Path, name: str, text: str | None) -> None:
    """Store why a step record that is unknown to the coordinator has failed, as sentences; None removes the reason.

    Raises:
        OSError: the file cannot be written.
    """
    refusals = read_reasons(path)
    if text is None and name not in refusals:
        return
    refusals.pop(name, None)
    if text is not None:
        refusals[name] = Reason(text, is_failure=True)
    write_reasons(path, refusals)


def read_reasons(path: Path) -> dict[str, Reason]:
    """Return the reasons by name of the step record; empty without a readable file."""
    try:
        return conversion.from_json(dict[str, Reason], read_text(path))
    except (OSError, ValueError):
        return {}
