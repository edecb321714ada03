"""The states of the samples of one step record, from the entries of the ledger.

Two parts of the package share the class: the coordinator, which applies new entries and decides which samples run
again; and the status command, which applies all entries at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.attempt_counts import AttemptCounts, advance
from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.states import (
    BROKEN,
    ExitCode,
    Outcome,
    RunMode,
    cannot_run_code,
    outcome_of,
)

__all__ = ["Counts", "SampleStates"]

# Bits and mask of the outcome in a number that combines an epoch and an outcome; a higher epoch makes a higher number.
_OUTCOME_BITS, _OUTCOME_MASK = np.uint64(3), np.uint64(7)
# Numbers up to this are codes of starts that failed (`states.cannot_run_code`). Only workers of release 0.1 record them
# as ends of attempts; this release records `Kind.NOT_RUN`.
_CANNOT_RUN = cannot_run_code(0)
# Kinds and outcomes by short names: to look up a member of an enumeration takes as long as to compare a short array.
_SENT, _CANCELLED, _RERUN, _STARTED = int(Kind.SENT), int(Kind.CANCELLED), int(Kind.RERUN), int(Kind.STARTED)
_ENDED, _STOPPED, _LOST = int(Kind.ENDED), int(Kind.STOPPED), int(Kind.LOST)
_GAVE_UP, _INVALID = int(Kind.GAVE_UP), int(Kind.INVALID)
_KINDS = max(Kind) + 1
_ENDS = (_ENDED, _STOPPED, _LOST, int(Kind.NOT_RUN))
_IS_END = kind_mask(Kind.ENDED, Kind.STOPPED, Kind.LOST, Kind.NOT_RUN)
_HAS_EPOCH = kind_mask(Kind.SENT, Kind.CANCELLED, Kind.RERUN)
_IS_INTERRUPTED = kind_mask(Kind.LOST, Kind.STOPPED)
_HAS_CODE = kind_mask(Kind.ENDED, Kind.GAVE_UP)
# Entries about leases tell nothing about samples.
_IS_RELEVANT = ~kind_mask(Kind.HEAD, Kind.TAKEN, Kind.PASSED, Kind.KEPT, Kind.RELEASED)
_OPEN, _FINISHED, _FAILED = Outcome.OPEN, Outcome.FINISHED, Outcome.FAILED
_HARD_FAILED, _STOPPED_STUDY = Outcome.HARD_FAILED, Outcome.STOPPED_STUDY
# The sum of a code and this number is not negative.
_CODE_OFFSET = 2**31
_CODE_MASK = np.uint64(2**32 - 1)
# More epochs than a coordinator uses for a step record in the half minute that a power cut may cost.
_SKIPPED_EPOCHS = 100


def _are_requests(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a mask of the codes for which `is_request` is true."""
    mask: np.ndarray[Any, Any] = (codes == ExitCode.RESTART) | (codes == ExitCode.RETRY) | (codes <= _CANNOT_RUN)
    return mask


@dataclasses.dataclass(frozen=True)
class Counts:
    """The number of samples in each state; the numbers add up to `total`."""

    total: int
    finished: int
    failed: int
    running: int
    pending: int


