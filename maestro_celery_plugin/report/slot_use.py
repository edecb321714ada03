"""The use of the slots of one writer of the ledger: attempts, the time around them, and attempts without an end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import ENTRY, Entries, Kind, kind_mask
from maestro_celery_plugin.states import ExitCode, Outcome, cannot_run_code, outcome_of

__all__ = ["ENDS", "Attempts", "SlotUse", "ends_of"]

Array = np.ndarray[Any, Any]

# How an attempt has ended, by the names of `summary.SlotTime`; `Attempts.end` has places in this tuple.
ENDS = ("finished", "failed", "again", "interrupted", "lost", "running", "not_run")
FINISHED, FAILED, AGAIN, INTERRUPTED, LOST, RUNNING, NOT_RUN = range(len(ENDS))

_IS_USE = kind_mask(Kind.TAKEN, Kind.RELEASED, Kind.STARTED, Kind.ENDED, Kind.STOPPED, Kind.NOT_RUN)
_IS_ATTEMPT = kind_mask(Kind.STARTED, Kind.ENDED, Kind.STOPPED, Kind.NOT_RUN)
_IS_END = kind_mask(Kind.ENDED, Kind.STOPPED, Kind.NOT_RUN)
_IS_LEASE = kind_mask(Kind.TAKEN, Kind.RELEASED)
_CANNOT_RUN = cannot_run_code(0)


@dataclasses.dataclass(frozen=True)
class Attempts:
    """Attempts as columns.

    Attributes:
        record: Number of the step record.
        sample: Index of the sample.
        epoch: Epoch.
        start: When it began (Unix seconds of the worker's clock).
        stop: When it ended.
        end: How it ended, as a place in `ENDS`.
    """

    record: Array
    sample: Array
    epoch: Array
    start: Array
    stop: Array
    end: Array

    def __len__(self) -> int:
        """Return the number of attempts."""
        return len(self.record)

    def only(self, mask: Array) -> Attempts:
        """Return some of the attempts."""
        return Attempts(*(getattr(self, field.name)[mask] for field in dataclasses.fields(self)))

    @property
    def seconds(self) -> Array:
        """The durations."""
        seconds: Array = self.stop - self.start
        return seconds


def ends_of(kinds: Array, codes: Array) -> Array:
    """Return how attempts have ended, as places in `ENDS`, from the kinds and codes of their last entries."""
    ends = np.full(len(kinds), FINISHED, np.uint8)
    ends[kinds == Kind.STOPPED] = INTERRUPTED
    ends[kinds == Kind.NOT_RUN] = NOT_RUN
    ended = kinds == Kind.ENDED
    ends[ended & ((codes == ExitCode.RESTART) | (codes == ExitCode.RETRY))] = AGAIN
    ends[ended & (codes <= _CANNOT_RUN)] = NOT_RUN  # of a worker of release 0.1
    for code in np.unique(codes[ended]).tolist():
        if outcome_of(code) in (Outcome.FAILED, Outcome.HARD_FAILED):
            ends[ended & (codes == code)] = FAILED
    return ends


class SlotUse:
    """Follows the entries of one writer, chunk by chunk.

    Attributes:
        seconds: Seconds of attempts by their end, in the order of `ENDS`; those without an end are not included.
        first: When each slot first took samples (Unix seconds), by number of the slot.
        last: The time of the last entry of each slot.
    """

    def __init__(self) -> None:
        self.seconds = np.zeros(len(ENDS))
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self._held_s = 0.0
        # Entries without their counterpart yet: a slot has taken samples, or begun an attempt.
        self._open = np.empty(0, ENTRY)

    def add(self, entries: Entries) -> tuple[Attempts, Attempts]:
        """Apply the next entries; return the attempts that have ended, and those whose end is missing for ever.

        An attempt has no end if its worker has died, or a process of its pool: then its slot begins another one.
        """
        entries = np.concatenate([self._open, entries[_IS_USE[entries["kind"]]]])
        if not len(entries):
            return self._attempts(entries), self._attempts(entries)
        entries = entries[np.argsort(entries["slot"], kind="stable")]
        self._note_times(entries)
        leases = entries[_IS_LEASE[entries["kind"]]]
        runs = entries[_IS_ATTEMPT[entries["kind"]]]
        is_last_lease, is_last_run = _is_last_of_slot(leases), _is_last_of_slot(runs)
        self._add_leases(leases)
        open_leases = leases[is_last_lease & (leases["kind"] == Kind.TAKEN)]
        begun = runs["kind"] == Kind.STARTED
        followed = np.append(begun[1:], True) & begun
        self._open = np.concatenate([open_leases, runs[begun & is_last_run]])
        ended = self._attempts(runs[_IS_END[runs["kind"]]])
        self.seconds += np.bincount(ended.end, weights=ended.seconds, minlength=len(ENDS))
        return ended, self._without_end(runs, followed & ~is_last_run)

    def unfinished(self) -> Attempts:
        """Return the attempts that have begun and not ended, with the time of the last entry of their slot as end."""
        runs = self._open[self._open["kind"] == Kind.STARTED]
        attempts = self._attempts(runs)
        last = np.array([self.last[int(slot)] for slot in runs["slot"]])
        return dataclasses.replace(attempts, start=runs["time"].copy(), stop=np.maximum(last, runs["time"]))

    @property
    def held_s(self) -> float:
        """Seconds in which slots had samples, until the last entry of each slot."""
        leases = self._open[self._open["kind"] == Kind.TAKEN]
        rest = sum(self.last[int(lease["slot"])] - float(lease["time"]) for lease in leases)
        return max(self._held_s + rest, float(self.seconds.sum()))

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last entry of each slot, summed over the slots."""
        return sum(self.last[slot] - first for slot, first in self.first.items())

    def _note_times(self, entries: Entries) -> None:
        edges = np.flatnonzero(np.diff(entries["slot"])) + 1
        for part in np.split(entries[["slot", "time"]], edges):
            slot, times = int(part["slot"][0]), part["time"]
            self.first[slot] = min(self.first.get(slot, np.inf), float(times.min()))
            self.last[slot] = max(self.last.get(slot, 0.0), float(times.max()))

    def _add_leases(self, leases: Entries) -> None:
        ends = np.flatnonzero(leases["kind"] == Kind.RELEASED)
        ends = ends[ends > 0]
        pairs = (leases["kind"][ends - 1] == Kind.TAKEN) & (leases["slot"][ends - 1] == leases["slot"][ends])
        self._held_s += float((leases["time"][ends] - leases["time"][ends - 1])[pairs].sum())

    @staticmethod
    def _attempts(entries: Entries) -> Attempts:
        kinds, times = entries["kind"], entries["time"].copy()
        seconds = np.where(kinds == Kind.NOT_RUN, 0, entries["stop"]) / 1e6  # `stop` of NOT_RUN is a machine
        return Attempts(
            record=entries["record"].astype(np.intp),
            sample=entries["start"].astype(np.intp),
            epoch=entries["epoch"].astype(np.int64),
            start=times - seconds,
            stop=times,
            end=ends_of(kinds, entries["code"]),
        )

    def _without_end(self, runs: Entries, mask: Array) -> Attempts:
        """Return the attempts after which their slot has begun another one; that is the latest time of their end."""
        places = np.flatnonzero(mask)
        attempts = self._attempts(runs[places])
        return dataclasses.replace(
            attempts, stop=runs["time"][places + 1].copy(), end=np.full(len(places), LOST, np.uint8)
        )


def _is_last_of_slot(entries: Entries) -> Array:
    """Return a mask of the last entry of each slot; the entries are sorted by slot."""
    if not len(entries):
        return np.zeros(0, bool)
    return np.append(np.diff(entries["slot"].astype(np.int32)) != 0, True)
