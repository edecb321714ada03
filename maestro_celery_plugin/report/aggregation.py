"""The aggregation of a ledger: it reads each entry once, and keeps a few numbers for each sample, worker and step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, Entries, Kind
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.report.busy_timeline import BusyTimeline
from maestro_celery_plugin.report.durations import Durations
from maestro_celery_plugin.report.slot_use import ENDS, FAILED, FINISHED, LOST, NOT_RUN, RUNNING, Attempts, SlotUse
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["DURATION_EDGES", "Aggregation", "RecordTotals", "StepTotals", "WriterTotals"]

Array = np.ndarray[Any, Any]

# Edges of the bins of durations: twelve in each factor of ten, from 1 ms to 116 days.
DURATION_EDGES = 10.0 ** (np.arange(10 * 12 + 1) / 12 - 3)
_STARTED, _LOST = int(Kind.STARTED), int(Kind.LOST)
_SHORTEST_S = 1e-4
_SORTED_AT_ONCE = 1 << 18


class RecordTotals:
    """The samples of one step record.

    Args:
        manifest: The step record.

    Attributes:
        manifest: The step record.
        states: The states of its samples.
        durations: The durations of its samples.
        attempts: Number of attempts of each sample.
        writer: The number of the writer of the last attempt of each sample.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.states = SampleStates(manifest.samples, manifest.max_retries)
        self.durations = Durations(manifest.samples)
        self.attempts = np.zeros(manifest.samples, np.uint16)
        self.writer = np.zeros(manifest.samples, np.uint32)

    def apply(self, entries: Entries, writers: Array) -> None:
        """Apply entries of this record; `writers` has the number of the writer of each entry."""
        self.states.apply(entries)
        self.durations.apply(self.states, entries)
        within = entries["start"] < self.manifest.samples
        begun = (entries["kind"] == _STARTED) & within
        samples, epochs = entries["start"][begun].astype(np.intp), entries["epoch"][begun]
        np.add.at(self.attempts, samples, np.uint16(1))
        is_last = epochs == self.states.started[samples]
        self.writer[samples[is_last]] = writers[begun][is_last]


class StepTotals:
    """The attempts of one step.

    Attributes:
        attempts: Number of attempts by their end, in the order of `ENDS`.
        durations: Number of attempts by duration (`DURATION_EDGES`), finished and failed.
        first_start: The first start of an attempt (Unix seconds); infinite without one.
        last_end: The last end of an attempt; 0 without one.
    """

    def __init__(self) -> None:
        self.attempts = np.zeros(len(ENDS), np.int64)
        self.durations = np.zeros((2, len(DURATION_EDGES) - 1), np.int64)
        self.first_start, self.last_end = np.inf, 0.0

    def add(self, attempts: Attempts) -> None:
        """Add attempts of this step."""
        self.attempts += np.bincount(attempts.end, minlength=len(ENDS))
        self.first_start = min(self.first_start, float(attempts.start.min(initial=np.inf)))
        self.last_end = max(self.last_end, float(attempts.stop.max(initial=0.0)))
        for row, end in enumerate((FINISHED, FAILED)):
            seconds = np.clip(attempts.seconds[attempts.end == end], DURATION_EDGES[0], DURATION_EDGES[-1])
            self.durations[row] += np.histogram(seconds, DURATION_EDGES)[0]


class WriterTotals:
    """The attempts of one writer.

    Attributes:
        name: Its name.
        use: The use of its slots.
        attempts: Number of attempts by their end, in the order of `ENDS`.
        seconds: Seconds of attempts by their end.
        log_seconds: Number of finished attempts and sum of the logarithms of their durations, by step.
    """

    def __init__(self, name: str) -> None:
        self.name, self.use = name, SlotUse()
        self.attempts, self.seconds = np.zeros(len(ENDS), np.int64), np.zeros(len(ENDS))
        self.log_seconds: dict[str, Array] = {}

    def add(self, attempts: Attempts) -> None:
        """Count attempts."""
        self.attempts += np.bincount(attempts.end, minlength=len(ENDS))
        self.seconds += np.bincount(attempts.end, weights=attempts.seconds, minlength=len(ENDS))

    def add_durations(self, step: str, seconds: Array) -> None:
        """Add the durations of finished attempts of a step."""
        logarithms = np.log(np.maximum(seconds, _SHORTEST_S))
        self.log_seconds[step] = self.log_seconds.get(step, np.zeros(2)) + np.array([len(seconds), logarithms.sum()])


