"""The recall of waiting messages: the coordinator takes them back before it sends their samples again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.ledger.claims import MessageName, owner_text
from maestro_celery_plugin.ledger.entries import COORDINATOR
from maestro_celery_plugin.ledger.sample_set import SampleSet

__all__ = ["Recall"]

LOGGER = logging.getLogger(__name__)

# A worker writes an entry right after it has claimed a message; the entry is visible within seconds, also on NFS.
CLAIM_LIMIT_S = 60.0


class Recall:
    """Takes back messages that no worker has claimed.

    Args:
        records: The step records.
        is_dead: Tells whether a worker counts as dead.
        end_worker: Ends a worker.
    """

    def __init__(self, records: StepRecords, is_dead: Callable[[str], bool], end_worker: Callable[[str], None]) -> None:
        self._records, self._is_dead, self._end_worker = records, is_dead, end_worker
        # Claims of live workers without an entry in the ledger, with the time of the first look (monotonic).
        self._claimed_at: dict[MessageName, float] = {}

    def take_back(self, record: StepRecord, samples: SampleSet) -> SampleSet:
        """Take back the waiting messages about samples, so that no worker can take them any more.

        Args:
            record: The step record.
            samples: Samples without an outcome.

        Returns:
            Those of them that no live worker has.

        Raises:
            OSError: the claims cannot be made now.
        """
        waiting = self._records.waiting_messages
        owners = self._claim_messages(record, samples)
        # The entry of an owner is not visible yet, or the owner has died before it wrote the entry.
        claimed = SampleSet.of_ranges((name.start, name.stop) for name in owners)
        free = samples - self._records.leased(record) - claimed
        dead = {name for name, owner in owners.items() if self._is_dead(owner)}
        overdue = self._overdue(owners.keys() - dead)
        if not dead and not overdue:
            return free
        self._records.follow(fresh=True)
        still_waiting = set(waiting.of_record(record.number))
        for name in overdue & still_waiting:
            LOGGER.error(
                "Worker '%s' has claimed samples %d to %d of '%s', but does not run them; it is ended.",
                *(owners[name], name.start, name.stop - 1, record.manifest.name),
            )
            self._end_worker(owners[name])
        for name in dead & still_waiting:
            free |= self._free(record, name) & samples
        return free - self._records.leased(record)

    def take_back_suspects(self) -> None:
        """Take back the messages of an earlier conductor about suspects, so that this one gives each suspect its turn.

        Raises:
            OSError: the claims cannot be made now.
        """
        names, left = set(self._records.suspect_messages), []
        for number in {name.record for name in names}:
            record = self._records.by_number(number)
            if record is not None:
                self.take_back(record, record.suspects())
                # A message about samples that are no suspects any more needs no recall.
                waiting = self._records.waiting_messages.of_record(number, record.suspects())
                left += [name for name in waiting if name in names]
        self._records.suspect_messages = left

    def _free(self, record: StepRecord, name: MessageName) -> SampleSet:
        """Forget a message that a dead worker has claimed; return its samples that no worker has."""
        self._records.waiting_messages.forget(name)
        samples = SampleSet.of_range(name.start, name.stop) - self._records.leased(record)
        # The worker may have written entries that become visible when another worker has the samples.
        self._records.invalidate_attempts(record, samples, name.epoch)
        return samples

    def _overdue(self, names: Set[MessageName]) -> set[MessageName]:
        """Return the messages that a live worker has claimed long ago, although the ledger does not show it.

        Args:
            names: The messages that a live worker has claimed, and that wait according to the ledger.
        """
        now = clock.monotonic()
        self._claimed_at = {
            name: since
            for name, since in self._claimed_at.items()
            if name in names or now - since < 2 * CLAIM_LIMIT_S  # of another step record
        }
        return {name for name in names if now - self._claimed_at.setdefault(name, now) > CLAIM_LIMIT_S}

    def _claim_messages(self, record: StepRecord, samples: SampleSet) -> dict[MessageName, str]:
        """Claim the waiting messages about samples; return the owners of those that workers have claimed."""
        claims, waiting = self._records.claims, self._records.waiting_messages
        claims.prepare(record.number)
        owners = {}
        for name in waiting.of_record(record.number, samples):
            owner = None if claims.claim(name, owner_text(COORDINATOR)) else claims.owner(name)
            if owner in (None, COORDINATOR):
                waiting.forget(name)
            else:
                owners[name] = owner
        return owners
