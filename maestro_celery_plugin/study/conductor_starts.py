"""How many conductors of a study have begun so far: a file that survives a power cut, unlike the end of the ledger."""

from __future__ import annotations

from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_text, write_atomically
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["count_start"]


def count_start(plan: StudyPlan) -> int:
    """Return how many conductors have begun before this one, and store that this one has begun.

    Raises:
        OSError: the file cannot be read or written.
    """
    try:
        starts = int(read_text(plan.conductor_starts))
    except (FileNotFoundError, DamagedFileError, ValueError):
        starts = 0
    write_atomically(plan.conductor_starts, str(starts + 1))
    return starts
