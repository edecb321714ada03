"""The reader of a study's status: step records, failed samples, allocations and workers.

It reads files only (the ledger, the manifests, heartbeats, Maestro's ``status.csv``) and derives nothing from the
broker. So it works while the study runs, after its end, and on every machine with its file system.

What it has read of a large ledger is stored for the next command (`status_cache.py`).
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.batch.allocation import read_allocations
from maestro_celery_plugin.config.groups import allocation_name, awaited_groups, serving_groups
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, SUFFIX, Entries
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.sample_states import Counts
from maestro_celery_plugin.ledger.store import PartStore
from maestro_celery_plugin.report.broker_check import BrokerCheck
from maestro_celery_plugin.report.model import AllocationStatus, StepStatus, StudyState, StudyStatus, WorkerStatus
from maestro_celery_plugin.report.sample_status import RecordSamples, SampleStatus
from maestro_celery_plugin.report.status_cache import UNUSABLE, StatusCache
from maestro_celery_plugin.report.unserved_steps import as_waiting, unserved_steps
from maestro_celery_plugin.report.usage import AllocationUsage
from maestro_celery_plugin.report.worker_status import alive_workers, workers
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.additions import AdditionFile
from maestro_celery_plugin.study.broken_machines import read_broken_machines
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.failures import has_failed
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import FINAL_STATES, StepRow, read_rows
from maestro_celery_plugin.study.stopped_workers import read_stopped

__all__ = ["StatusReader", "study_name", "study_state"]

# Entries that are applied at once.
_ENTRIES = 1 << 18
# The cache of the status is written after this number of new entries; to read them takes some seconds.
_STORED_ENTRIES = 4_000_000
CACHE = "status.cache"
_NO_SAMPLES = Counts(total=0, finished=0, failed=0, running=0, pending=0)


class StatusReader:
    """Follows a study; each call to `read` applies new entries.

    Args:
        directory: Directory of the study.
        is_detailed: Whether to store what only a table of all samples needs.

    Attributes:
        working: A mask of the writers that may still end an attempt, by their numbers in `writers`.

    Raises:
        StudyError: the directory is not that of an ensemble study, or the study was moved.
    """

    def __init__(self, directory: Path, *, is_detailed: bool = False) -> None:
        self._is_detailed = is_detailed
        self._plan = StudyPlan.read(directory)
        if not self._plan.root.is_dir():
            raise StudyError(
                f"'{directory}' was created as '{self._plan.root}', which does not exist; move the study back."
            )
        self._session, self._groups = Session(self._plan.session), serving_groups(self._plan.settings)
        self._members, self._shares_session = Members(self._plan.session), False
        self._ledger = _reader_of(self._plan)
        self._cache = StatusCache(self._plan.info / CACHE, self._plan.number)
        self._is_restored, self._not_stored = False, 0
        self._usage = AllocationUsage(self._plan.settings)
        self._broker = BrokerCheck(self._session)
        self._additions = AdditionFile(self._plan)
        self._records: dict[int, RecordSamples] = {}
        self._by_name: dict[str, RecordSamples] = {}
        self._names: list[str] = []
        self._writers: list[str] = []
        self.working = np.zeros(0, bool)

    @property
    def plan(self) -> StudyPlan:
        """The plan of the study."""
        return self._plan

    @property
    def writers(self) -> list[str]:
        """The names of the writers of the ledger, from the last `read`."""
        return self._writers

    def read(self, *, is_over: bool = False) -> StudyStatus:
        """Return the status of the study now.

        Args:
            is_over: Whether the conductor ends now; it is this process, which still holds the lock.

        Raises:
            StudyError: a file of the study cannot be read.
        """
        # The conductor writes its results before it releases the lock, so the lock is read first.
        conducted = not is_over and has_conductor(self._plan)
        try:
            rows = read_rows(self._plan.root)
            self._follow_ledger()
            beats = self._session.heartbeats.all()
            self._shares_session = len(self._members.all()) > 1
            if self._shares_session:
                beats = [beat for beat in beats if beat.group in self._groups]
            alive = alive_workers(self._session, beats, conducted=conducted)
            stopped = read_stopped(self._session.path) if conducted else None
            unserved = unserved_steps(self._plan.settings, stopped, _groups_served(beats, alive))
            return StudyStatus(
                study=study_name(self._plan.root),
                path=self._plan.root,
                state=study_state(self._plan, rows, conducted),
                steps=self._steps(rows, alive, conducted, unserved),
                allocations=list(self._allocations()),
                workers=[*workers(beats, alive, self.running_samples()), *self._awaited(rows, beats, alive)],
                broken_machines=read_broken_machines(self._plan.broken_machines),
                damage=self._ledger.damage,
                broker_problem=self._broker.problem() if conducted else "",
                workers_stopped=stopped,
                waiting_additions=self._waiting_additions(),
            )
        except PermissionError as cause:
            raise StudyError(
                f"The study '{self._plan.root}' cannot be read: '{cause.filename}' is only for the user who has "
                "launched it; `maestro status` shows its steps to others."
            ) from cause
        except OSError as cause:
            raise StudyError(f"The study '{self._plan.root}' cannot be read: {cause}.") from cause

    # --- allocations and workers ---

    def _allocations(self) -> Iterator[AllocationStatus]:
        names = {allocation_name(name, group) for name, group in self._groups.items()}
        for one in read_allocations(self._plan.allocations):
            if self._shares_session and one.name not in names:
                continue  # of another study of the session
            yield AllocationStatus(
                name=one.name,
                number=one.number,
                job=one.job,
                state=one.state.name,
                reason=one.reason,
                slots=one.slots,
                seconds=one.ended_at - one.began_at if one.began_at and one.ended_at else None,
                sample_seconds=self._usage.ended_s(one.label),
                interrupted_seconds=self._usage.interrupted_s(one.label),
            )

    def _awaited(self, rows: list[StepRow], beats: list[Heartbeat], alive: dict[str, bool]) -> Iterator[WorkerStatus]:
        """Yield the missing workers of groups that have work and whose workers a user must start on another machine."""
        served = {beat.group for beat in beats if alive[beat.name]}
        active = {row.step for row in rows if row.state not in FINAL_STATES}
        steps = self._plan.settings.steps.items()
        queues = {queue for step, facts in steps if step in active for queue in facts.queues}
        for name, group in awaited_groups(self._plan.settings, served).items():
            if queues.intersection(group.task_queues):
                machines = " or ".join(group.machines)
                yield WorkerStatus(name="", group=name, node=machines, state=WorkerState.AWAITED)

    # --- step records ---

    def _steps(
        self, rows: list[StepRow], alive: dict[str, bool], conducted: bool, unserved: Container[str]
    ) -> list[StepStatus]:
        """Return the step records in Maestro's order, followed by those without a row in ``status.csv``."""
        self.working = np.array([conducted or alive.get(writer, False) for writer in self._writers], bool)
        self._by_name = {record.manifest.name: record for record in self._records.values()}
        named = {row.name for row in rows}
        unnamed = [_row_of(record.manifest) for name, record in self._by_name.items() if name not in named]
        live = np.array([alive.get(writer, False) for writer in self._writers], bool)
        self._names = [row.name for row in (*rows, *unnamed)]
        steps = [_step(row, self.record(row.name), self.working, live, conducted) for row in (*rows, *unnamed)]
        return [as_waiting(step) if step.step in unserved else step for step in steps]

    def _follow_ledger(self) -> None:
        """Apply new entries; the states do not depend on the order of entries of different writers."""
        if not self._is_restored and not self._is_detailed:
            self._restore()
        self._is_restored = True
        for entries, writers in self._new_entries():
            # Read after the ledger: the manifest of a step record exists before its first entry.
            self._read_manifests(entries)
            self._apply(entries, writers)
            self._not_stored += len(entries)
        if self._not_stored > _STORED_ENTRIES and not self._is_detailed:
            self._store()

    def _restore(self) -> None:
        """Take over what an earlier command has read, if the ledger is still the same."""
        found = self._cache.read()
        if found is None:
            return
        facts, marks, records = found
        manifests = {manifest.number: manifest for manifest in Manifest.read_all(self._plan.records)}
        try:
            restored = {number: RecordSamples(manifests[number]) for number in records}
            for number, record in restored.items():
                record.restore(records[number])
            if self._ledger.go_on_at(marks):
                self._records, self._writers = restored, [str(writer) for writer in facts["writers"]]
                self._usage.restore(facts["usage"])
        except UNUSABLE:
            self._ledger = _reader_of(self._plan)

    def _store(self) -> None:
        """Store what was read for the next command."""
        self._not_stored = 0
        marks = self._ledger.marks()
        if marks:
            facts = {"writers": self._writers, "usage": self._usage.stored()}
            self._cache.write(facts, marks, {number: record.stored() for number, record in self._records.items()})

    def _apply(self, entries: Entries, writers: np.ndarray[Any, Any]) -> None:
        """Apply entries: one sort groups them by step record."""
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

    def _new_entries(self) -> Iterator[tuple[Entries, np.ndarray[Any, Any]]]:
        """Yield new entries, and for each entry the number of its writer in `_writers`, at least one time.

        The entries of many writers are yielded together, but not those of all, so that a large ledger needs little
        memory.
        """
        parts, writers = [np.empty(0, ENTRY)], [np.empty(0, np.uint32)]
        count = 0
        for writer, entries in self._ledger.poll_parts():
            if writer not in self._writers:
                self._writers.append(writer)
            self._usage.add(writer, entries)
            parts.append(entries)
            writers.append(np.full(len(entries), self._writers.index(writer), np.uint32))
            count += len(entries)
            if count >= _ENTRIES:
                yield _joined(parts), np.concatenate(writers)
                parts, writers, count = [], [], 0
        if parts:
            yield _joined(parts), np.concatenate(writers)

    def _read_manifests(self, entries: Entries) -> None:
        numbers = np.array([0, *self._records], np.uint32)
        if self._records and np.isin(entries["record"], numbers).all() and not self._has_grown(entries):
            return
        for manifest in Manifest.read_all(self._plan.records):
            if manifest.number in self._records:
                self._records[manifest.number].grow(manifest)
            else:
                self._records[manifest.number] = RecordSamples(manifest, is_detailed=self._is_detailed)

    def _has_grown(self, entries: Entries) -> bool:
        """Whether step records have more samples than before: those that were added to the study."""
        total = self._additions.total()
        counts = np.full(1 + max(self._records), np.iinfo(np.uint64).max, np.uint64)
        for number, record in self._records.items():
            counts[number] = record.manifest.samples
            if record.manifest.sampled and record.manifest.samples < total:
                return True  # the conductor may have changed the manifest since
        return bool((entries["start"] >= counts[entries["record"]]).any())

    def _waiting_additions(self) -> int:
        """Return the number of added samples that no step record has."""
        counts = [record.manifest.samples for record in self._records.values() if record.manifest.sampled]
        return max(0, self._additions.total() - max(counts)) if counts else 0

    # --- samples ---

    def failed(self, limit: int) -> list[SampleStatus]:
        """Return up to `limit` failed samples by step record and index, from the last `read`."""
        found: list[SampleStatus] = []
        for record in self.records:
            if len(found) >= limit:
                break
            found.extend(record.failed(limit - len(found)))
        return found

    def fatal_sample(self, name: str) -> SampleStatus | None:
        """Return the sample that made a step record fail, from the last `read`; None without such a sample."""
        record = self.record(name)
        return record.fatal_sample() if record else None

    def interruptions(self, name: str) -> tuple[int, float]:
        """Return the number of interrupted attempts of a step record, and their longest duration in seconds."""
        record = self.record(name)
        return (record.interruptions, record.longest_interruption_s) if record else (0, 0.0)

    def running_samples(self) -> dict[str, int]:
        """Return the number of running samples by writer, from the last `read`; of dead writers as well."""
        counts = np.zeros(len(self._writers), np.intp)
        for record in self._records.values():
            record.add_running(counts)
        return {writer: int(count) for writer, count in zip(self._writers, counts, strict=True) if count}

    @property
    def records(self) -> list[RecordSamples]:
        """The submitted step records in the order of `read`, which is Maestro's."""
        return [self._by_name[name] for name in self._names if name in self._by_name]

    def record(self, name: str) -> RecordSamples | None:
        """Return the samples of a step record, from the last `read`; None before its submission."""
        return self._by_name.get(name)

    def failure_kinds(self, limit: int) -> list[tuple[SampleStatus, int]]:
        """Return the first failed sample of each step and exit code, with the number of such samples.

        The result has the `limit` most frequent kinds, from the last `read`.
        """
        kinds: dict[tuple[str, int], tuple[SampleStatus, int]] = {}
        for record in self.records:
            for sample, count in record.failure_kinds():
                first, others = kinds.get((sample.manifest.step, sample.code), (sample, 0))
                kinds[sample.manifest.step, sample.code] = first, others + count
        return heapq.nlargest(limit, kinds.values(), key=lambda kind: kind[1])

    def slowest(self, limit: int) -> list[SampleStatus]:
        """Return up to `limit` samples with the longest last attempts, from the last `read`."""
        # The slowest samples are in the step records with the longest durations.
        records = heapq.nlargest(limit, self._records.values(), key=lambda record: record.longest_us)
        candidates = (sample for record in records for sample in record.slowest(limit))
        return heapq.nlargest(limit, candidates, key=lambda sample: sample.duration_s)


