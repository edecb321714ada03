"""The tracker of a step record: what of it still has to run, and which state it is in."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.reader import Entries, Kind
from maestro_celery_plugin.ledger.sample_states import Progress, is_request
from maestro_celery_plugin.states import Outcome, RecordState
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["MAX_RANGES", "Tracker", "ranges_of"]

# A sample that was running when its worker died this often may be the reason. Suspects of a step record
# run one at a time, so that those which only ran beside the culprit are cleared.
SUSPECT_LOSSES = 2
# Ranges that are sent again at one time; the rest follows.
MAX_RANGES = 1000


@dataclasses.dataclass
class Tracker:
    """A step record that Maestro has submitted, or had submitted to an earlier conductor.

    Attributes:
        manifest: The step record.
        relative: The path of its workspace below the study's.
        progress: What the ledger says of its samples.
        groups: The worker groups that serve its task queue.
        active: Whether Maestro awaits it.
        cancelled: Whether it was cancelled.
        cancelled_at: When it was (monotonic).
        told: The state that Maestro knows.
        waiting: Samples that asked to be run again, with the time (monotonic) when they may.
        quiet_since: Since when nothing has moved although a slot was free; None while that is not so.
        failure: Why no worker can run it, when that is so.
        touched: Whether a sample has started since Maestro has submitted it the last time.
        timed_out: Whether its allocations have ended since then, with samples left.
        reason: How they ended, or why it cannot run or was cancelled, in words.
        withdrawn: Groups whose allocation has ended since then, while others work: none is opened for it.
        suspect: The sample that may run now of those which may have taken their workers down.
    """

    manifest: Manifest
    relative: str
    progress: Progress
    groups: tuple[str, ...] = ()
    active: bool = False
    cancelled: bool = False
    cancelled_at: float | None = None
    told: RecordState = RecordState.PENDING
    waiting: dict[int, float] = dataclasses.field(default_factory=dict)
    quiet_since: float | None = None
    failure: str | None = None
    touched: bool = False
    timed_out: bool = False
    reason: str = ""
    withdrawn: set[str] = dataclasses.field(default_factory=set)
    suspect: int | None = None

    def apply(self, entries: Entries) -> None:
        """Take in new entries of this record."""
        self.progress.apply(entries)
        if not self.active:
            return
        self.quiet_since = None
        self.touched = self.touched or bool((entries["kind"] == Kind.STARTED).any())
        for entry in entries[entries["kind"] == Kind.ENDED]:
            if is_request(int(entry["code"])) and self.progress.outcome[entry["start"]] == Outcome.OPEN:
                self._wait(int(entry["start"]), int(entry["code"]))

    def _wait(self, sample: int, code: int) -> None:
        delay_s = self.manifest.retry_delay_s
        if code < 0:  # it could not be started: leave the machine more time from try to try
            delay_s = max(delay_s, min(60.0, 2.0 ** min(6, int(self.progress.requests[sample]))))
        self.waiting[sample] = time.monotonic() + delay_s

    def due(self) -> np.ndarray[Any, Any]:
        """Return the samples whose time has come, as a mask: they have waited, or are the next suspect."""
        now = time.monotonic()
        due = [sample for sample, when in self.waiting.items() if when <= now]
        mask = np.zeros(self.manifest.samples, bool)
        for sample in due:
            del self.waiting[sample]
            mask[sample] = True
        mask &= self.progress.outcome == Outcome.OPEN
        before = self.suspect
        self._hold_back_suspects(mask)
        if self.suspect is not None and self.suspect != before and self.suspect not in self.waiting:
            mask[self.suspect] = True
        return mask

    def _hold_back_suspects(self, mask: np.ndarray[Any, Any]) -> None:
        """Take all suspects out of `mask` but one."""
        progress = self.progress
        if not (progress.losses >= SUSPECT_LOSSES).any():
            return
        suspects = (progress.losses >= SUSPECT_LOSSES) & (progress.outcome == Outcome.OPEN)
        if self.suspect is None or not suspects[self.suspect]:
            self.suspect = int(np.argmax(suspects)) if suspects.any() else None
        if self.suspect is not None:
            suspects[self.suspect] = False
        mask &= ~suspects

    def unheld(self, held: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the samples that are open, not held by a worker and not waiting, as a mask."""
        mask: np.ndarray[Any, Any] = (self.progress.outcome == Outcome.OPEN) & ~held
        if self.waiting:
            mask[list(self.waiting)] = False
        self._hold_back_suspects(mask)
        return mask

    def begin(self, *, cancelled: bool) -> None:
        """Take in that Maestro has submitted the record, or has restarted it."""
        self.active, self.cancelled, self.told = True, cancelled, RecordState.PENDING
        self.touched = self.timed_out = False
        self.withdrawn.clear()
        self.reason = ""

    @property
    def stops_early(self) -> bool:
        """Whether what has not started shall not start: a sample failed hard, or the record was cancelled."""
        return self.cancelled or bool((self.progress.outcome == Outcome.HARD_FAILED).any())

    def state(self, *, held: bool) -> RecordState:
        """Return the state of the record.

        Args:
            held: Whether a live worker holds anything of it.
        """
        if self.failure is not None:
            return RecordState.FAILED
        if self.progress.is_complete or (self.stops_early and not held):
            if (self.progress.outcome == Outcome.HARD_FAILED).any():
                return RecordState.FAILED
            return RecordState.FINISHED if self.progress.is_complete else RecordState.CANCELLED
        if self.timed_out:
            return RecordState.TIMED_OUT
        return RecordState.RUNNING if self.progress.started.any() else RecordState.PENDING


def ranges_of(mask: np.ndarray[Any, Any], bridge: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Return the ranges [start, stop) that cover `mask`, joined across gaps that lie within `bridge`.

    Args:
        mask: Samples that have to be covered.
        bridge: Samples that may be covered, because they have run and will be skipped.
    """
    covered = mask | bridge
    edges = np.flatnonzero(np.diff(covered.astype(np.int8), prepend=0, append=0))
    wanted = np.concatenate([[0], np.cumsum(mask)])
    ranges = []
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if wanted[stop] > wanted[start]:
            inside = np.flatnonzero(mask[start:stop])
            ranges.append((int(start + inside[0]), int(start + inside[-1] + 1)))
    return ranges
