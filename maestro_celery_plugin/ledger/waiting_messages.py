"""Waiting messages: those that were sent and that no slot has taken."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.claims import MessageName
from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.ledger.sample_set import SampleSet

__all__ = ["WaitingMessages"]

Array = np.ndarray[Any, Any]

_START, _STOP = operator.itemgetter(2), operator.itemgetter(3)
_IS_SENT = kind_mask(Kind.SENT, Kind.PASSED)
_IS_RELEVANT = _IS_SENT | kind_mask(Kind.TAKEN, Kind.KEPT)


class WaitingMessages:
    """The messages that wait in the task queues, or were lost there, by step record."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[tuple[int, ...]]] = defaultdict(set)
        # Messages that a slot has taken, although the entry about their sending is not visible yet.
        self._taken_early: set[tuple[int, ...]] = set()

    def apply(self, entries: Entries) -> None:
        """Apply entries of one writer, in their order."""
        places = np.flatnonzero(_IS_RELEVANT[entries["kind"]])
        columns = (entries[field][places].tolist() for field in MessageName._fields[:-1])
        # Plain tuples, which are equal to the named ones: to make those takes longer than all else here.
        names = zip(*columns, entries["code"][places].tolist(), strict=True)
        for is_sent, name in zip(_IS_SENT[entries["kind"][places]].tolist(), names, strict=True):
            if is_sent:
                self._send(name)
            else:
                self._take(name)

    def _send(self, name: tuple[int, ...]) -> None:
        if self._taken_early and name in self._taken_early:
            self._taken_early.remove(name)
        else:
            self._waiting[name[0]].add(name)

    def _take(self, name: tuple[int, ...]) -> None:
        waiting = self._waiting[name[0]]
        if name in waiting:
            waiting.remove(name)
        else:
            self._taken_early.add(name)

    def of_record(self, record: int, within: SampleSet | None = None) -> list[MessageName]:
        """Return the waiting messages about a step record; `within` leaves out those without one of these samples."""
        names: Collection[tuple[int, ...]] = self._waiting.get(record, ())
        if within is not None:
            starts, stops = _edges(names)
            names = list(itertools.compress(names, within.meeting(starts, stops).tolist()))
        return list(map(MessageName._make, names))

    def forget(self, name: MessageName) -> None:
        """Remove a message, which no slot can take any more."""
        self._waiting[name.record].discard(name)

    def samples(self, record: int, within: SampleSet | None = None) -> SampleSet:
        """Return the samples of a step record about which a message waits; `within` is that of `of_record`."""
        starts, stops = _edges(self._waiting.get(record, ()))
        if within is not None:
            meets = within.meeting(starts, stops)
            starts, stops = starts[meets], stops[meets]
        return SampleSet.of_edges(starts, stops)


def _edges(names: Collection[tuple[int, ...]]) -> tuple[Array, Array]:
    """Return the starts and the stops of messages, which may be anything that a file can hold."""
    starts, stops = (np.fromiter(map(edge, names), np.uint64, len(names)) for edge in (_START, _STOP))
    return starts, stops
