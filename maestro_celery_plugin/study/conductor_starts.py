"""How many conductors of a study have begun so far: a file that survives a power cut, unlike the end of the ledger."""

from __future__ import annotations

import contextlib

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_text, write_atomically
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["count_start"]


def count_start(plan: StudyPlan) -> int:
    """Return how many conductors have begun before this one, and store that this one has begun.

    A full disk must not keep `maestro cancel` from its work, so that an error is ignored.
    """
    starts = 0
    with contextlib.suppress(OSError, DamagedFileError, ValueError):
        starts = conversion.from_json(Count, read_text(plan.conductor_starts))
    with contextlib.suppress(OSError):
        write_atomically(plan.conductor_starts, str(starts + 1))
    return starts
