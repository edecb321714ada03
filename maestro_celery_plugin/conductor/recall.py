"""The recall of waiting messages: the coordinator takes them back before it sends their samples again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.ledger.claims import MessageName, owner_text
from maestro_celery_plugin.ledger.entries import COORDINATOR

__all__ = ["Recall"]


class Recall:
    """Takes back messages that no worker has claimed.

    Args:
        records: The step records.
        is_dead: Tells whether a worker counts as dead.
    """

    def __init__(self, records: StepRecords, is_dead: Callable[[str], bool]) -> None:
        self._records, self._is_dead = records, is_dead

    def take_back(self, record: StepRecord, mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Take back the waiting messages about samples, so that no worker can take them any more.

        Args:
            record: The step record.
            mask: Samples without an outcome.

        Returns:
            A mask of the samples in `mask` that no live worker has.

        Raises:
            OSError: the claims cannot be made now.
        """
        waiting = self._records.waiting_messages
        free: np.ndarray[Any, Any] = mask & ~self._records.leased(record)
        owners = self._claim_messages(record, mask)
        # The entry of an owner is not visible yet, or the owner has died before it wrote the entry.
        for name in owners:
            free[name.start : name.stop] = False
        dead = {name for name, owner in owners.items() if self._is_dead(owner)}
        if not dead:
            return free
        self._records.follow(fresh=True)
        for name in dead.intersection(waiting.of_record(record.number)):
            waiting.forget(name)
            free[name.start : name.stop] = mask[name.start : name.stop]
        free &= ~self._records.leased(record)
        return free

    def _claim_messages(self, record: StepRecord, mask: np.ndarray[Any, Any]) -> dict[MessageName, str]:
        """Claim the waiting messages about samples; return the owners of those that workers have claimed."""
        claims, waiting = self._records.claims, self._records.waiting_messages
        claims.prepare(record.number)
        owners = {}
        for name in waiting.of_record(record.number):
            if not mask[name.start : name.stop].any():
                continue
            owner = None if claims.claim(name, owner_text(COORDINATOR)) else claims.owner(name)
            if owner in (None, COORDINATOR):
                waiting.forget(name)
            else:
                owners[name] = owner
        return owners
