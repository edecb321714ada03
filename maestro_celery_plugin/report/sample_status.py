"""The samples of a step record: the number in each state, the failed samples, and the rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind
from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.report.durations import Durations, NotableDurations
from maestro_celery_plugin.report.pace import Pace
from maestro_celery_plugin.report.running_attempts import RunningAttempts
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
        is_detailed: Whether to store what only a table of all samples needs: `durations`, `attempts`, `writers` and
            `started_at`.

    Attributes:
        manifest: The step record.
        states: The states of the samples.
        durations: The durations of all samples.
        attempts: The number of attempts at each sample that have started.
        writers: The number of the writer of the last attempt at each sample, if the sample has started.
        started_at: The start of the last attempt at each sample in Unix seconds; 0 for a sample that has not started.
        interruptions: Number of attempts that a worker has ended: at the end of its allocation, at a cancellation, or
            when another sample made the step record fail.
        longest_interruption_s: The longest duration of these attempts, in seconds.
    """

    def __init__(self, manifest: Manifest, *, is_detailed: bool = False) -> None:
        self.manifest, self._is_detailed = manifest, is_detailed
        self.states = SampleStates(manifest.samples, manifest.max_retries)
        count = manifest.samples if is_detailed else 0
        self.durations, self._notable = Durations(count), NotableDurations(self.states)
        self.attempts, self.writers = np.zeros(count, np.uint32), np.zeros(count, np.uint32)
        self.started_at = np.zeros(count, np.float64)
        self._running = RunningAttempts(self.states)
        self._pace = Pace()
        self.interruptions = 0
        self.longest_interruption_s = 0.0

    def stored(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what is known as arrays, which `restore` takes; this does not include details."""
        interruptions = np.array([self.interruptions, self.longest_interruption_s])
        return {
            **self.states.stored(),
            **self._pace.stored(),
            "notable": self._notable.ends,
            "running": self._running.attempts,
            "interruptions": interruptions,
        }

    def restore(self, stored: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take over what was known of the same step record.

        Raises:
            ValueError: the arrays are not those of a step record.
        """
        self.states.restore(stored)
        self._pace.restore(stored)
        self._notable = NotableDurations(self.states, stored["notable"])
        self._running = RunningAttempts(self.states, stored["running"])
        interruptions, self.longest_interruption_s = stored["interruptions"].tolist()
        self.interruptions = int(interruptions)

    def grow(self, manifest: Manifest) -> None:
        """Take over a manifest with samples that were added to the study."""
        more = manifest.samples - self.manifest.samples
        self.manifest = manifest
        if more <= 0:
            return
        self.states.grow(manifest.samples)
        if self._is_detailed:
            self.durations.grow(manifest.samples)
        for name in ("attempts", "writers", "started_at") if self._is_detailed else ():
            values = getattr(self, name)
            setattr(self, name, np.concatenate([values, np.zeros(more, values.dtype)]))

    def apply(self, entries: Entries, writers: np.ndarray[Any, Any]) -> None:
        """Apply new entries; `writers` has the number of the writer of each entry."""
        # A manifest of before an addition, restored from a backup, has fewer samples than the ledger.
        is_known = entries["start"] < len(self.states)
        if not is_known.all():
            entries, writers = entries[is_known], writers[is_known]
        self.states.apply(entries)
        self._notable.apply(entries)
        self._running.apply(entries, writers)
        kinds = entries["kind"]
        if self._is_detailed:
            self.durations.apply(self.states, entries)
            self._store_starts(entries, writers, kinds == _STARTED)
        stopped = entries["stop"][kinds == _STOPPED]
        self._store_ends(entries, writers, (kinds == _ENDED) | (kinds == _STOPPED) if len(stopped) else kinds == _ENDED)
        if len(stopped):
            self.interruptions += len(stopped)
            self.longest_interruption_s = max(self.longest_interruption_s, int(stopped.max()) / 1e6)

    def _store_starts(self, entries: Entries, writers: np.ndarray[Any, Any], started: np.ndarray[Any, Any]) -> None:
        """Store the writer and the time of the last attempt at each sample."""
        samples, epochs = entries["start"][started].astype(np.intp), entries["epoch"][started]
        np.add.at(self.attempts, samples, np.uint32(1))
        is_last = epochs == self.states.started[samples]
        self.writers[samples[is_last]] = writers[started][is_last]
        self.started_at[samples[is_last]] = entries["time"][started][is_last]

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
        return self._pace.rate(live, np.inf if live is None else self._running.since(live))

    def counts(self, working: np.ndarray[Any, Any]) -> Counts:
        """Count the samples in each state; `working` is a mask of the writers that may still end an attempt."""
        counts = self.states.counts()
        if not counts.running:
            return counts
        lost = counts.running - int(working[self._running.writers].sum())
        return dataclasses.replace(counts, running=counts.running - lost, pending=counts.pending + lost)

    def add_running(self, counts: np.ndarray[Any, Any]) -> None:
        """Add the number of running samples of each writer to `counts`."""
        if self.states.has_started and not self.states.is_complete:
            counts += np.bincount(self._running.writers, minlength=len(counts))

    def running(self, working: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a mask of the running samples; `working` as in `counts`."""
        mask = np.zeros(self.manifest.samples, bool)
        mask[self._running.samples[working[self._running.writers]]] = True
        return mask

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
        found = self.states.find(Outcome.HARD_FAILED)
        return self._sample(found.first) if found else None

    def failed_indices(self) -> np.ndarray[Any, Any]:
        """Return the indices of the samples that failed."""
        return self.states.find(Outcome.FAILED, Outcome.HARD_FAILED).samples()

    @property
    def longest_us(self) -> int:
        """The longest duration of a sample in microseconds; 0 for a record that is not sampled."""
        return int(self._notable.longest_us) if self.manifest.sampled else 0

    def slowest(self, limit: int) -> list[SampleStatus]:
        """Return the `limit` slowest samples in any order; empty for a record that is not sampled."""
        return [self._sample(index) for index in self._notable.longest(limit)] if self.manifest.sampled else []

    def _sample(self, index: int) -> SampleStatus:
        return SampleStatus(
            manifest=self.manifest,
            index=index,
            code=int(self.states.code(index)),
            duration_s=int(self._notable.of(index)) / 1e6,
            losses=int(self.states.losses[index]),
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
