"""Fences: which attempts at samples of a study may not start, and which must end, as the coordinator has said."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.ledger.entries import COORDINATOR, Kind
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.store import STORE, Store

__all__ = ["Fences"]

# Minimum interval between two checks of the coordinator's entries. The entries tell a worker early that samples were
# cancelled; whether a sample may run does not depend on them (`ledger/claims.py`).
CHECK_INTERVAL_S = 0.1
# Seconds after which a damaged file is read once more: the coordinator writes again what a file server has rejected.
_REPAIR_S = 5.0


class Fences:
    """The fences of one study; several threads may use them.

    Args:
        directory: The ledger of the study.
        study: Number of the study.
        store: The file operations.
    """

    def __init__(self, directory: Path, study: int, store: Store = STORE) -> None:
        self._directory, self._study, self._store = directory, study, store
        self._lock = threading.Lock()
        self._checked_at, self._read_again_at = float("-inf"), math.inf
        self._spans = _Spans()
        self._reader = self._new_reader()
        self._damaged = 0

    def is_invalid(self, record: int, epoch: int, sample: int) -> bool:
        """Tell whether a sample must not start: the coordinator has sent or cancelled it under a later epoch.

        The coordinator sends a sample again only if this worker does not have it, or counts as dead. An attempt that
        must end must not start either: a worker that counts as dead may have passed the rest of its range on.
        """
        return self.must_end(record, epoch, sample) or self._spans.is_sent_again(record, epoch, sample)

    def must_end(self, record: int, epoch: int, sample: int) -> bool:
        """Tell whether a running attempt must end: the coordinator has cancelled it, or has declared it lost.

        If the coordinator sends a sample again, the attempt continues until the coordinator declares it lost.
        """
        self._follow()
        return self._spans.must_end(record, epoch, sample)

    def _follow(self) -> None:
        """Read new entries of the coordinator; NFS guarantees to show them only after an open (nfs(5))."""
        now = clock.monotonic()
        if now - self._checked_at < CHECK_INTERVAL_S or not self._lock.acquire(blocking=False):
            return
        try:
            self._checked_at = now
            self._spans.read(self._reader)
            if now >= self._read_again_at:
                self._read_again()
            elif self._reader.damaged > self._damaged:
                self._damaged, self._read_again_at = self._reader.damaged, now + _REPAIR_S
        except OSError:
            return  # the entries are not needed now, and can be read later
        finally:
            self._lock.release()

    def _new_reader(self) -> LedgerReader:
        return LedgerReader(self._directory, self._study, store=self._store)

    def _read_again(self) -> None:
        """Read the file from its beginning, with what was damaged when it was read first."""
        spans, reader = _Spans(), self._new_reader()
        spans.read(reader)
        self._spans, self._reader = spans, reader
        self._damaged, self._read_again_at = reader.damaged, math.inf


class _Spans:
    """For each step record, (epoch, start, stop) of the samples that were sent, and of those that must end."""

    def __init__(self) -> None:
        self._sent: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self._ended: dict[int, list[tuple[int, int, int]]] = defaultdict(list)

    def read(self, reader: LedgerReader) -> None:
        """Apply the new entries of the coordinator."""
        for entries in reader.parts(COORDINATOR):
            for entry in entries:
                self._apply(entry)

    def _apply(self, entry: Any) -> None:
        kind, record, epoch = int(entry["kind"]), int(entry["record"]), int(entry["epoch"])
        start, stop = int(entry["start"]), int(entry["stop"])
        if kind in (Kind.SENT, Kind.CANCELLED):
            self._sent[record].append((epoch, start, stop))
        if kind == Kind.CANCELLED:
            self._ended[record].append((epoch, start, stop))
        elif kind in (Kind.LOST, Kind.INVALID):
            stop = start + 1 if kind == Kind.LOST else stop
            self._ended[record].append((epoch + 1, start, stop))

    def is_sent_again(self, record: int, epoch: int, sample: int) -> bool:
        """Tell whether the coordinator has sent or cancelled a sample under a later epoch."""
        for sent, start, stop in reversed(self._sent.get(record, ())):
            if sent <= epoch:  # epochs never decrease, so that the later epochs are at the end
                return False
            if start <= sample < stop:
                return True
        return False

    def must_end(self, record: int, epoch: int, sample: int) -> bool:
        """Tell whether the coordinator has cancelled an attempt, or has declared it lost."""
        return any(end > epoch and start <= sample < stop for end, start, stop in self._ended.get(record, ()))
