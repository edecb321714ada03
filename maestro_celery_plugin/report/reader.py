"""The status of a study: how far each step record is, what failed, and which workers live.

It comes from files alone (the ledger, the manifests, heartbeats, Maestro's ``status.csv``); the broker is
asked for nothing, so it can be told while the study runs, when it has ended, and on any machine that sees
its directory.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.batch.allocation import read_allocations
from maestro_celery_plugin.conductor.worker_pool import SILENCE_LIMIT_S
from maestro_celery_plugin.conductor.worker_sources import awaited_groups
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.reader import COORDINATOR, ENTRY, SUFFIX, Entries, LedgerReader
from maestro_celery_plugin.ledger.sample_states import Counts
from maestro_celery_plugin.processes import ProcessId, host_name
from maestro_celery_plugin.report.model import AllocationStatus, StepStatus, StudyState, StudyStatus, WorkerStatus
from maestro_celery_plugin.report.samples import RecordSamples, SampleStatus
from maestro_celery_plugin.report.usage import AllocationUse
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.conductor_lock import conductor_lock
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.session import Heartbeat, Session
from maestro_celery_plugin.study.status_csv import LAST_STATES, StepRow, read_rows, shared_lock

__all__ = ["StatusReader"]

_NO_SAMPLES = Counts(total=0, finished=0, failed=0, running=0, pending=0)


class StatusReader:
    """Follows a study; each call to `read` takes in what is new.

    Args:
        directory: The study's directory.

    Raises:
        StudyError: it is not the directory of an ensemble study, or no longer where it was made.
    """

    def __init__(self, directory: Path) -> None:
        self._plan = StudyPlan.read(directory)
        if not self._plan.root.is_dir():
            raise StudyError(
                f"'{directory}' was made as '{self._plan.root}', which is not there; "
                "move the study back to look at it."
            )
        self._session = Session(self._plan.session)
        self._ledger = LedgerReader(self._plan.ledger)
        self._use = AllocationUse(self._plan.settings)
        self._records: dict[int, RecordSamples] = {}
        self._by_name: dict[str, RecordSamples] = {}
        self._writers: list[str] = []

    def read(self) -> StudyStatus:
        """Return how far the study is now.

        Raises:
            StudyError: a file of the study cannot be read.
        """
        # The conductor writes what it has done before it gives the lock back, so the lock is looked at first.
        conducted = self._is_conducted()
        try:
            rows = read_rows(self._plan.root)
            self._follow_ledger()
            beats = self._session.heartbeats()
            alive = {beat.name: self._lives(beat, conducted) for beat in beats}
            return StudyStatus(
                study=self._name(),
                path=self._plan.root,
                state=self._state(rows, conducted),
                steps=self._steps(rows, alive, conducted),
                allocations=list(self._allocations()),
                workers=[*self._workers(beats, alive), *self._awaited(rows, beats, alive)],
            )
        except OSError as cause:
            raise StudyError(f"The study '{self._plan.root}' cannot be read: {cause}.") from cause

    def _name(self) -> str:
        """Return the study's name: Maestro stores a study as ``<name>.study.pkl``."""
        names = sorted(path.name for path in self._plan.root.glob("*.study.pkl"))
        return names[0].removesuffix(".study.pkl") if names else self._plan.root.name

    def _is_conducted(self) -> bool:
        with shared_lock(Path(conductor_lock(self._plan).lock_file)) as is_free:
            return not is_free

    def _state(self, rows: list[StepRow], conducted: bool) -> StudyState:
        if conducted:
            return StudyState.RUNNING
        if not (self._session.read_conductor_beat()[0] or (self._plan.ledger / f"{COORDINATOR}{SUFFIX}").exists()):
            return StudyState.PENDING
        return _state_after_end({row.state for row in rows})

    # --- allocations and workers ---

    def _allocations(self) -> Iterator[AllocationStatus]:
        for one in read_allocations(self._plan.allocations):
            yield AllocationStatus(
                name=one.name,
                number=one.number,
                job=one.job,
                state=one.state.name,
                reason=one.reason,
                slots=one.slots,
                seconds=one.ended_at - one.began_at if one.began_at and one.ended_at else None,
                sample_seconds=self._use.ended_s(one.label),
                interrupted_seconds=self._use.interrupted_s(one.label),
            )

    def _lives(self, beat: Heartbeat, conducted: bool) -> bool:
        """Tell whether a worker lives; a conductor that lives forgets the dead ones of other machines."""
        if beat.host == host_name():
            return ProcessId(*beat.process).is_alive
        path = self._session.path / "workers" / f"{beat.name}.json"
        return conducted or time.time() - path.stat().st_mtime < SILENCE_LIMIT_S

    @staticmethod
    def _workers(beats: list[Heartbeat], alive: dict[str, bool]) -> Iterator[WorkerStatus]:
        """Yield the workers; the processes of a pool, named ``<worker>.<pid>``, count as their worker."""
        busy = {beat.name.partition(".")[0] for beat in beats if beat.state == "busy" and alive[beat.name]}
        for beat in beats:
            if "." not in beat.name:
                state = "busy" if beat.name in busy else beat.state
                state = state if alive[beat.name] else "dead"
                yield WorkerStatus(name=beat.name, group=beat.group, node=beat.node, state=state)

    def _awaited(
        self, rows: list[StepRow], beats: list[Heartbeat], alive: dict[str, bool]
    ) -> Iterator[WorkerStatus]:
        """Yield what is missing: a group of which somebody has to start the workers on another machine."""
        served = {beat.group for beat in beats if alive[beat.name]}
        left = {row.step for row in rows if row.state not in LAST_STATES}
        queues = {queue for step, facts in self._plan.settings.steps.items() if step in left for queue in facts.queues}
        for name, group in awaited_groups(self._plan.settings, served).items():
            if queues.intersection(group.task_queues):
                yield WorkerStatus(name="", group=name, node=" or ".join(group.machines), state="awaited")

    # --- step records ---

    def _steps(self, rows: list[StepRow], alive: dict[str, bool], conducted: bool) -> list[StepStatus]:
        """Return the step records in Maestro's order, and behind them those it does not name."""
        working = np.array([conducted or alive.get(writer, False) for writer in self._writers], bool)
        self._by_name = {record.manifest.name: record for record in self._records.values()}
        named = {row.name for row in rows}
        unnamed = [_row_of(record.manifest) for name, record in self._by_name.items() if name not in named]
        living = np.array([alive.get(writer, False) for writer in self._writers], bool)
        return [_step(row, self._record(row.name), working, living, conducted) for row in (*rows, *unnamed)]

    def _follow_ledger(self) -> None:
        """Take in what is new: one sort groups all entries by step record."""
        entries, writers = self._new_entries()
        # Looked at after the ledger: a record's manifest is there before its first entry.
        self._read_manifests(entries)
        if not len(entries):
            return
        if (entries["record"] != entries["record"][0]).any():
            order = np.argsort(_small(entries["record"]), kind="stable")
            entries, writers = entries[order], writers[order]
        edges = np.flatnonzero(np.diff(entries["record"])) + 1
        for part, part_writers in zip(np.split(entries, edges), np.split(writers, edges), strict=True):
            record = self._records.get(int(part["record"][0]))
            if record:
                record.apply(part, part_writers)

    def _new_entries(self) -> tuple[Entries, np.ndarray[Any, Any]]:
        """Return new entries, and the number in `_writers` of the writer of each."""
        parts, writers = [np.empty(0, ENTRY)], [np.empty(0, np.uint32)]
        for writer, entries in self._ledger.poll():
            if writer not in self._writers:
                self._writers.append(writer)
            self._use.add(writer, entries)
            parts.append(entries)
            writers.append(np.full(len(entries), self._writers.index(writer), np.uint32))
        return np.concatenate(parts), np.concatenate(writers)

    def _read_manifests(self, entries: Entries) -> None:
        known = np.array([0, *self._records], np.uint32)
        if self._records and np.isin(entries["record"], known).all():
            return
        for manifest in Manifest.read_all(self._plan.records):
            self._records.setdefault(manifest.number, RecordSamples(manifest))

    # --- samples ---

    def failed(self, limit: int) -> list[SampleStatus]:
        """Return up to `limit` failed samples by step record and index, as of the last `read`."""
        found: list[SampleStatus] = []
        for record in sorted(self._records.values(), key=lambda record: record.manifest.number):
            found.extend(record.failed(limit - len(found)))
        return found

    def fatal(self, name: str) -> SampleStatus | None:
        """Return the sample that has failed the step record of this name, as of the last `read`; None if none has."""
        record = self._record(name)
        return record.fatal() if record else None

    def interruptions(self, name: str) -> tuple[int, float]:
        """Return how many attempts of a step record were ended early, and how long the longest had run, in seconds."""
        record = self._record(name)
        return (record.interruptions, record.longest_interruption_s) if record else (0, 0.0)

    def _record(self, name: str) -> RecordSamples | None:
        return self._by_name.get(name)

    def failure_kinds(self, limit: int) -> list[tuple[SampleStatus, int]]:
        """Return the first failed sample of each step record and exit code, with the number of such samples.

        The `limit` most frequent, as of the last `read`.
        """
        kinds = (kind for record in self._records.values() for kind in record.failure_kinds())
        return heapq.nlargest(limit, kinds, key=lambda kind: kind[1])

    def slowest(self, limit: int) -> list[SampleStatus]:
        """Return up to `limit` samples whose last attempt took longest, as of the last `read`."""
        candidates = (sample for record in self._records.values() for sample in record.slowest(limit))
        return heapq.nlargest(limit, candidates, key=lambda sample: sample.duration_s)


