"""The table of samples: one row for each sample of each step record."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from maestro_celery_plugin.errors import StudyError, nearest
from maestro_celery_plugin.report.model import StudyStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.sample_columns import RecordColumns
from maestro_celery_plugin.report.sample_rows import Query, SampleRows
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_facts import read_facts
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["StudySamples"]


class StudySamples:
    """The samples of a study as a table.

    Args:
        directory: The directory of the study.

    Attributes:
        status: The status of the study.

    Raises:
        StudyError: the directory is not that of an ensemble study, or cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._reader = StatusReader(directory, is_detailed=True)
        self.status: StudyStatus = self._reader.read()
        parameters = {step.name: step.params for step in self.status.steps}
        writers = [worker_of(name) for name in self._reader.writers]
        self.records = [
            RecordColumns(
                record, parameters.get(record.manifest.name, {}), self._reader.working, writers, lambda: self._nodes
            )
            for record in self._reader.records
        ]

    @functools.cached_property
    def _nodes(self) -> list[str | None]:
        """The machine of each writer."""
        session = Session(self._reader.plan.session)
        known = {worker_of(beat.name): beat.node for beat in session.heartbeats.all()}
        known.update({name: facts.node for name, facts in read_facts(session).items()})
        return [known.get(worker_of(name)) for name in self._reader.writers]

    def rows(self, query: Query) -> SampleRows:
        """Return the rows that a query asks for; this evaluates its condition and reads its files.

        Raises:
            ExpressionError: the condition or a column cannot be used.
            StudyError: there is no such step.
            SampleError: the sample table cannot be read any more.
        """
        return SampleRows(self.of_steps(query.steps), query)

    def of_steps(self, steps: Sequence[str]) -> list[RecordColumns]:
        """Return the step records of steps, or with these names; all without names.

        Raises:
            StudyError: there is no such step.
        """
        known = {step.name for step in self.status.steps} | {step.step for step in self.status.steps}
        for step in steps:
            if step not in known:
                raise StudyError(f"There is no step '{step}' in the study; {nearest(step, known)}")
        if not steps:
            return self.records
        manifests = [(record, record.record.manifest) for record in self.records]
        return [record for record, manifest in manifests if manifest.name in steps or manifest.step in steps]
