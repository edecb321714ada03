"""The samples of a step record: the number in each state, the failed samples, and the rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind
from maestro_celery_plugin.ledger.sample_states import Counts, SampleStates
from maestro_celery_plugin.report.pace import Pace
from maestro_celery_plugin.samples.table import SampleTable
from maestro_celery_plugin.states import POISON_LIMIT, Outcome, how_it_ended, is_request
from maestro_celery_plugin.study.additions import open_samples
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["RecordSamples", "SampleStatus", "table_of", "values_of"]

# As plain numbers (`sample_states.py`).
_STARTED, _ENDED, _STOPPED = int(Kind.STARTED), int(Kind.ENDED), int(Kind.STOPPED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleStatus:
    """The last attempt at a sample.

    Attributes:
        manifest: Its step record.
        index: Its index.
        code: Exit code; negative for a signal and for an attempt that did not run (`states.py`).
        duration_s: Wall time.
        losses: Number of times that the worker was lost while the sample ran.
    """

    manifest: Manifest
    index: int
    code: int
    duration_s: float
    losses: int

    @property
    def directory(self) -> Path:
        """The directory of the sample."""
        workspace = Path(self.manifest.workspace)
        return workspace / self.manifest.paths.of(self.index) if self.manifest.sampled else workspace

    @property
    def stderr(self) -> Path:
        """The file with its stderr; it does not exist if stderr is empty."""
        return self.directory / f"{self.manifest.script}.err"

    @property
    def end(self) -> str:
        """How a failed sample ended: ``exit code 3``, ``SIGKILL``, ``it could not start: ...``."""
        if self.losses >= POISON_LIMIT:
            return f"its worker died {self.losses} times while the sample ran"
        return how_it_ended(self.code)


class RecordSamples:
    """The samples of one step record, from the ledger.

    Args:
        manifest: The step record.
        counts_attempts: Whether to count the attempts at each sample.

    Attributes:
        manifest: The step record.
        states: The states of the samples.
        attempts: The number of attempts at each sample that have started; empty without `counts_attempts`.
        interruptions: Number of attempts that a worker has ended: at the end of its allocation, at a cancellation, or
            when another sample made the step record fail.
        longest_interruption_s: The longest duration of these attempts, in seconds.
    """

    def __init__(self, manifest: Manifest, *, counts_attempts: bool = False) -> None:
        self.manifest = manifest
        self.attempts = np.zeros(manifest.samples if counts_attempts else 0, np.uint32)
        self.states = SampleStates(manifest.samples, manifest.max_retries)
        self._writer = np.zeros(manifest.samples, np.uint32)
        self._started_at = np.zeros(manifest.samples, np.float64)
        self._pace = Pace()
        self.interruptions = 0
        self.longest_interruption_s = 0.0

    def grow(self, manifest: Manifest) -> None:
        """Take over a manifest with samples that were added to the study."""
        more = manifest.samples - self.manifest.samples
        self.manifest = manifest
        if more > 0:
            self.states.grow(manifest.samples)
            self._writer = np.concatenate([self._writer, np.zeros(more, np.uint32)])
            self._started_at = np.concatenate([self._started_at, np.zeros(more, np.float64)])

    def apply(self, entries: Entries, writers: np.ndarray[Any, Any]) -> None:
        """Apply new entries; `writers` has the number of the writer of each entry."""
        # A manifest of before an addition, restored from a backup, has fewer samples than the ledger.
        is_known = entries["start"] < len(self._writer)
        if not is_known.all():
            entries, writers = entries[is_known], writers[is_known]
        self.states.apply(entries)
        kinds = entries["kind"]
        self._store_starts(entries, writers, kinds == _STARTED)
        stopped = entries["stop"][kinds == _STOPPED]
        self._store_ends(entries, writers, (kinds == _ENDED) | (kinds == _STOPPED) if len(stopped) else kinds == _ENDED)
        if len(stopped):
            self.interruptions += len(stopped)
            self.longest_interruption_s = max(self.longest_interruption_s, int(stopped.max()) / 1e6)

    def _store_starts(self, entries: Entries, writers: np.ndarray[Any, Any], started: np.ndarray[Any, Any]) -> None:
        """Store the writer and the time of the last attempt at each sample."""
        if started.any():
            samples, epochs = entries["start"][started], entries["epoch"][started]
            if len(self.attempts):
                np.add.at(self.attempts, samples.astype(np.intp), 1)
            is_last = epochs == self.states.started[samples]
            self._writer[samples[is_last]] = writers[started][is_last]
            self._started_at[samples[is_last]] = entries["time"][started][is_last]

    def _store_ends(self, entries: Entries, writers: np.ndarray[Any, Any], ended: np.ndarray[Any, Any]) -> None:
        """Store the last attempts that have ended, from which `rate` is computed."""
        if ended.any():
            codes, counted = entries["code"][ended], entries["kind"][ended] == _ENDED
            if codes.any():  # a request has a code other than 0
                requests = [code for code in np.unique(codes).tolist() if is_request(code)]
                counted &= ~np.isin(codes, requests)
            self._pace.add(entries["time"][ended], entries["stop"][ended] / 1e6, writers[ended], counted)

    def rate(self, live: np.ndarray[Any, Any] | None = None) -> float | None:
        """Return samples per second in the recent past, without the time in which no sample ran (`pace.py`).

        Args:
            live: Mask of the live writers by number.
        """
        running_since = np.inf
        if live is not None and live.any() and not self.states.is_complete:
            running = self.states.running & live[self._writer]
            running_since = float(self._started_at[running].min(initial=np.inf))
        return self._pace.rate(live, running_since)

    def counts(self, working: np.ndarray[Any, Any]) -> Counts:
        """Count the samples in each state; `working` is a mask of the writers that may still end an attempt."""
        counts = self.states.counts()
        if not counts.running:
            return counts
        lost = counts.running - int(working[self._writer[self.states.running]].sum())
        return dataclasses.replace(counts, running=counts.running - lost, pending=counts.pending + lost)

    def add_running(self, counts: np.ndarray[Any, Any]) -> None:
        """Add the number of running samples of each writer to `counts`."""
        if self.states.has_started and not self.states.is_complete:
            counts += np.bincount(self._writer[self.states.running], minlength=len(counts))

    def failed(self, limit: int) -> list[SampleStatus]:
        """Return the first `limit` samples that failed."""
        return [self._sample(int(index)) for index in self.failed_indices()[: max(0, limit)]]

    def failure_kinds(self) -> list[tuple[SampleStatus, int]]:
        """Return, for each exit code of failed samples, the first such sample and their number."""
        failed = self.failed_indices()
        if not len(failed):
            return []
        _, first, counts = np.unique(self.states.code(failed), return_index=True, return_counts=True)
        return [(self._sample(int(failed[i])), int(n)) for i, n in zip(first, counts, strict=True)]

    def fatal_sample(self) -> SampleStatus | None:
        """Return the first sample that made the step record fail; None without such a sample."""
        indices = np.flatnonzero(self.states.outcome == Outcome.HARD_FAILED)
        return self._sample(int(indices[0])) if len(indices) else None

    def running(self, working: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a mask of the running samples; `working` as in `counts`."""
        mask: np.ndarray[Any, Any] = self.states.running
        mask[mask] = working[self._writer[mask]]
        return mask

    @property
    def writers(self) -> np.ndarray[Any, Any]:
        """The number of the writer of the last attempt at each sample, if the sample has started."""
        return self._writer

    @property
    def started_at(self) -> np.ndarray[Any, Any]:
        """The start of the last attempt at each sample in Unix seconds; 0 for a sample that has not started."""
        return self._started_at

    def failed_indices(self) -> np.ndarray[Any, Any]:
        """Return the indices of the samples that failed."""
        outcome = self.states.outcome
        if not (self.states.total(Outcome.FAILED) or self.states.total(Outcome.HARD_FAILED)):
            return np.empty(0, np.intp)
        return np.flatnonzero((outcome == Outcome.FAILED) | (outcome == Outcome.HARD_FAILED))

    @property
    def longest_us(self) -> int:
        """The longest duration of a sample in microseconds; 0 for a record that is not sampled."""
        return int(self.states.duration_us.max()) if self.manifest.sampled and self.manifest.samples else 0

    def slowest(self, limit: int) -> list[SampleStatus]:
        """Return the `limit` slowest samples in any order; empty for a record that is not sampled."""
        durations = self.states.duration_us
        count = min(limit, len(durations))
        if not self.manifest.sampled or not count:
            return []
        longest = np.argpartition(durations, len(durations) - count)[-count:]
        return [self._sample(int(index)) for index in longest if durations[index]]

    def _sample(self, index: int) -> SampleStatus:
        return SampleStatus(
            manifest=self.manifest,
            index=index,
            code=int(self.states.code(index)),
            duration_s=int(self.states.duration_us[index]) / 1e6,
            losses=int(self.states.attempts.losses[index]) if self.states.attempts.has_losses else 0,
        )


def table_of(manifest: Manifest) -> SampleTable | None:
    """Open the sample table of a step record; return None for a step record without one.

    Raises:
        SampleError: the table cannot be read any more.
    """
    if not manifest.table:
        return None
    return open_samples(manifest, for_people=True)


def values_of(samples: list[SampleStatus]) -> list[dict[str, str] | None]:
    """Return the values of samples by label; None for a sample whose table can no longer be read."""
    tables: dict[int, Any] = {}
    return [_values(sample, tables) for sample in samples]


def _values(sample: SampleStatus, tables: dict[int, Any]) -> dict[str, str] | None:
    manifest = sample.manifest
    if not manifest.table:
        return {}
    try:
        if manifest.number not in tables:
            tables[manifest.number] = table_of(manifest)
        return dict(zip(manifest.labels, tables[manifest.number].row(sample.index), strict=True))
    except Exception:  # of any reader; the list of failed samples is useful without values
        return None
