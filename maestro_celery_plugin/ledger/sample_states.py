"""The states of the samples of one step record, from the entries of the ledger.

Two parts of the package share the class: the coordinator, which applies new entries and decides which samples run
again; and the status command, which applies all entries at once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger import attempt_rules as rules
from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask, selected
from maestro_celery_plugin.ledger.sample_facts import SampleFacts

__all__ = ["COUNTED", "SampleStates"]

Array = np.ndarray[Any, Any]

_SENT, _CANCELLED, _RERUN, _STARTED = int(Kind.SENT), int(Kind.CANCELLED), int(Kind.RERUN), int(Kind.STARTED)
_INVALID, _KINDS = int(Kind.INVALID), max(Kind) + 1
_HAS_EPOCH = kind_mask(Kind.SENT, Kind.CANCELLED, Kind.RERUN)
_IS_RANGE = kind_mask(Kind.INVALID, Kind.RERUN)
# What is stored of a loss or a request, to count it again when its sample runs again.
COUNTED = np.dtype([("start", "<u8"), ("epoch", "<u4"), ("kind", "u1")])
# The number of entries from which it is worth the time to look for equal ones, and how many times this is done.
_MANY, _MOST_ALIKE = 256, 8
# More epochs than a coordinator uses for a step record in the half minute that a power cut may cost.
_SKIPPED_EPOCHS = 100


def _only(entries: Entries, mask: Array) -> Entries:
    """Return the entries in a mask; to copy all of them takes as long as to apply them."""
    return entries if mask.all() else selected(entries, mask)


class SampleStates(SampleFacts):
    """State of each sample of one step record.

    The states do not depend on the order in which entries of different writers are applied. If several attempts have
    ended, the attempt under the highest epoch decides, but a finished sample never changes. The coordinator has the
    last word: an attempt that it has declared lost has no outcome, even if its worker was alive and reports one later.

    Args:
        count: Number of samples.
        max_retries: How often a sample may request another run before it fails.

    Attributes:
        has_started: Whether a sample has started.
        runs_again: Whether a sample was marked to run again, at any time.
        cancelled_epoch: The highest epoch under which samples were cancelled.
    """

    def __init__(self, count: int, max_retries: int) -> None:
        super().__init__(count, max_retries)
        # Losses and requests for another run.
        self._counted: list[Array] = []
        self.has_started = self.runs_again = False
        self.cancelled_epoch = 0

    def skip_epochs(self, starts: int) -> None:
        """Leave out the epochs that earlier coordinators may have used.

        A power cut may have cost their last entries, but not their messages, which wait on a broker elsewhere.

        Args:
            starts: How many coordinators have begun before; each skips another number of epochs.
        """
        self.epoch = self.highest_epoch + _SKIPPED_EPOCHS * (starts % _SKIPPED_EPOCHS)

    # --- applying entries ---

    def apply(self, entries: Entries) -> None:
        """Apply entries of this record; entries of different writers may come in any order."""
        self._totals = None
        entries = _only(entries, entries["start"] < len(self))
        kinds = entries["kind"]
        # Most kinds are rare, and a study of many step records applies few entries at a time.
        found = np.bincount(kinds, minlength=_KINDS).tolist()
        if found[_SENT] or found[_CANCELLED] or found[_RERUN]:
            self._apply_epochs(entries[_HAS_EPOCH[kinds]])
        self.has_started = self.has_started or found[_STARTED] > 0
        attempts = _only(entries, rules.IS_ATTEMPT[kinds])
        if len(attempts):
            self._apply_attempts(attempts)
        if found[_INVALID] or found[_RERUN]:
            for entry in entries[_IS_RANGE[kinds]]:
                self._apply_range(entry)

    def _apply_epochs(self, entries: Entries) -> None:
        """Apply the epochs under which samples were sent, cancelled or marked to run again."""
        self.epoch = max(self.epoch, int(entries["epoch"].max()))
        cancelled = entries["epoch"][entries["kind"] == _CANCELLED]
        if len(cancelled):
            self.cancelled_epoch = max(self.cancelled_epoch, int(cancelled.max()))

    def _apply_attempts(self, entries: Entries) -> None:
        if len(entries) >= _MANY:
            entries = self._apply_alike(entries)
        if not len(entries):
            return
        samples, at = np.unique(entries["start"].astype(np.intp), return_inverse=True)
        states = self._table.of(samples)
        rules.apply_attempts(states, at, entries)
        is_counted = rules.are_counted(entries)
        if is_counted.any():
            counted = entries[is_counted]
            rules.add_counts(states, at[is_counted], counted)
            self._counted.append(counted[list(COUNTED.names or ())].astype(COUNTED))
        self._table.replace(samples, states)

    def words_of(self, samples: Array) -> Array:
        """Return copies of the states of samples as words, for `replace_states`."""
        return self._table.words_of(samples)

    def replace_states(self, samples: Array, states: Array, *, has_started: bool) -> None:
        """Change the states of different samples, to which entries about attempts were applied (`joint_states.py`).

        Args:
            samples: The samples, in ascending order.
            states: What `attempt_rules.apply_attempts` has made of their states; no loss and no request was counted.
            has_started: Whether an attempt at one of them has started.
        """
        self._totals = None
        self.has_started = self.has_started or has_started
        self._table.replace(samples, states)

    def _apply_alike(self, entries: Entries) -> Entries:
        """Apply what many samples have in common, such as a success under one epoch; return the other entries.

        All samples with one state and equal entries get one new state, which is computed once. Entries that are counted
        are left, because it matters how many of them a sample has.
        """
        kinds, ends = entries["kind"].copy(), rules.end_of(entries["epoch"], entries["code"])
        left, is_applied = np.flatnonzero(~rules.are_counted(entries)), np.zeros(len(entries), bool)
        for _ in range(_MOST_ALIKE):
            if len(left) < _MANY:
                break
            one = int(left[len(left) // 2])
            is_alike = (kinds[left] == kinds[one]) & (ends[left] == ends[one])
            alike = left[is_alike]
            self._table.change(
                entries["start"][alike], functools.partial(rules.apply_one, entry=entries[one : one + 1])
            )
            is_applied[alike] = True
            left = left[~is_alike]
        return selected(entries, ~is_applied)

    def _apply_range(self, entry: Any) -> None:
        """Apply an entry about a range of samples: one change for each of their different states."""
        start, epoch = int(entry["start"]), int(entry["epoch"])
        stop = min(max(int(entry["stop"]), start + 1), len(self))
        if entry["kind"] == _INVALID:
            self._table.change_in(start, stop, functools.partial(rules.invalidate, epoch=epoch))
        else:
            self.runs_again = True
            self._table.change_in(start, stop, functools.partial(rules.run_again, epoch=epoch, anew=entry["code"] == 1))
        if entry["kind"] == _RERUN and self._counted:
            self._count_again(start, stop)

    def _count_again(self, start: int, stop: int) -> None:
        """Count losses and requests of a range of samples under later epochs than that under which they run again."""
        counted = np.concatenate(self._counted)
        self._counted = [counted]
        counted = counted[(counted["start"] >= start) & (counted["start"] < stop)]
        samples, at = np.unique(counted["start"].astype(np.intp), return_inverse=True)
        states = self._table.of(samples)
        rules.add_counts(states, at, counted)
        self._table.replace(samples, states)

    def grow(self, count: int) -> None:
        """Add samples, which have not started, up to a number of samples."""
        if count > len(self):
            self._table.grow(count)
            self._totals = None

    def set_max_retries(self, max_retries: int) -> None:
        """Change how often a sample may request another run."""
        self._max_retries, self._version, self._totals = max_retries, -1, None

    # --- storing ---

    def stored(self) -> dict[str, Array]:
        """Return the states as arrays, which `restore` takes."""
        facts = np.array([self.has_started, self.runs_again, self.epoch, self.cancelled_epoch], np.int64)
        counted = np.concatenate([np.empty(0, COUNTED), *self._counted])
        return {**self._table.stored(), "facts": facts, "counted": counted}

    def restore(self, stored: Mapping[str, Array]) -> None:
        """Take over states of the same step record, which may have had fewer samples.

        Raises:
            ValueError: the arrays are not states.
        """
        self._table.restore(stored)
        has_started, runs_again, self.epoch, self.cancelled_epoch = stored["facts"].tolist()
        self.has_started, self.runs_again = bool(has_started), bool(runs_again)
        self._counted = [stored["counted"]]
        self._totals = None

    @property
    def memory(self) -> int:
        """The bytes of memory for the states, without a small constant."""
        return self._table.memory + sum(part.nbytes for part in self._counted)
