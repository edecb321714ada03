"""The summary of a study, from its files: the ledger, the manifests, the allocations, and the sample table."""

from __future__ import annotations

import functools
import heapq
import importlib.metadata
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import read_allocations
from maestro_celery_plugin.config.groups import allocation_name, serving_groups
from maestro_celery_plugin.errors import EnsembleError, StudyError
from maestro_celery_plugin.files import read_text
from maestro_celery_plugin.ledger.entries import ENTRY, SUFFIX
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.store import PartStore
from maestro_celery_plugin.report.aggregation import Aggregation, RecordTotals, WriterTotals
from maestro_celery_plugin.report.allocation_summaries import allocation_of, allocation_summaries
from maestro_celery_plugin.report.failed_samples import last_lines
from maestro_celery_plugin.report.node_comparison import compare_nodes
from maestro_celery_plugin.report.reader import study_name, study_state
from maestro_celery_plugin.report.redaction import redacted
from maestro_celery_plugin.report.sample_status import SampleStatus, values_of
from maestro_celery_plugin.report.sample_values import failures_by_parameter, failures_by_value
from maestro_celery_plugin.report.step_summaries import step_summary
from maestro_celery_plugin.report.summary import (
    AllocationSummary,
    ColumnFailures,
    FailureKind,
    Plane,
    SlotTime,
    SlowSample,
    StepSummary,
    StudySummary,
    Timeline,
)
from maestro_celery_plugin.report.worker_status import is_alive
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.broken_machines import read_broken_machines
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import read_rows
from maestro_celery_plugin.study.worker_facts import VERSIONS_OF, read_facts

__all__ = ["summarize"]

# Bytes of the ledger in memory at a time.
_PART = (1 << 17) * ENTRY.itemsize
_SLOWEST, _KINDS = 20, 30


def summarize(directory: Path) -> StudySummary:
    """Return the summary of a study.

    Raises:
        StudyError: it is not an ensemble study, or a file cannot be read.
    """
    plan = StudyPlan.read(directory)
    if not plan.root.is_dir():
        raise StudyError(f"'{directory}' was created as '{plan.root}', which does not exist; move the study back.")
    try:
        summary = _Study(plan).summary()
    except OSError as cause:
        raise StudyError(f"The study '{plan.root}' cannot be read: {cause}.") from cause
    return redacted(summary, _secrets(plan))


def _secrets(plan: StudyPlan) -> list[str]:
    """Return the values of `--env-file`."""
    session = Session(plan.session)
    members = Members(plan.session).read_environment(plan.id).values()
    return [*session.secret_values(), *members]


