"""What this process knows of ensembles, without an import that a study without an ensemble would not need."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maestro_celery_plugin.conductor.coordinator import Coordinator

__all__ = ["collect_garbage_again", "coordinators_here", "is_ensemble"]

# More characters than `batch.info` has, which a file system or a user may have made larger than the memory.
_LIMIT = 1 << 24


def is_ensemble(directory: Path) -> bool:
    """Tell whether a directory is that of an ensemble study; True if it cannot be read, so that the user is told.

    A step of a study without an ensemble may make a directory ``merlin_info``.
    """
    try:
        if not (directory / "merlin_info").is_dir():
            return False
        with (directory / "batch.info").open(errors="replace") as file:
            batch = file.read(_LIMIT)
    except OSError:  # without `batch.info`, the launch of an ensemble was interrupted
        return True
    return re.search(r"^type: (?!celery\b)", batch, re.MULTILINE) is None


def collect_garbage_again() -> None:
    """Search for garbage again, if `specification.py` has stopped this for the launch, but not among what is there."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def coordinators_here() -> list[Coordinator]:
    """Return the coordinators of this process; a process without an ensemble has not imported their module."""
    module = sys.modules.get("maestro_celery_plugin.conductor.coordinator")
    return module.active() if module else []
