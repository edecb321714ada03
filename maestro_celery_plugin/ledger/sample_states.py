"""The states of the samples of one step record, from the entries of the ledger.

Two parts of the package share the class: the coordinator, which applies new entries and decides which samples run
again; and the status command, which applies all entries at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger import attempt_rules as rules
from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask, selected
from maestro_celery_plugin.ledger.sample_column import SampleColumn
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.state_table import StateTable
from maestro_celery_plugin.states import Outcome, RunMode

__all__ = ["COUNTED", "Counts", "SampleStates"]

Array = np.ndarray[Any, Any]

_SENT, _CANCELLED, _RERUN, _STARTED = int(Kind.SENT), int(Kind.CANCELLED), int(Kind.RERUN), int(Kind.STARTED)
_INVALID, _KINDS = int(Kind.INVALID), max(Kind) + 1
_HAS_EPOCH = kind_mask(Kind.SENT, Kind.CANCELLED, Kind.RERUN)
_IS_RANGE = kind_mask(Kind.INVALID, Kind.RERUN)
_OPEN, _FINISHED, _FAILED = Outcome.OPEN, Outcome.FINISHED, Outcome.FAILED
_HARD_FAILED, _STOPPED_STUDY = Outcome.HARD_FAILED, Outcome.STOPPED_STUDY
# What is stored of a loss or a request, to count it again when its sample runs again.
COUNTED = np.dtype([("start", "<u8"), ("epoch", "<u4"), ("kind", "u1")])
_OUTCOMES = len(Outcome)
# The number of entries from which it is worth the time to look for equal ones, and how many times this is done.
_MANY, _MOST_ALIKE = 256, 8
# More epochs than a coordinator uses for a step record in the half minute that a power cut may cost.
_SKIPPED_EPOCHS = 100


@dataclasses.dataclass(frozen=True)
class Counts:
    """The number of samples in each state; the numbers add up to `total`."""

    total: int
    finished: int
    failed: int
    running: int
    pending: int


def _only(entries: Entries, mask: Array) -> Entries:
    """Return the entries in a mask; to copy all of them takes as long as to apply them."""
    return entries if mask.all() else selected(entries, mask)


class SampleStates:
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
        epoch: The highest epoch under which samples were sent, cancelled or marked to run again.
        cancelled_epoch: The highest epoch under which samples were cancelled.
    """

    def __init__(self, count: int, max_retries: int) -> None:
        self._max_retries = max_retries
        self._table = StateTable(count)
        # The outcome of each state, and the version of the table for which they were computed.
        self._of_states, self._version = np.zeros(1, np.uint8), -1
        # The same for the code of each state.
        self._codes, self._codes_version = np.zeros(1, np.int64), -1
        # The number of samples by outcome; None after a change.
        self._totals: list[int] | None = None
        # Losses and requests for another run.
        self._counted: list[Array] = []
        self.has_started = self.runs_again = False
        self.epoch = 0
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

    # --- questions about samples ---

    def __len__(self) -> int:
        return len(self._table.numbers)

    @property
    def memory(self) -> int:
        """The bytes of memory for the states, without a small constant."""
        return self._table.memory + sum(part.nbytes for part in self._counted)

    @property
    def _outcomes(self) -> Array:
        """The outcome of each state."""
        if self._version != self._table.version:
            self._of_states = rules.outcomes(self._table.rows, self._max_retries)
            self._version = self._table.version
        return self._of_states

    def _column(self, values: Array) -> SampleColumn:
        return SampleColumn(self._table, values)

    @property
    def outcome(self) -> SampleColumn:
        """The `Outcome` of each sample."""
        return self._column(self._outcomes)

    @property
    def started(self) -> SampleColumn:
        """The epoch of the last attempt at each sample; 0 for a sample that never started."""
        return self._column(self._table.rows["started"])

    @property
    def ended(self) -> SampleColumn:
        """The epoch of the last attempt at each sample that ended or was lost."""
        return self._column(self._table.rows["ended"])

    @property
    def losses(self) -> SampleColumn:
        """How often each sample ran when its worker was lost, since it began, or since it was marked to run again."""
        return self._column(self._table.rows["losses"])

    @property
    def requests(self) -> SampleColumn:
        """How often each sample has requested another run, since it began, or since it was marked to run again."""
        return self._column(self._table.rows["requests"])

    @property
    def rerun_epoch(self) -> SampleColumn:
        """The highest epoch under which each sample was marked to run again; 0 for a sample that was not."""
        return self._column(self._table.rows["forgotten"])

    @property
    def exhausted(self) -> SampleColumn:
        """Whether each sample was lost or has requested another run too often."""
        return self._column(rules.is_exhausted(self._table.rows, self._max_retries))

    @property
    def mode(self) -> SampleColumn:
        """The `RunMode` of the next attempt at each sample."""
        return self._column(rules.modes(self._table.rows))

    def code(self, samples: Any) -> Any:
        """Return the exit code of the last attempt that ended of a sample, or of each of several; 0 without one."""
        if self._codes_version != self._table.version:
            self._codes, self._codes_version = rules.last_codes(self._table.rows), self._table.version
        return self._codes[self._table.numbers[samples]]

    def has_code(self, samples: Any) -> Any:
        """Return whether an attempt at a sample, or at each of several, has ended by itself."""
        return self._column(self._table.rows["last"] != 0)[samples]

    def is_last(self, samples: Array, epochs: Array, codes: Array) -> Array:
        """Return a mask of the attempts that are the last ones of their samples that ended by themselves."""
        mask: Array = self._table.of(samples)["last"] == rules.end_of(epochs, codes)
        return mask

    def last_epoch(self, sample: int) -> int:
        """Return the highest epoch of a sample, up to which its outcomes become invalid when it runs again."""
        return max(self.epoch, int(self.started[sample]), int(self.ended[sample]))

    @property
    def highest_epoch(self) -> int:
        """The highest epoch of all entries; it is above `epoch` if a power cut has cost entries of the coordinator."""
        return max(self.epoch, self.started.max(), self.ended.max())

    @property
    def running(self) -> Array:
        """A mask of the open samples with an attempt that has started and not ended."""
        return self.outcome.where(self._are_running)

    def running_of(self, samples: Array) -> Array:
        """Return a mask of those of these samples that `running` has."""
        mask: Array = self._are_running[self._table.numbers[samples]]
        return mask

    def running_in(self, start: int, stop: int) -> Array:
        """Return the samples of [start, stop) that `running` has."""
        return start + np.flatnonzero(self._are_running[self._table.numbers[start:stop]])

    @property
    def _are_running(self) -> Array:
        """A mask of the states of running samples."""
        rows = self._table.rows
        mask: Array = (rows["started"] > rows["ended"]) & (self._outcomes == _OPEN)
        return mask

    # --- sets of samples ---

    def find(self, *outcomes: Outcome, within: SampleSet | None = None) -> SampleSet:
        """Return the samples with one of these outcomes; `within` limits the samples."""
        return self._table.find(np.isin(self._outcomes, outcomes), within)

    def find_begun(self) -> SampleSet:
        """Return the samples that have started, or have an outcome."""
        return self._table.find((self._outcomes != _OPEN) | (self._table.rows["started"] > 0))

    def find_running(self, within: SampleSet | None = None) -> SampleSet:
        """Return the open samples with an attempt that has started and not ended; `within` limits the samples."""
        return self._table.find(self._are_running, within)

    def find_lost(self, limit: int) -> SampleSet:
        """Return the open samples that were lost at least this many times."""
        return self._table.find((self._table.rows["losses"] >= limit) & (self._outcomes == _OPEN))

    def by_mode(self, samples: SampleSet) -> list[tuple[int, int, RunMode]]:
        """Return ranges [start, stop) of samples, each with the `RunMode` of its next attempts, in ascending order."""
        modes = rules.modes(self._table.rows)
        parts = ((mode, self._table.find(modes == mode, samples)) for mode in RunMode)
        return sorted((start, stop, mode) for mode, part in parts for start, stop in part.ranges())

    # --- counts ---

    def count(self, of_states: Array) -> int:
        """Return the number of samples whose state is in a mask."""
        return int(self._table.population[of_states].sum())

    def total(self, outcome: Outcome) -> int:
        """Return the number of samples with an outcome."""
        return self._all_totals()[outcome]

    def _all_totals(self) -> list[int]:
        if self._totals is None:
            totals = np.bincount(self._outcomes, self._table.population, minlength=_OUTCOMES)
            self._totals = [int(total) for total in totals.tolist()]
        return self._totals

    @property
    def failures(self) -> int:
        """The number of samples that have failed."""
        totals = self._all_totals()
        return totals[_FAILED] + totals[_HARD_FAILED]

    @property
    def is_complete(self) -> bool:
        """Whether every sample has an outcome."""
        return self._all_totals()[_OPEN] == 0

    @property
    def is_undisturbed(self) -> bool:
        """Whether samples are open, and none has failed."""
        totals = self._all_totals()
        return totals[_OPEN] > 0 and not totals[_FAILED] and not totals[_HARD_FAILED]

    def counts(self) -> Counts:
        """Count the samples in each state; an attempt without an end counts as running."""
        finished = self.total(_FINISHED) + self.total(_STOPPED_STUDY)
        open_samples = self.total(_OPEN)
        running = self.count(self._are_running) if open_samples else 0
        total = len(self)
        return Counts(
            total=total,
            finished=finished,
            failed=total - finished - open_samples,
            running=running,
            pending=open_samples - running,
        )