def _ordered(epochs: np.ndarray[Any, Any], codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return numbers that order attempts by epoch first, then by code."""
    numbers: np.ndarray[Any, Any] = epochs.astype(np.uint64) << np.uint64(32)
    numbers |= (codes.astype(np.int64) + _CODE_OFFSET).astype(np.uint64)
    return numbers


def _longer(values: np.ndarray[Any, Any], more: int) -> np.ndarray[Any, Any]:
    """Return an array with zeros at its end."""
    return np.concatenate([values, np.zeros(more, values.dtype)])


class SampleStates:
    """State of each sample of one step record.

    The states do not depend on the order in which entries of different writers are applied. If several attempts have
    ended, the attempt under the highest epoch decides, but a finished sample never changes. The coordinator has the
    last word: an attempt that it has declared lost has no outcome, even if its worker was alive and reports one later.
    Epochs count from 1.

    Args:
        count: Number of samples.
        max_retries: How often a sample may request another run before it fails.

    Attributes:
        outcome: `Outcome` of each sample.
        duration_us: Duration of this attempt, in microseconds.
        started: Epoch of the last attempt; 0 for a sample that never started.
        has_started: Whether a sample has started.
        ended: Epoch of the last attempt that ended or was lost.
        attempts: How often the samples were lost or have requested another run.
        epoch: The highest epoch under which samples were sent, cancelled or marked to run again.
        cancelled_epoch: The highest epoch under which samples were cancelled.
    """

    def __init__(self, count: int, max_retries: int) -> None:
        self._max_retries = max_retries
        self.outcome = np.zeros(count, np.uint8)
        self.duration_us = np.zeros(count, np.float32)
        self.started = np.zeros(count, np.uint32)
        self.ended = np.zeros(count, np.uint32)
        self.attempts = AttemptCounts(count)
        # Epoch and code of the last attempt that ended.
        self._last = np.zeros(count, np.uint64)
        # Epoch of the last attempt that has really run, times 2, plus 1 if it has requested `cmd` again.
        self._last_run = np.zeros(count, np.uint32)
        # Epoch and outcome of the last failure; epoch of the last success, times 2, plus 1 for `STOPPED_STUDY`.
        self._failed = np.zeros(0, np.uint64)
        self._finished = np.zeros(count, np.uint32)
        # The epoch up to which outcomes are invalid: attempts were lost, or their samples run again.
        self._invalid_epoch = np.zeros(0, np.uint32)
        # The epoch up to which attempts do not count for the next one, which runs `cmd`.
        self._anew_epoch = np.zeros(0, np.uint32)
        # The number of samples by outcome; None after a change.
        self._totals: list[int] | None = None
        self.has_started = False
        self.epoch = 0
        self.cancelled_epoch = 0

    def skip_epochs(self, starts: int) -> None:
        """Leave out the epochs that earlier coordinators may have used.

        A power cut may have cost their last entries, but not their messages, which wait on a broker elsewhere.

        Args:
            starts: How many coordinators have begun before; each skips another number of epochs.
        """
        self.epoch = self.last_known_epoch + _SKIPPED_EPOCHS * (starts % _SKIPPED_EPOCHS)

    @property
    def last_known_epoch(self) -> int:
        """The highest epoch of all entries; it is above `epoch` if a power cut has cost entries of the coordinator."""
        return max(self.epoch, int(self.started.max(initial=0)), int(self.ended.max(initial=0)))

    def apply(self, entries: Entries) -> None:
        """Apply entries of this record; entries of different writers may come in any order."""
        entries = entries[_IS_RELEVANT[entries["kind"]] & (entries["start"] < len(self.outcome))]
        kinds = entries["kind"]
        # Most kinds are rare, and a study of many step records applies few entries at a time.
        found = np.bincount(kinds, minlength=_KINDS).tolist()
        if found[_SENT] or found[_CANCELLED] or found[_RERUN]:
            self._apply_epochs(entries[_HAS_EPOCH[kinds]])
        if found[_STARTED]:
            self.has_started = True
            advance(self.started, entries, kinds == _STARTED)
        if any(found[kind] for kind in _ENDS):
            self._apply_ends(entries, kinds)
        if found[_ENDED] or found[_GAVE_UP]:
            self._end(entries[_HAS_CODE[kinds]])
        if found[_LOST]:
            self._invalidate(entries[kinds == _LOST])
        if found[_INVALID]:
            for entry in entries[kinds == _INVALID]:
                self._invalidate(self._singles(entry))
        if found[_LOST] or found[_ENDED]:
            is_request = (kinds == _ENDED) & _are_requests(entries["code"])
            self._count_requests_and_losses(entries[(kinds == _LOST) | is_request])
        if found[_RERUN]:
            self._apply_reruns(entries[kinds == _RERUN])

    def _apply_epochs(self, entries: Entries) -> None:
        """Apply the epochs under which samples were sent, cancelled or marked to run again."""
        self.epoch = max(self.epoch, int(entries["epoch"].max()))
        cancelled = entries["epoch"][entries["kind"] == _CANCELLED]
        if len(cancelled):
            self.cancelled_epoch = max(self.cancelled_epoch, int(cancelled.max()))

    def _apply_ends(self, entries: Entries, kinds: np.ndarray[Any, Any]) -> None:
        """Apply the ends of attempts, whatever their outcome."""
        advance(self.ended, entries, _IS_END[kinds])
        self._record_runs(entries[_IS_INTERRUPTED[kinds] | ((kinds == _ENDED) & (entries["code"] > BROKEN))])

    def _record_runs(self, entries: Entries) -> None:
        """Store the attempts that have really run, and whether they have requested `cmd` again."""
        is_retry = (entries["kind"] == _ENDED) & (entries["code"] == ExitCode.RETRY)
        runs = entries["epoch"].astype(np.uint32) << np.uint32(1) | is_retry
        np.maximum.at(self._last_run, entries["start"].astype(np.intp), runs)

    def _end(self, entries: Entries) -> None:
        # Use columns instead of entries: copies of whole entries take ten times as long.
        samples, codes = entries["start"].astype(np.intp), entries["code"]
        epochs, durations = entries["epoch"].astype(np.uint64), entries["stop"]
        last = _ordered(epochs, codes)
        np.maximum.at(self._last, samples, last)
        is_last = last == self._last[samples]
        self.duration_us[samples[is_last]] = durations[is_last]
        given_up = entries["kind"] == _GAVE_UP
        for code in np.unique(codes).tolist():
            of_code, outcome = codes == code, outcome_of(code)
            self._add_outcome(outcome, samples, epochs, of_code & ~given_up)
            # The code of a start that failed leaves a sample open; a sample that is given up fails.
            final = _FAILED if outcome is _OPEN else outcome
            self._add_outcome(final, samples, epochs, of_code & given_up)
        self._decide(samples)

    def _add_outcome(
        self, outcome: Outcome, samples: np.ndarray[Any, Any], epochs: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]
    ) -> None:
        if outcome is _OPEN or not mask.any():
            return
        samples, epochs = samples[mask], epochs[mask]
        if outcome in (_FINISHED, _STOPPED_STUDY):
            flag = np.uint32(outcome is _STOPPED_STUDY)
            np.maximum.at(self._finished, samples, epochs.astype(np.uint32) << np.uint32(1) | flag)
        else:
            if not len(self._failed):
                self._failed = np.zeros(len(self.outcome), np.uint64)
            np.maximum.at(self._failed, samples, epochs << _OUTCOME_BITS | np.uint64(outcome))

    def _invalidate(self, entries: Entries) -> None:
        """Invalidate the outcomes of attempts up to the epochs of these entries."""
        if len(entries):
            if not len(self._invalid_epoch):
                self._invalid_epoch = np.zeros(len(self.outcome), np.uint32)
            advance(self._invalid_epoch, entries, np.ones(len(entries), bool))
            self._decide(entries["start"].astype(np.intp))

    def _singles(self, entry: Any) -> Entries:
        """Return an entry for each sample in the range of an entry."""
        start, stop = int(entry["start"]), int(entry["stop"])
        singles = np.full(max(1, min(stop, len(self.outcome)) - start), entry)
        singles["start"] = np.arange(start, start + len(singles))
        return singles

    def _count_requests_and_losses(self, entries: Entries) -> None:
        """Count requests for another run, and losses."""
        if len(entries):
            self.attempts.add(entries)
            self._decide(entries["start"].astype(np.intp))

    def _apply_reruns(self, entries: Entries) -> None:
        if not len(entries):
            return
        if not len(self._anew_epoch):
            self._anew_epoch = np.zeros(len(self.outcome), np.uint32)
        ranges = map(self._singles, entries[entries["stop"] > 0])
        entries = np.concatenate([entries[entries["stop"] == 0], *ranges])
        advance(self._anew_epoch, entries, entries["code"] == 1)
        self.attempts.begin_again(entries)
        self._invalidate(entries)

    def _decide(self, samples: np.ndarray[Any, Any]) -> None:
        """Set the outcome of samples: the outcome of an attempt, or failure after too many losses or requests."""
        finished = self._finished[samples]
        invalid = self._invalid_epoch[samples] if len(self._invalid_epoch) else np.uint32(0)
        outcome = np.full(len(samples), _OPEN, np.uint8)
        if len(self._failed):
            failed = self._failed[samples]
            is_failed = failed >> _OUTCOME_BITS > invalid
            outcome[is_failed] = failed[is_failed] & _OUTCOME_MASK
        is_finished = finished >> np.uint32(1) > invalid
        outcome[is_finished] = np.where(finished[is_finished] & 1, _STOPPED_STUDY, _FINISHED)
        outcome[self.attempts.exhausted(samples, self._max_retries) & (outcome == _OPEN)] = _FAILED
        self.outcome[samples] = outcome
        self._totals = None

    def grow(self, count: int) -> None:
        """Add samples, which have not started, up to a number of samples."""
        more = count - len(self.outcome)
        if more <= 0:
            return
        for name in ("outcome", "duration_us", "started", "ended", "_last", "_last_run", "_finished"):
            setattr(self, name, _longer(getattr(self, name), more))
        for name in ("_failed", "_invalid_epoch", "_anew_epoch"):
            if len(getattr(self, name)):
                setattr(self, name, _longer(getattr(self, name), more))
        self.attempts.grow(count)
        self._totals = None

    @property
    def runs_again(self) -> bool:
        """Whether a sample was marked to run `cmd` again, at any time."""
        return len(self._anew_epoch) > 0

    def set_max_retries(self, max_retries: int) -> None:
        """Change how often a sample may request another run."""
        if max_retries != self._max_retries:
            self._max_retries = max_retries
            self._decide(np.arange(len(self.outcome)))

    def total(self, outcome: Outcome) -> int:
        """Return the number of samples with an outcome."""
        if self._totals is None:
            self._totals = np.bincount(self.outcome, minlength=len(Outcome)).tolist()
        return self._totals[outcome]

    @property
    def failures(self) -> int:
        """The number of samples that have failed."""
        return self.total(_FAILED) + self.total(_HARD_FAILED)

    def last_epoch(self, sample: int) -> int:
        """Return the highest epoch of a sample, up to which its outcomes become invalid when it runs again."""
        return max(self.epoch, int(self.started[sample]), int(self.ended[sample]))

    def modes(self) -> np.ndarray[Any, Any]:
        """Return the `RunMode` of the next attempt at each sample.

        The next attempt runs `restart` if an attempt has run before, except when the last one has requested `cmd`, or
        when the inputs of the sample have changed since. An attempt that could not start does not count: a `restart`
        that it should have run is not forgotten.
        """
        modes = np.where(self._last_run & np.uint32(1), RunMode.AGAIN, RunMode.RESTART).astype(np.uint8)
        if len(self._anew_epoch):
            modes[self._last_run >> np.uint32(1) <= self._anew_epoch] = RunMode.AGAIN
        modes[self._last_run == 0] = RunMode.FIRST
        return modes

    def code(self, samples: Any) -> Any:
        """Return the exit code of the last attempt that ended of a sample, or of each of several; 0 without one."""
        last = self._last[samples]
        return np.where(last, (last & _CODE_MASK).astype(np.int64) - _CODE_OFFSET, 0)

    def has_code(self, samples: Any) -> Any:
        """Return whether an attempt at a sample, or at each of several, has ended by itself."""
        return self._last[samples] != 0

    @property
    def is_complete(self) -> bool:
        """Whether every sample has an outcome."""
        return self.total(_OPEN) == 0

    @property
    def running(self) -> np.ndarray[Any, Any]:
        """A mask of the open samples with an attempt that has started and not ended."""
        mask: np.ndarray[Any, Any] = (self.started > self.ended) & (self.outcome == _OPEN)
        return mask

    def counts(self) -> Counts:
        """Count the samples in each state; an attempt without an end counts as running."""
        finished = self.total(_FINISHED) + self.total(_STOPPED_STUDY)
        open_samples = self.total(_OPEN)
        running = int(self.running.sum()) if open_samples else 0
        total = len(self.outcome)
        return Counts(
            total=total,
            finished=finished,
            failed=total - finished - open_samples,
            running=running,
            pending=open_samples - running,
        )
