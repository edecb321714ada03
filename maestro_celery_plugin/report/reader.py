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
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX
from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.report.broker_check import BrokerCheck
from maestro_celery_plugin.report.ledger_samples import LedgerSamples
from maestro_celery_plugin.report.model import AllocationStatus, StepStatus, StudyState, StudyStatus, WorkerStatus
from maestro_celery_plugin.report.sample_status import RecordSamples, SampleStatus
from maestro_celery_plugin.report.unserved_steps import as_waiting, unserved_steps
from maestro_celery_plugin.report.worker_status import alive_workers, workers
from maestro_celery_plugin.states import WorkerState
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
        self._plan = StudyPlan.read(directory)
        if not self._plan.root.is_dir():
            raise StudyError(
                f"'{directory}' was created as '{self._plan.root}', which does not exist; move the study back."
            )
        self._session, self._groups = Session(self._plan.session), serving_groups(self._plan.settings)
        self._members, self._shares_session = Members(self._plan.session), False
        self._ledger = LedgerSamples(self._plan, is_detailed=is_detailed)
        self._broker = BrokerCheck(self._session)
        self._by_name: dict[str, RecordSamples] = {}
        self._names: list[str] = []
        self.working = np.zeros(0, bool)

    @property
    def plan(self) -> StudyPlan:
        """The plan of the study."""
        return self._plan

    @property
    def writers(self) -> list[str]:
        """The names of the writers of the ledger, from the last `read`."""
        return self._ledger.writers

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
            self._ledger.follow()
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
                waiting_additions=self._ledger.waiting_additions(),
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
                sample_seconds=self._ledger.usage.ended_s(one.label),
                interrupted_seconds=self._ledger.usage.interrupted_s(one.label),
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
        self.working = np.array([conducted or alive.get(writer, False) for writer in self._ledger.writers], bool)
        self._by_name = {record.manifest.name: record for record in self._ledger.records.values()}
        named = {row.name for row in rows}
        unnamed = [_row_of(record.manifest) for name, record in self._by_name.items() if name not in named]
        live = np.array([alive.get(writer, False) for writer in self._ledger.writers], bool)
        self._names = [row.name for row in (*rows, *unnamed)]
        steps = [_step(row, self.record(row.name), self.working, live, conducted) for row in (*rows, *unnamed)]
        return [as_waiting(step) if step.step in unserved else step for step in steps]

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
        counts = np.zeros(len(self._ledger.writers), np.intp)
        for record in self._ledger.records.values():
            record.add_running(counts)
        return {writer: int(count) for writer, count in zip(self._ledger.writers, counts, strict=True) if count}

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
        records = heapq.nlargest(limit, self._ledger.records.values(), key=lambda record: record.longest_us)
        candidates = (sample for record in records for sample in record.slowest(limit))
        return heapq.nlargest(limit, candidates, key=lambda sample: sample.duration_s)


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
    if state == "INITIALIZED" and record.states.runs_again and conducted and not record.states.counts().running:
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
