"""How many conductors of a study have begun so far: a file that survives a power cut, unlike the end of the ledger."""

from __future__ import annotations

import secrets

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_text, write_atomically
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["count_start"]

# Each of this many successive conductors leaves out another number of epochs (`SampleStates.skip_epochs`).
_NUMBERS = 100


def count_start(plan: StudyPlan) -> int:
    """Return how many conductors have begun before this one, and store that this one has begun.

    An error of the file, such as a full disk, must not keep `maestro cancel` from its work. This conductor then has a
    number at random, because the next one may read the same number as this one.
    """
    try:
        starts = _read(plan)
        write_atomically(plan.conductor_starts, str(starts + 1))
    except OSError:
        return _at_random()
    return starts


def _read(plan: StudyPlan) -> int:
    try:
        return conversion.from_json(Count, read_text(plan.conductor_starts))
    except FileNotFoundError:
        return 0
    except (DamagedFileError, ValueError):
        return _at_random()


def _at_random() -> int:
    """Return a number that is not 0: that of a first conductor."""
    return 1 + int(secrets.token_hex(4), 16) % (_NUMBERS - 1)
