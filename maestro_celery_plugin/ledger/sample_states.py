"""Progress of a step record: what the ledger says of each of its samples.

The same class serves the coordinator (fed with what is new), a worker that wants to know whether a
sample may run, and the status command (fed with everything at once).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.reader import Entries, Kind
from maestro_celery_plugin.states import ExitCode, Outcome, outcome_of
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["BROKEN", "POISON_LIMIT", "UNREADABLE", "Counts", "Progress", "cannot_run_code", "is_request"]

# A sample that has taken its worker down this often is failed.
POISON_LIMIT = 5

# An epoch and an outcome in one number, which compares by epoch first.
_BITS, _OUTCOME = np.uint64(3), np.uint64(7)

# Codes of samples that could not be started lie below those of signals.
_CANNOT_RUN = -1000
# Code of a sample whose row of the table cannot be read, because the table has changed.
UNREADABLE = -999
# Code of a sample at which the worker itself has failed; its log has the traceback.
BROKEN = -998


def cannot_run_code(number: int) -> int:
    """Return the code that the ledger has for a sample that could not be started for an `errno`."""
    return _CANNOT_RUN - number


def is_request(code: int) -> bool:
    """Tell whether a code makes the sample run again: it asked for it, or could not be started."""
    return code in (ExitCode.RESTART, ExitCode.RETRY) or code <= _CANNOT_RUN


def _are_requests(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`is_request` of each code, as a mask."""
    mask: np.ndarray[Any, Any] = (codes == ExitCode.RESTART) | (codes == ExitCode.RETRY) | (codes <= _CANNOT_RUN)
    return mask


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many samples are in which state; they add up to `total`."""

    total: int
    finished: int
    failed: int
    running: int
    pending: int


def _advance(epochs: np.ndarray[Any, Any], entries: Entries, mask: np.ndarray[Any, Any]) -> None:
    """Raise epochs of samples to those of some of the entries."""
    np.maximum.at(epochs, entries["start"][mask].astype(np.intp), entries["epoch"][mask])


class Progress:
    """State of each sample of one step record.

    It is the same whatever the order in which entries of different writers come. Of several attempts that
    have ended, the last one decides: that under the highest epoch. Epochs count from 1.

    Attributes:
        outcome: `Outcome` of each sample.
        code: Exit code of its last attempt that ended.
        duration_us: Duration of that attempt, in microseconds.
        started: Epoch of its last attempt; 0 when it never started.
        ended: Epoch of its last attempt that ended or was lost.
        requests: How often it asked to be run again.
        losses: How often it was running when its worker was lost.
        epoch: The highest epoch under which anything was sent or cancelled.
    """

    def __init__(self, manifest: Manifest) -> None:
        count = manifest.samples
        self._max_retries = manifest.max_retries
        self.outcome = np.zeros(count, np.uint8)
        self.code = np.zeros(count, np.int32)
        self.duration_us = np.zeros(count, np.uint64)
        self.started = np.zeros(count, np.uint32)
        self.ended = np.zeros(count, np.uint32)
        self.requests = np.zeros(count, np.uint32)
        self.losses = np.zeros(count, np.uint32)
        # Epoch and code of the last attempt that ended, and epoch and outcome of the last that had one.
        self._last = np.zeros(count, np.uint64)
        self._final = np.zeros(count, np.uint64)
        # Up to which epoch outcomes are void; what has to be counted anew when that changes.
        self._reopened = np.zeros(0, np.uint32)
        self._counted: list[Entries] = []
        self.epoch = 0
        self.cancelled_epoch = 0

    def apply(self, entries: Entries) -> None:
        """Take in entries of this record; entries of different writers may come in any order."""
        inside = entries["start"] < len(self.outcome)
        if not inside.all():
            entries = entries[inside]
        kinds = entries["kind"]
        sent = entries[(kinds == Kind.SENT) | (kinds == Kind.CANCELLED) | (kinds == Kind.REOPENED)]
        if len(sent):
            self.epoch = max(self.epoch, int(sent["epoch"].max()))
            cancelled = sent[sent["kind"] == Kind.CANCELLED]
            self.cancelled_epoch = max(self.cancelled_epoch, *map(int, cancelled["epoch"]), 0)
        ended = kinds == Kind.ENDED
        lost = kinds == Kind.LOST
        _advance(self.started, entries, kinds == Kind.STARTED)
        _advance(self.ended, entries, ended | lost | (kinds == Kind.STOPPED))
        self._end(entries, ended)
        self._count(entries[lost | (ended & _are_requests(entries["code"]))])
        self._reopen(entries[kinds == Kind.REOPENED])

    def _end(self, entries: Entries, ended: np.ndarray[Any, Any]) -> None:
        if not ended.any():
            return
        # Columns, not entries: copying whole entries takes ten times as long.
        samples, codes = entries["start"][ended].astype(np.intp), entries["code"][ended]
        epochs, durations = entries["epoch"][ended].astype(np.uint64), entries["stop"][ended]
        # Codes lie above -2**31: both parts compare as numbers.
        last = epochs << np.uint64(32) | (codes.astype(np.int64) + 2**31).astype(np.uint64)
        np.maximum.at(self._last, samples, last)
        is_last = last == self._last[samples]
        self.code[samples[is_last]] = codes[is_last]
        self.duration_us[samples[is_last]] = durations[is_last]
        for code in np.unique(codes):
            if not is_request(int(code)):
                outcome = Outcome.HARD_FAILED if code in (UNREADABLE, BROKEN) else outcome_of(int(code))
                affected = codes == code
                np.maximum.at(self._final, samples[affected], epochs[affected] << _BITS | np.uint64(outcome))
        self._decide(samples)

    def _count(self, entries: Entries) -> None:
        """Take in losses and requests to be run again."""
        if len(entries):
            self._counted.append(entries)
            self._add(entries)
            self._decide(entries["start"].astype(np.intp))

    def _add(self, entries: Entries) -> None:
        if len(self._reopened):
            entries = entries[entries["epoch"] > self._reopened[entries["start"]]]
        lost = (entries["kind"] == Kind.LOST) & (entries["code"] == 0)
        np.add.at(self.losses, entries["start"][lost], 1)
        np.add.at(self.requests, entries["start"][entries["kind"] == Kind.ENDED], 1)

    def _reopen(self, entries: Entries) -> None:
        if not len(entries):
            return
        if not len(self._reopened):
            self._reopened = np.zeros(len(self.outcome), np.uint32)
        _advance(self._reopened, entries, np.ones(len(entries), bool))
        self.losses[:] = self.requests[:] = 0
        for counted in self._counted:
            self._add(counted)
        self._decide(entries["start"].astype(np.intp))

    def _decide(self, samples: np.ndarray[Any, Any]) -> None:
        """Set the outcome of samples: that of an attempt, or failure when they have used up their chances."""
        final = self._final[samples]
        outcome = (final & _OUTCOME).astype(np.uint8)
        if len(self._reopened):
            outcome[final >> _BITS <= self._reopened[samples]] = Outcome.OPEN
        exhausted = (self.losses[samples] >= POISON_LIMIT) | (self.requests[samples] > self._max_retries)
        outcome[exhausted & (outcome == Outcome.OPEN)] = Outcome.FAILED
        self.outcome[samples] = outcome

    def runs_restart(self, sample: int) -> bool:
        """Tell whether the next attempt at a sample runs `restart` instead of `cmd`.

        It does when the sample was started and its last attempt was lost, or ended otherwise than by asking
        for `cmd` or by not starting at all.
        """
        if self._last[sample] >> np.uint64(32) < self.started[sample]:
            return True
        code = int(self.code[sample])
        return bool(self.started[sample]) and code != ExitCode.RETRY and code > BROKEN

    @property
    def is_complete(self) -> bool:
        """Whether every sample has an outcome."""
        return bool((self.outcome != Outcome.OPEN).all())

    @property
    def unended(self) -> np.ndarray[Any, Any]:
        """Open samples with an attempt that has begun and not ended, as a mask."""
        mask: np.ndarray[Any, Any] = (self.started > self.ended) & (self.outcome == Outcome.OPEN)
        return mask

    def counts(self) -> Counts:
        """Count the samples by state; an attempt without an end counts as running."""
        finished = int(((self.outcome == Outcome.FINISHED) | (self.outcome == Outcome.STOPPED_STUDY)).sum())
        open_samples = int((self.outcome == Outcome.OPEN).sum())
        running = int(self.unended.sum())
        total = len(self.outcome)
        return Counts(
            total=total,
            finished=finished,
            failed=total - finished - open_samples,
            running=running,
            pending=open_samples - running,
        )
