"""The follower of the ledger in the conductor: new entries, and what they tell about the study as a whole."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Iterator

from maestro_celery_plugin.conductor.new_entries import NewEntries
from maestro_celery_plugin.conductor.quick_failures import QuickFailures
from maestro_celery_plugin.config.groups import has_other_hosts
from maestro_celery_plugin.ledger.entries import COORDINATOR, Entries, Kind, joined
from maestro_celery_plugin.ledger.leases import Leases
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.store import Store
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["LedgerFollower"]

LOGGER = logging.getLogger(__name__)

# Seconds to wait for a damaged part of a ledger file, which its writer may write again (`ledger/reader.py`).
PATIENCE_S = 30.0
# Entries that are collected before they are applied.
_BATCH = 1 << 16
_STARTED = int(Kind.STARTED)


class LedgerFollower:
    """Follows the ledger of a study.

    Args:
        plan: The study.
        is_live: Tells whether a writer may still write.
        must_be_stored: Tells whether a writer may run on this node (`LedgerReader`).
        store: The file operations.

    Attributes:
        leases: The leases of the workers.
        waiting_messages: The messages that no slot has taken.
        quick_failures: The last samples of each worker that have failed early or could not run.
        started_writers: The writers that have started a sample.
    """

    def __init__(
        self, plan: StudyPlan, is_live: Callable[[str], bool], must_be_stored: Callable[[str], bool], store: Store
    ) -> None:
        self._reader = LedgerReader(plan.ledger, plan.number, PATIENCE_S, is_live, must_be_stored, store=store)
        self._reported_damage: set[str] = set()
        self.leases, self.waiting_messages = Leases(), WaitingMessages()
        self.quick_failures = QuickFailures(is_enabled=has_other_hosts(plan.settings))
        self.started_writers: set[str] = set()
        # New entries of writers, and what of them is ready to be applied.
        self._writers: list[str] = []
        self._collected: list[Entries] = []
        self._ready: deque[NewEntries] = deque()

    def poll(self, skip: Container[str] = (), *, fresh: bool = False) -> Iterator[NewEntries]:
        """Yield the new entries, sorted by step record; those of one writer are in order.

        The entries of many writers come together: a look at a thousand workers has a few entries of each of them. What
        the caller has not applied because of an error, the next call yields.

        Args:
            skip: Writers to skip in this call.
            fresh: Whether to include writers that have begun on other nodes a moment ago.

        Raises:
            OSError: a file cannot be read.
        """
        for sentence in self._reader.damage:
            if sentence not in self._reported_damage:
                LOGGER.warning("%s", sentence)
        self._reported_damage.update(self._reader.damage)
        error: OSError | None = None
        count = 0
        try:
            for writer, entries in self._reader.poll(skip, fresh=fresh):
                self._collect(writer, entries)
                count += len(entries)
                if count >= _BATCH:
                    yield from self._by_record()
                    count = 0
        except OSError as cause:
            error = cause
        yield from self._by_record()
        if error is not None:
            raise error

    def poll_own(self) -> Iterator[NewEntries]:
        """Yield the new entries of the coordinator itself, as `poll` does."""
        self._collect(COORDINATOR, self._reader.read(COORDINATOR))
        yield from self._by_record()

    def _collect(self, writer: str, entries: Entries) -> None:
        """Keep entries of one writer for `_by_record`."""
        if len(entries):
            self._writers.append(writer)
            self._collected.append(entries)
        if writer not in self.started_writers and (entries["kind"] == _STARTED).any():
            self.started_writers.add(writer)

    def _by_record(self) -> Iterator[NewEntries]:
        """Apply the collected entries to what does not depend on the step record; yield them."""
        if self._collected:
            entries = joined(self._collected)
            writers, counts = self._writers, [len(part) for part in self._collected]
            self._writers, self._collected = [], []
            self.leases.apply_all(writers, counts, entries)
            self.quick_failures.apply_all(writers, counts, entries)
            self.waiting_messages.apply(entries)
            self._ready.append(NewEntries.sorted(entries))
        while self._ready:
            yield self._ready.popleft()