def _small(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return numbers in 16 bits if they fit, for which NumPy's stable sort takes linear time."""
    return numbers.astype(np.uint16) if int(numbers.max()) <= np.iinfo(np.uint16).max else numbers


def _row_of(manifest: Manifest) -> StepRow:
    return StepRow(name=manifest.name, step=manifest.step, params={}, state="PENDING", restarts=0)


def _step(
    row: StepRow,
    record: RecordSamples | None,
    working: np.ndarray[Any, Any],
    living: np.ndarray[Any, Any],
    conducted: bool,
) -> StepStatus:
    return StepStatus(
        name=row.name,
        step=record.manifest.step if record else row.step,
        params=row.params,
        state=_step_state(row.state, record, conducted),
        restarts=row.restarts,
        samples=record.counts(working) if record else _NO_SAMPLES,
        rate=record.rate(living) if record else None,
    )


def _step_state(state: str, record: RecordSamples | None, conducted: bool) -> str:
    """Return the state of a step record: Maestro's word if it is the last one, else the newer ledger's."""
    if state in LAST_STATES:
        return state
    if record is None:  # not submitted yet, or a plain step, of which Maestro alone knows
        return "INTERRUPTED" if state == "RUNNING" and not conducted else state
    if record.progress.is_complete:
        return "FAILED" if (record.progress.outcome == Outcome.HARD_FAILED).any() else "FINISHED"
    if not record.progress.started.any():
        return "PENDING" if state == "INITIALIZED" else state
    return "RUNNING" if conducted else "INTERRUPTED"


def _state_after_end(states: set[str]) -> StudyState:
    """Return the state of a study whose conductor has ended, by the states of its step records.

    Maestro leaves step records INITIALIZED when a study is cancelled (executiongraph.py:730).
    """
    left = states - LAST_STATES
    if "CANCELLED" in states and left <= {"INITIALIZED"}:
        return StudyState.CANCELLED
    if left or not states:
        return StudyState.INTERRUPTED
    return StudyState.FINISHED if states <= {"FINISHED", "DRYRUN"} else StudyState.FAILED