class Aggregation:
    """Aggregates the entries of all writers, which may come in chunks; those of one writer must be in order.

    Attributes:
        records: The step records by number.
        steps: The steps by name.
        writers: The workers by name.
        timeline: The busy slots.
    """

    def __init__(self) -> None:
        self.records: dict[int, RecordTotals] = {}
        self.steps: dict[str, StepTotals] = {}
        self.writers: dict[str, WriterTotals] = {}
        self.timeline = BusyTimeline()
        self._numbers: dict[str, int] = {}
        self._endless: list[tuple[str, Attempts]] = []
        self._losses: list[Entries] = []
        # Entries that wait until there are so many that they are worth a sort by step record, and their writers.
        self._waiting: list[tuple[Entries, int]] = []
        self._step_places: dict[int, int] = {}

    def add_record(self, manifest: Manifest) -> None:
        """Let a step record be known, before its first entry."""
        if manifest.number not in self.records:
            self.records[manifest.number] = RecordTotals(manifest)
            self.steps.setdefault(manifest.step, StepTotals())
            self._step_places[manifest.number] = list(self.steps).index(manifest.step)

    def add(self, writer: str, entries: Entries) -> None:
        """Apply the next entries of a writer."""
        number = self._numbers.setdefault(writer, len(self._numbers))
        self._waiting.append((entries, number))
        if sum(len(waiting) for waiting, _ in self._waiting) >= _SORTED_AT_ONCE:
            self._apply_waiting()
        if writer == COORDINATOR:
            self._losses.append(entries[entries["kind"] == _LOST].copy())
            return
        totals = self.writers.setdefault(writer, WriterTotals(writer))
        ended, endless = totals.use.add(entries)
        self._count(totals, ended)
        self._endless.append((writer, endless))

    def close(self, is_live: Callable[[str], bool], now: float) -> None:
        """Count the attempts without an end: those of live workers run now, and those of others are lost.

        Args:
            is_live: Tells whether a worker lives.
            now: The present time (Unix seconds).
        """
        self._apply_waiting()
        lost = np.concatenate([np.empty(0, ENTRY), *self._losses])
        lost_at = {(int(e["record"]), int(e["start"]), int(e["epoch"])): float(e["time"]) for e in lost}
        for writer, totals in self.writers.items():
            self._endless.append((writer, totals.use.unfinished()))
        for writer, attempts in self._endless:
            if len(attempts):
                self._count(self.writers[writer], _ended(attempts, lost_at, is_live(writer), now))
        self._endless = []

    def _apply_waiting(self) -> None:
        """Apply the waiting entries to their step records: one sort for many writers."""
        entries = np.concatenate([np.empty(0, ENTRY), *(waiting for waiting, _ in self._waiting)])
        writers = np.concatenate(
            [np.empty(0, np.uint32), *(np.full(len(waiting), number, np.uint32) for waiting, number in self._waiting)]
        )
        self._waiting = []
        order = np.argsort(entries["record"], kind="stable")
        entries, writers = entries[order], writers[order]
        edges = np.flatnonzero(np.diff(entries["record"])) + 1
        for part, part_writers in zip(np.split(entries, edges), np.split(writers, edges), strict=True):
            record = self.records.get(int(part["record"][0])) if len(part) else None
            if record is not None:
                record.apply(part, part_writers)

    def _count(self, totals: WriterTotals, attempts: Attempts) -> None:
        """Count attempts of one writer, step by step."""
        totals.add(attempts)
        for step, part in self._by_step(attempts):
            self.steps[step].add(part)
            ran = part.only(part.end != NOT_RUN)
            self.timeline.add(step, ran.start, ran.stop)
            finished = part.seconds[part.end == FINISHED]
            if len(finished):
                totals.add_durations(step, finished)

    def _by_step(self, attempts: Attempts) -> list[tuple[str, Attempts]]:
        names = list(self.steps)
        numbers, inverse = np.unique(attempts.record, return_inverse=True)
        steps = np.array([self._step_places.get(int(number), -1) for number in numbers], np.intp)[inverse]
        return [(names[place], attempts.only(steps == place)) for place in np.unique(steps).tolist() if place >= 0]

    def writer_name(self, number: int) -> str:
        """Return the name of a writer from its number in `RecordTotals.writer`."""
        return list(self._numbers)[number]

    def records_of(self, step: str) -> list[RecordTotals]:
        """Return the step records of a step."""
        return [totals for totals in self.records.values() if totals.manifest.step == step]


def _ended(attempts: Attempts, lost_at: Mapping[tuple[int, int, int], float], is_live: bool, now: float) -> Attempts:
    """Return attempts without an entry of their end, with the end that follows from the other entries."""
    keys = list(zip(attempts.record.tolist(), attempts.sample.tolist(), attempts.epoch.tolist(), strict=True))
    is_lost = np.array([key in lost_at or not is_live for key in keys]) | (attempts.end == LOST)
    stops = np.array([lost_at.get(key, stop) for key, stop in zip(keys, attempts.stop.tolist(), strict=True)])
    stops = np.where(is_lost, stops, now)
    return dataclasses.replace(
        attempts,
        stop=np.maximum(stops, attempts.start),
        end=np.where(is_lost, LOST, RUNNING).astype(np.uint8),
    )
