"""What is known of the samples of one step record: their outcomes, attempts, losses, and how many there are of each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger import attempt_rules as rules
from maestro_celery_plugin.ledger.sample_column import SampleColumn
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.state_table import StateTable
from maestro_celery_plugin.states import Outcome, RunMode

__all__ = ["Counts", "SampleFacts"]

Array = np.ndarray[Any, Any]

_OPEN, _FINISHED, _FAILED = Outcome.OPEN, Outcome.FINISHED, Outcome.FAILED
_HARD_FAILED, _STOPPED_STUDY = Outcome.HARD_FAILED, Outcome.STOPPED_STUDY
_OUTCOMES = len(Outcome)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The number of samples in each state; the numbers add up to `total`."""

    total: int
    finished: int
    failed: int
    running: int
    pending: int


class SampleFacts:
    """Answers questions about the samples of one step record; `SampleStates` changes what is known.

    Many samples have the same state; what follows from a state is computed once for all of them.

    Args:
        count: Number of samples.
        max_retries: How often a sample may request another run before it fails.

    Attributes:
        epoch: The highest epoch under which samples were sent, cancelled or marked to run again.
    """

    def __init__(self, count: int, max_retries: int) -> None:
        self._max_retries = max_retries
        self._table = StateTable(count)
        self.epoch = 0
        # The outcome of each state, and the version of the table for which they were computed.
        self._of_states, self._version = np.zeros(1, np.uint8), -1
        # The same for the code of each state.
        self._codes, self._codes_version = np.zeros(1, np.int64), -1
        # The number of samples by outcome; None after a change.
        self._totals: list[int] | None = None

    # --- questions about samples ---

    def __len__(self) -> int:
        return len(self._table.numbers)

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