class _Study:
    """The files of one study."""

    def __init__(self, plan: StudyPlan) -> None:
        self._plan, self._session, self._now = plan, Session(plan.session), clock.now()
        self._conducted = has_conductor(plan)
        self._rows = read_rows(plan.root)
        self._facts = read_facts(self._session)
        self._beats = self._session.heartbeats.all()
        self._groups = serving_groups(plan.settings)
        self._is_shared = len(Members(plan.session).all()) > 1
        self._remarks: list[str] = []
        self._aggregation = Aggregation()
        self._read_ledger()

    def _read_ledger(self) -> None:
        ledger = LedgerReader(self._plan.ledger, self._plan.number, store=PartStore(_PART))
        writers = sorted(path.name.removesuffix(SUFFIX) for path in self._plan.ledger.glob(f"*{SUFFIX}"))
        # Read before the ledger: a record that a running study submits now is in its next report.
        for manifest in Manifest.read_all(self._plan.records):
            self._aggregation.add_record(manifest)
        for writer in writers:
            while len(entries := ledger.read(writer)):
                self._aggregation.add(writer, entries)
        alive = {beat.name: is_alive(self._session, beat, self._conducted) for beat in self._beats}
        self._aggregation.close(lambda writer: alive.get(writer, False), self._now)
        self._remarks += ledger.damage

    def summary(self) -> StudySummary:
        """Return the summary."""
        columns, plane = self._failures_by_value()
        params = {row.name: row.params for row in self._rows}
        columns += failures_by_parameter(self._records, params)
        allocations = self._allocations()
        slots = functools.reduce(SlotTime.__add__, (one.slot_time for one in allocations), SlotTime())
        broken = {machine.node for machine in read_broken_machines(self._plan.broken_machines)}
        return StudySummary(
            study=study_name(self._plan.root),
            path=str(self._plan.root),
            state=study_state(self._plan, self._rows, self._conducted).name,
            launched=self._plan.timestamp,
            made_at=self._now,
            timeline=self._timeline(),
            slot_time=slots,
            steps=tuple(self._steps()),
            allocations=allocations,
            columns=tuple(sorted(columns, key=lambda column: -column.weight)),
            plane=plane,
            failures=tuple(self._failure_kinds()),
            slowest=tuple(self._slowest()),
            nodes=compare_nodes(self._aggregation.writers.values(), self._node_of, broken),
            versions=self._versions(),
            settings=self._settings(),
            specification=self._specification(),
            remarks=tuple(self._remarks),
        )

    @property
    def _records(self) -> list[RecordTotals]:
        return list(self._aggregation.records.values())

    def _timeline(self) -> Timeline | None:
        began_at, bin_s, busy = self._aggregation.timeline.result()
        if not busy:
            return None
        return Timeline(
            began_at=began_at, bin_s=bin_s, busy={step: tuple(slots.round(4).tolist()) for step, slots in busy.items()}
        )

    def _steps(self) -> Iterator[StepSummary]:
        states: dict[str, dict[str, str]] = {}
        steps = {record.manifest.name: record.manifest.step for record in self._records}
        for row in self._rows:
            states.setdefault(steps.get(row.name, row.step), {})[row.name] = row.state
        for step in [*states, *(name for name in self._aggregation.steps if name not in states)]:
            yield step_summary(step, self._aggregation, states.get(step, {}))

    def _allocations(self) -> tuple[AllocationSummary, ...]:
        names = {name: allocation_name(name, group) for name, group in self._groups.items()}
        opened = list(read_allocations(self._plan.allocations))
        if self._is_shared:
            opened = [one for one in opened if one.name in set(names.values())]
            self._remarks.append(
                "The study shares its session: workers may have run samples of other studies, which count as waiting."
            )
        writers: dict[str, list[WriterTotals]] = defaultdict(list)
        for name, totals in self._aggregation.writers.items():
            writers[allocation_of(name, self._facts, names)].append(totals)
        return tuple(allocation_summaries(opened, writers, self._now))

    # --- samples ---

    def _failures_by_value(self) -> tuple[list[ColumnFailures], Plane | None]:
        try:
            return failures_by_value(self._records)
        except (EnsembleError, OSError) as error:
            self._remarks.append(f"The values of the samples cannot be read: {error}")
            return [], None

    def _failure_kinds(self) -> Iterator[FailureKind]:
        firsts: dict[tuple[str, int], SampleStatus] = {}
        counts: Counter[tuple[str, int]] = Counter()
        for record in self._records:
            outcome = record.states.outcome
            failed = np.flatnonzero((outcome == Outcome.FAILED) | (outcome == Outcome.HARD_FAILED))
            codes, first, numbers = np.unique(record.states.code(failed), return_index=True, return_counts=True)
            for code, place, number in zip(codes.tolist(), first.tolist(), numbers.tolist(), strict=True):
                firsts.setdefault((record.manifest.step, code), _status(record, int(failed[place])))
                counts[record.manifest.step, code] += number
        kinds = counts.most_common(_KINDS)
        if len(counts) > len(kinds):
            rest = sum(counts.values()) - sum(number for _, number in kinds)
            self._remarks.append(f"{rest} failed samples with other exit codes are not listed by exit code.")
        examples = [firsts[kind] for kind, _ in kinds]
        for example, values, (_, number) in zip(examples, values_of(examples), kinds, strict=True):
            yield FailureKind(
                step=example.manifest.step,
                end=example.end,
                samples=number,
                example=self._relative(example.directory),
                values=values or {},
                stderr="\n".join(last_lines(example.stderr)),
            )

    def _slowest(self) -> Iterator[SlowSample]:
        candidates = [
            (float(record.states.duration_us[index]), record.manifest.number, index)
            for record in self._records
            for index in _longest(record)
        ]
        chosen = heapq.nlargest(_SLOWEST, candidates)
        samples = [_status(self._aggregation.records[number], index) for _, number, index in chosen]
        medians = {step: self._median(step) for step in {sample.manifest.step for sample in samples}}
        for sample, values in zip(samples, values_of(samples), strict=True):
            record = self._aggregation.records[sample.manifest.number]
            writer = self._aggregation.writer_name(int(record.writer[sample.index]))
            median = medians[sample.manifest.step]
            is_open = record.states.outcome[sample.index] == Outcome.OPEN
            yield SlowSample(
                step=sample.manifest.step,
                sample=self._relative(sample.directory),
                seconds=sample.duration_s,
                ratio=sample.duration_s / median if median else 1.0,
                end="runs again" if is_open else "finished" if sample.code == 0 else sample.end,
                node=self._node_of(writer),
                values=values or {},
            )

    def _median(self, step: str) -> float:
        return step_summary(step, self._aggregation, {}).median_s or 0.0

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._plan.root)) if path.is_relative_to(self._plan.root) else str(path)

    # --- machines, versions, settings ---

    @functools.cached_property
    def _node_of(self) -> Callable[[str], str]:
        nodes = {beat.name: beat.node for beat in self._beats}
        nodes |= {machine.worker: machine.node for machine in read_broken_machines(self._plan.broken_machines)}
        nodes |= {name: facts.node for name, facts in self._facts.items()}
        return lambda writer: nodes.get(writer.partition(".")[0]) or f"worker {writer.partition('.')[0]}"

    def _versions(self) -> dict[str, str]:
        workers = [facts.versions for name, facts in self._facts.items() if name in self._aggregation.writers]
        ran = {
            name: sorted({versions.get(name, "") for versions in workers} - {""}) for name in (*VERSIONS_OF, "Python")
        }
        here = {name: importlib.metadata.version(name) for name in VERSIONS_OF} | {"Python": platform.python_version()}
        return {
            name: ", ".join(found) or f"{here[name]} (of this report; the workers' is unknown)"
            for name, found in ran.items()
        }

    def _settings(self) -> dict[str, str]:
        plan, settings = self._plan, self._plan.settings
        found = {
            "Options of the launch": " ".join(plan.overrides.words),
            "Specification": str(plan.specification or ""),
            "Batch system": settings.batch.type,
            "Sample table": f"{plan.table} ({plan.rows} samples)" if plan.table else "",
            "Columns": ", ".join(plan.column_labels),
        }
        for name, group in self._groups.items():
            steps = ", ".join(group.task_queues)
            found[f"Worker group {name}"] = f"{group.args or 'no args'}; task queues {steps}"
        return {name: text for name, text in found.items() if text}

    def _specification(self) -> str:
        files: Mapping[str, str] = self._plan.specification_files
        for path in (*list(files.values())[1:2], *list(files.values())[:1]):
            try:
                return read_text(Path(path))
            except (OSError, UnicodeDecodeError):
                continue
        return ""


def _longest(record: RecordTotals) -> list[int]:
    """Return the samples of a sampled record with the longest durations."""
    durations = record.states.duration_us
    count = min(_SLOWEST, len(durations))
    if not record.manifest.sampled or not count:
        return []
    longest = np.argpartition(durations, len(durations) - count)[-count:]
    return [int(index) for index in longest if durations[index]]


def _status(record: RecordTotals, index: int) -> SampleStatus:
    attempts = record.states.attempts
    return SampleStatus(
        manifest=record.manifest,
        index=index,
        code=int(record.states.code(index)),
        duration_s=int(record.states.duration_us[index]) / 1e6,
        losses=int(attempts.losses[index]) if attempts.has_losses else 0,
    )
