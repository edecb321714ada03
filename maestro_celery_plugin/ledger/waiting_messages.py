"""Waiting messages: those that were sent and that no slot has taken."""

from __future__ import annotations

from collections import defaultdict

from maestro_celery_plugin.ledger.claims import MessageName
from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.ledger.sample_set import SampleSet

__all__ = ["WaitingMessages"]

# The fields of an entry that make up the name of a message, in the order of `MessageName`.
_NAME_FIELDS = ("record", "epoch", "start", "stop", "code")
_SENT = (Kind.SENT, Kind.PASSED)
_IS_RELEVANT = kind_mask(*_SENT, Kind.TAKEN, Kind.KEPT)


class WaitingMessages:
    """The messages that wait in the task queues, or were lost there, by step record."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[MessageName]] = defaultdict(set)
        # Messages that a slot has taken, although the entry about their sending is not visible yet.
        self._taken_early: set[MessageName] = set()

    def apply(self, entries: Entries) -> None:
        """Apply entries of one writer, in their order."""
        relevant = entries[_IS_RELEVANT[entries["kind"]]]
        columns = (relevant[field].tolist() for field in ("kind", *_NAME_FIELDS))
        for kind, *fields in zip(*columns, strict=True):
            name = MessageName(*fields)
            if kind in _SENT:
                self._send(name)
            else:
                self._take(name)

    def _send(self, name: MessageName) -> None:
        if name in self._taken_early:
            self._taken_early.remove(name)
        else:
            self._waiting[name.record].add(name)

    def _take(self, name: MessageName) -> None:
        if name in self._waiting[name.record]:
            self._waiting[name.record].remove(name)
        else:
            self._taken_early.add(name)

    def of_record(self, record: int) -> list[MessageName]:
        """Return the waiting messages about a step record."""
        return list(self._waiting[record])

    def forget(self, name: MessageName) -> None:
        """Remove a message, which no slot can take any more."""
        self._waiting[name.record].discard(name)

    def samples(self, record: int) -> SampleSet:
        """Return the samples of a step record about which a message waits."""
        return SampleSet.of_ranges((name.start, name.stop) for name in self._waiting[record])
