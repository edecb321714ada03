"""Progress of a step record: what the ledger says of each of its samples.

The same class serves the coordinator (fed with what is new), a worker that wants to know whether a
sample may run, and the status command (fed with everything at once).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger import Entries, Kind
from maestro_celery_plugin.manifest import Manifest
from maestro_celery_plugin.states import ExitCode, Outcome, outcome_of

__all__ = ["POISON_LIMIT", "UNREADABLE", "Counts", "Progress", "cannot_run_code", "is_request"]

# A sample that has taken its worker down this often is failed.
POISON_LIMIT = 5

# Codes of samples that could not be started lie below those of signals.
_CANNOT_RUN = -1000


# Code of a sample whose row of the table cannot be read, because the table has changed.
UNREADABLE = -999


def cannot_run_code(number: int) -> int:
    """Return the code that the ledger has for a sample that could not be started for an `errno`."""
    return _CANNOT_RUN - number


def is_request(code: int) -> bool:
    """Tell whether a code makes the sample run again: it asked for it, or could not be started."""
    return code in (ExitCode.RESTART, ExitCode.RETRY) or code <= _CANNOT_RUN


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many samples are in which state; they add up to `total`."""

    total: int
    finished: int
    failed: int
    running: int
    pending: int


class Progress:
    """State of each sample of one step record.

    Attributes:
        outcome: `Outcome` of each sample.
        code: Exit code of its last attempt.
        duration_us: Duration of its last attempt that ended, in microseconds.
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
        self.duration_us = np.zeros(count, np.uint32)
        self.started = np.zeros(count, np.uint32)
        self.ended = np.zeros(count, np.uint32)
        self.requests = np.zeros(count, np.uint16)
        self.losses = np.zeros(count, np.uint8)
        self._reopened = np.zeros(0, np.uint32)
        self.epoch = 0
        self.cancelled_epoch = 0

    def apply(self, entries: Entries) -> None:
        """Take in entries of this record; entries of different writers may come in any order."""
        entries = entries[entries["start"] < len(self.outcome)]
        kinds = entries["kind"]
        sent = entries[(kinds == Kind.SENT) | (kinds == Kind.CANCELLED)]
        if len(sent):
            self.epoch = max(self.epoch, int(sent["epoch"].max()))
            cancelled = sent[sent["kind"] == Kind.CANCELLED]
            self.cancelled_epoch = max(self.cancelled_epoch, *map(int, cancelled["epoch"]), 0)
        self._reopen(entries[kinds == Kind.REOPENED])
        self._advance(self.started, entries[kinds == Kind.STARTED])
        self._advance(self.ended, entries[kinds == Kind.STOPPED])
        self._lose(entries[kinds == Kind.LOST])
        self._end(entries[kinds == Kind.ENDED])

    @staticmethod
    def _advance(epochs: np.ndarray[Any, Any], entries: Entries) -> None:
        np.maximum.at(epochs, entries["start"], entries["epoch"])

    def _reopen(self, entries: Entries) -> None:
        if not len(entries):
            return
        if not len(self._reopened):
            self._reopened = np.zeros(len(self.outcome), np.uint32)
        self._advance(self._reopened, entries)
        samples = entries["start"]
        samples = samples[self.ended[samples] <= self._reopened[samples]]  # the rest has run again since
        self.outcome[samples] = Outcome.OPEN
        self.requests[samples] = 0
        self.losses[samples] = 0
        self.epoch = max(self.epoch, int(entries["epoch"].max()))

    def _lose(self, entries: Entries) -> None:
        entries = self._not_void(entries)
        if not len(entries):
            return
        self._advance(self.ended, entries)
        np.add.at(self.losses, entries["start"], 1)
        self._decide(entries["start"], self.losses >= POISON_LIMIT)

    def _end(self, entries: Entries) -> None:
        entries = self._not_void(entries)
        if not len(entries):
            return
        entries = entries[np.argsort(entries["epoch"], kind="stable")]
        samples = entries["start"]
        self._advance(self.ended, entries)
        self.code[samples] = entries["code"]
        self.duration_us[samples] = np.minimum(entries["stop"], np.iinfo(np.uint32).max)
        for code in np.unique(entries["code"]):
            affected = samples[entries["code"] == code]
            if is_request(int(code)):
                np.add.at(self.requests, affected, 1)
                self._decide(affected, self.requests > self._max_retries)
            else:
                undecided = affected[self.outcome[affected] == Outcome.OPEN]
                self.outcome[undecided] = Outcome.HARD_FAILED if code == UNREADABLE else outcome_of(int(code))

    def _not_void(self, entries: Entries) -> Entries:
        if not len(self._reopened):
            return entries
        kept: Entries = entries[entries["epoch"] > self._reopened[entries["start"]]]
        return kept

    def _decide(self, samples: np.ndarray[Any, Any], exhausted: np.ndarray[Any, Any]) -> None:
        """Fail those of `samples` that are open and have used up their chances."""
        over = samples[exhausted[samples] & (self.outcome[samples] == Outcome.OPEN)]
        self.outcome[over] = Outcome.FAILED

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
