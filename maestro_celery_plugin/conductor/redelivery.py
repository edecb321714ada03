"""The redelivery: the coordinator sends samples again whose delay has passed, or whose messages were lost."""

from __future__ import annotations

import logging
import math

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.scaling import Scaling
from maestro_celery_plugin.conductor.step_records import StepRecords

__all__ = ["Redelivery"]

LOGGER = logging.getLogger(__name__)

# Samples without a lease are sent again after a slot was free and the ledger had no new entry for this long.
RESEND_DELAY_S = 2.0


class Redelivery:
    """Sends samples of submitted step records again.

    Args:
        records: The step records.
        publisher: Sends the samples.
        scaling: Knows the free slots.
    """

    def __init__(self, records: StepRecords, publisher: Publisher, scaling: Scaling) -> None:
        self._records, self._publisher, self._scaling = records, publisher, scaling
        self._next_due = math.inf

    @property
    def next_due_s(self) -> float:
        """Seconds until the next delay passes, as seen by the last `send_due`; infinite without a delay."""
        return self._next_due - clock.monotonic()

    def send_due(self) -> None:
        """Send the samples whose delay has passed, and the next suspect."""
        self._next_due, now = math.inf, clock.monotonic()
        for record in self._records:
            if (record.delayed or record.suspect is not None) and record.active and not record.stops_early:
                due = record.due(self._records.leased(record))
                # Those whose delay has passed wait for an entry of their worker.
                later = (when for when in record.delayed.values() if when > now)
                self._next_due = min(self._next_due, min(later, default=math.inf))
                if due:
                    self._publisher.send(record, due)

    def resend_if_slots_stay_free(self) -> None:
        """Send samples without a lease again if slots stay free: the messages of these samples were lost."""
        free_slots = self._scaling.free_slots()
        now, quiet = clock.monotonic(), []
        for record in self._records:
            has_slot = free_slots.accept(record)
            if not (has_slot or record.idle_since is not None) or not self._records.has_work(record):
                continue  # as most step records of a large study: it has no free slot, or has ended
            if record.stops_early or not has_slot:
                record.idle_since = None
            elif record.idle_since is None:
                record.idle_since = now
            elif now - record.idle_since > RESEND_DELAY_S:
                quiet.append(record)
        quiet = [record for record in quiet if record.unassigned(self._records.leased(record))]
        if quiet:
            # Unlike the other calls, include all workers, also those that have left.
            self._records.follow(fresh=True)
        for record in quiet:
            unassigned = record.unassigned(self._records.leased(record))
            if unassigned:
                LOGGER.info("Sending %d samples of '%s' again.", unassigned.count, record.manifest.name)
                self._publisher.send(record, unassigned)
