"""The summary of a study, from its files: the ledger, the manifests, the allocations, and the sample table."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import read_allocations
from maestro_celery_plugin.config.groups import allocation_name, serving_groups
from maestro_celery_plugin.errors import EnsembleError, StudyError
from maestro_celery_plugin.files import read_text
from maestro_celery_plugin.report.aggregation import Aggregation, RecordTotals, WriterTotals
from maestro_celery_plugin.report.allocation_summaries import allocation_of, allocation_summaries
from maestro_celery_plugin.report.node_comparison import compare_nodes
from maestro_celery_plugin.report.notable_samples import failure_kinds, slowest_samples
from maestro_celery_plugin.report.reader import study_name, study_state
from maestro_celery_plugin.report.redaction import redacted
from maestro_celery_plugin.report.sample_values import COLUMNS, failures_by_parameter, failures_by_value
from maestro_celery_plugin.report.step_summaries import step_summary
from maestro_celery_plugin.report.study_ledger import read_parts, seconds_elsewhere
from maestro_celery_plugin.report.summary import (
    AllocationSummary,
    ColumnFailures,
    Plane,
    SlotTime,
    StepSummary,
    StudySummary,
    Timeline,
)
from maestro_celery_plugin.report.worker_status import alive_workers
from maestro_celery_plugin.study.broken_machines import read_broken_machines
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.status_csv import read_rows
from maestro_celery_plugin.study.worker_facts import VERSIONS_OF, read_facts
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["summarize"]


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
        self._members = Members(plan.session).all()
        self._is_shared = len(self._members) > 1
        self._remarks: list[str] = []
        self._aggregation = Aggregation()
        self._read_ledger()

    def _read_ledger(self) -> None:
        # Read before the ledger: a record that a running study submits now is in its next report.
        for manifest in Manifest.read_all(self._plan.records):
            self._aggregation.add_record(manifest)
        ledger, parts = read_parts(self._plan.ledger, self._plan.number)
        for writer, entries in parts:
            self._aggregation.add(writer, entries)
        alive = alive_workers(self._session, self._beats, conducted=self._conducted)
        self._aggregation.close(lambda writer: alive.get(writer, False), self._now)
        self._remarks += ledger.damage

    def summary(self) -> StudySummary:
        """Return the summary."""
        columns, plane = self._failures_by_value()
        params = {row.name: row.params for row in self._rows}
        columns += failures_by_parameter(self._records, params)
        failures = tuple(failure_kinds(self._aggregation, self._plan.root))
        unlisted = sum(record.states.failures for record in self._records) - sum(kind.samples for kind in failures)
        if unlisted:
            self._remarks.append(f"{unlisted} failed samples with rarer exit codes are not listed by exit code.")
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
            failures=failures,
            slowest=tuple(slowest_samples(self._aggregation, self._plan.root, self._node_of)),
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
        writers: dict[str, list[WriterTotals]] = defaultdict(list)
        for name, totals in self._aggregation.writers.items():
            writers[allocation_of(name, self._facts, names)].append(totals)
        elsewhere: dict[str, float] = defaultdict(float)
        others = [member for member in self._members if member.id != self._plan.id and member.root]
        for name, seconds in seconds_elsewhere(others).items():
            elsewhere[allocation_of(name, self._facts, names)] += seconds
        if self._is_shared:
            opened = [one for one in opened if one.name in set(names.values()) or one.label in writers]
        return tuple(allocation_summaries(opened, writers, self._now, elsewhere))

    # --- samples ---

    def _failures_by_value(self) -> tuple[list[ColumnFailures], Plane | None]:
        try:
            if len(self._plan.column_labels) > COLUMNS:
                self._remarks.append(f"Failures are shown by the first {COLUMNS} columns of the sample table.")
            return failures_by_value(self._records)
        except (EnsembleError, OSError) as error:
            self._remarks.append(f"The values of the samples cannot be read: {error}")
            return [], None

    # --- machines, versions, settings ---

    @functools.cached_property
    def _node_of(self) -> Callable[[str], str]:
        nodes = {beat.name: beat.node for beat in self._beats}
        nodes |= {machine.worker: machine.node for machine in read_broken_machines(self._plan.broken_machines)}
        nodes |= {name: facts.node for name, facts in self._facts.items()}
        return lambda writer: nodes.get(worker_of(writer)) or f"worker {worker_of(writer)}"

    def _versions(self) -> dict[str, str]:
        names = {worker_of(writer) for writer in self._aggregation.writers}
        workers = [facts.versions for name, facts in self._facts.items() if name in names]
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