def _joined(parts: list[Entries]) -> Entries:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _reader_of(plan: StudyPlan) -> LedgerReader:
    return LedgerReader(plan.ledger, plan.number, store=PartStore(_ENTRIES * ENTRY.itemsize))


def study_name(root: Path) -> str:
    """Return the name of a study: Maestro stores a study as ``<name>.study.pkl``."""
    names = sorted(path.name for path in root.glob("*.study.pkl"))
    return names[0].removesuffix(".study.pkl") if names else root.name


def study_state(plan: StudyPlan, rows: list[StepRow], conducted: bool) -> StudyState:
    """Return the state of a study.

    Args:
        plan: The study.
        rows: The rows of its ``status.csv``.
        conducted: Whether its conductor lives.
    """
    if conducted:
        return StudyState.RUNNING
    session = Session(plan.session)
    if not (session.conductors.read(plan.id).beat or (plan.ledger / f"{COORDINATOR}{SUFFIX}").exists()):
        return StudyState.PENDING if session.path.exists() else StudyState.DRYRUN
    return _state_after_end({row.state for row in rows})


def _small(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return numbers in 16 bits if they fit; NumPy's stable sort then takes linear time."""
    return numbers.astype(np.uint16) if int(numbers.max()) <= np.iinfo(np.uint16).max else numbers


def _groups_served(beats: list[Heartbeat], alive: dict[str, bool]) -> frozenset[str]:
    """Return the groups with a live worker that takes samples."""
    return frozenset(beat.group for beat in beats if alive[beat.name] and beat.state is not WorkerState.STOPPING)


def _row_of(manifest: Manifest) -> StepRow:
    return StepRow(name=manifest.name, step=manifest.step, params={}, state="PENDING", restarts=0)


def _step(
    row: StepRow,
    record: RecordSamples | None,
    working: np.ndarray[Any, Any],
    live: np.ndarray[Any, Any],
    conducted: bool,
) -> StepStatus:
    return StepStatus(
        name=row.name,
        step=record.manifest.step if record else row.step,
        params=row.params,
        state=_step_state(row.state, record, conducted),
        restarts=row.restarts,
        samples=record.counts(working) if record else _NO_SAMPLES,
        find_rate=functools.partial(record.rate, live) if record else lambda: None,
    )


def _step_state(state: str, record: RecordSamples | None, conducted: bool) -> str:
    """Return the state of a step record: Maestro's state if it is final, else the newer state in the ledger."""
    if state in FINAL_STATES:
        return state
    if record is None:  # not submitted yet, or a native step, which has no ledger entries
        return "INTERRUPTED" if state == "RUNNING" and not conducted else state
    if record.states.is_complete:
        return "FAILED" if has_failed(record.manifest, record.states) else "FINISHED"
    if not record.states.has_started:
        return "PENDING" if state == "INITIALIZED" else state
    if state == "INITIALIZED" and record.states.runs_again and conducted and not record.states.running.any():
        return state  # it waits for other step records, to which samples were added
    return "RUNNING" if conducted else "INTERRUPTED"


def _state_after_end(states: set[str]) -> StudyState:
    """Return the state of a study without a conductor, from the states of its step records.

    Maestro leaves step records INITIALIZED when a study is cancelled (executiongraph.py:730).
    """
    active = states - FINAL_STATES
    if "CANCELLED" in states and active <= {"INITIALIZED"}:
        return StudyState.CANCELLED
    if active or not states:
        return StudyState.INTERRUPTED
    return StudyState.FINISHED if states <= {"FINISHED", "DRYRUN"} else StudyState.FAILED
