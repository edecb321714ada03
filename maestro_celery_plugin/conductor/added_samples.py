"""The samples that were added to a study while its conductor lives: the step records take them.

`maestro/growing.py` decides, at a poll of Maestro, which step records take them and which run again because of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.samples.paths import FINISHED_MARKER
from maestro_celery_plugin.study.additions import AdditionFile
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["AddedSamples", "Taking"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taking:
    """What happens to the step records of a study when samples were added to it.

    Attributes:
        again: The names of the step records that run again, those that depend on others first.
        grown: The manifests of the step records with more samples, by name.
        running: The names of those that Maestro waits for: their new samples run now, those of others after Maestro has
            submitted the step record again.
    """

    again: Sequence[str]
    grown: Mapping[str, Manifest]
    running: Collection[str]


class AddedSamples:
    """Lets the step records take the samples that were added.

    Args:
        plan: The study.
        records: Its step records.
        send: Sends samples of a step record.
        withdraw: Takes back the messages of a step record that no worker has.

    Attributes:
        has_news: Whether samples were added since the last call of `outdated`.
        total: The number of samples of the study at that call. A step record that is submitted has no more: the samples
            that were added since must first run in the step records that it depends on.
    """

    def __init__(
        self,
        plan: StudyPlan,
        records: StepRecords,
        send: Callable[[StepRecord, SampleSet], None],
        withdraw: Callable[[StepRecord], None],
    ) -> None:
        self._plan, self._records, self._send, self._withdraw = plan, records, send, withdraw
        self._file = AdditionFile(plan)
        self._seen = self._taken = self.total = plan.rows
        self.has_news = False
        self._repeating: dict[str, StepRecord] = {}

    def look(self) -> None:
        """Find out whether samples were added since the last call.

        Raises:
            OSError: a file cannot be read now.
            DamagedFileError: a file is damaged.
        """
        total = self._file.total() if self._plan.rows else 0
        self.has_news, self._seen = self.has_news or total > self._seen, total

    def outdated(self) -> dict[str, Manifest]:
        """Return the manifests of the step records that have fewer samples than the study, by name.

        Raises:
            OSError: a file cannot be read or written now.
            DamagedFileError: a file is damaged.
        """
        self.look()
        self.has_news, self.total = False, self._seen
        if self.total <= self._taken:
            return {}
        manifests = (record.manifest for record in self._records)
        found = {one.name: one for one in manifests if one.sampled and one.samples < self.total}
        if not found:  # those that are submitted later have all samples
            self._taken = self.total
        return found

    def running(self, names: Iterable[str]) -> set[str]:
        """Return those of these step records of which a worker has a sample."""
        records = self._by_name()
        return {name for name in names if name in records and self._records.leases.has(records[name].number)}

    def repeat(self, names: Iterable[str]) -> None:
        """Let step records run again when the attempt has ended that runs now."""
        records = self._by_name()
        for name in names:
            if name in records:
                records[name].repeats = True
                self._repeating[name] = records[name]

    @property
    def has_ended_attempt(self) -> bool:
        """Whether such an attempt has ended, in any way."""
        repeating = (record for record in self._repeating.values() if record.repeats and record.active)
        return any(not self._records.leases.has(record.number) for record in repeating)

    def run_again(self, names: Collection[str]) -> None:
        """Let step records run again that Maestro will submit again; samples of before have no outcome.

        A step record that is not sampled and that runs must have ended before.

        Raises:
            LedgerError: this cannot be recorded.
            OSError: a file cannot be changed now.
        """
        by_name = self._by_name()
        records = [by_name[name] for name in names if name in by_name]
        for record in records:
            self._record_rerun(record)
        self._records.flush()
        self._records.follow_own()
        for record in records:
            record.active = record.repeats = False
            self._repeating.pop(record.manifest.name, None)
            self._withdraw(record)

    def take(self, taking: Taking) -> None:
        """Let the step records have the samples.

        What depends on them is recorded first: if this process dies in between, the next conductor does the rest.

        Raises:
            LedgerError: this cannot be recorded.
            OSError: a file cannot be changed now.
        """
        self.run_again(taking.again)
        records = self._by_name()
        counts = {name: records[name].manifest.samples for name in taking.grown}
        grown = {name: replace(one, number=records[name].number) for name, one in taking.grown.items()}
        # All of them first: after an error, none has grown, and the caller tries again.
        for name, manifest in grown.items():
            self._records.write_manifest(records[name], manifest)
        for name, manifest in grown.items():
            self._records.use_manifest(records[name], manifest)
            records[name].samples.grow(manifest.samples)
        for name in taking.running:
            records[name].active = True
            if not records[name].timed_out:  # otherwise Maestro restarts it
                self._send_new(records[name], counts[name])

    def _by_name(self) -> dict[str, StepRecord]:
        return {record.manifest.name: record for record in self._records}

    def _record_rerun(self, record: StepRecord) -> None:
        samples = record.samples
        has_begun = samples.find_begun()
        if not has_begun:
            return
        epoch = samples.highest_epoch
        if record.manifest.sampled and not samples.is_complete:  # no sample may begin or end with the inputs of before
            epoch += 1
            self._records.record_cancelled(record, epoch)
        if record.manifest.finished_marker:
            for sample in has_begun.samples().tolist():
                _marker(record.manifest, sample).unlink(missing_ok=True)
        self._records.record_anew(record, has_begun.first, has_begun.last + 1, epoch)

    def _send_new(self, record: StepRecord, start: int) -> None:
        samples = record.unassigned(self._records.leased(record)) - SampleSet.of_range(0, start)
        with contextlib.suppress(EnsembleError, OSError):  # they are sent when that has passed, as after other errors
            self._send(record, samples)


def _marker(manifest: Manifest, sample: int) -> Path:
    path = manifest.paths.of(sample) if manifest.sampled else "."
    return Path(manifest.workspace, path, FINISHED_MARKER)
