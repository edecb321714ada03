"""Reruns: the samples and native steps that run again when a study is resumed, and what depends on them.

A user asks for the first of them: the failed samples, or all samples of a step. What depends on a sample that runs
again runs again as well, because its inputs change.

The ledger records reruns, so that a conductor that dies does not forget them. They are recorded against the direction
of the dependencies: if this process dies in between, the failed samples are still failed, so that the same request does
the rest, and no result that was computed from them counts as that of the repaired samples.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX, Kind
from maestro_celery_plugin.ledger.reader import read_by_record
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.maestro.lost_outcomes import LostOutcomes
from maestro_celery_plugin.maestro.native_orphans import NativeOrphans
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.maestro.step_graph import GraphNode, graph_of, load_study, named
from maestro_celery_plugin.samples.paths import FINISHED_MARKER
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.additions import grown, read_additions
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.failures import has_failed
from maestro_celery_plugin.study.manifest import FILE, Manifest
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["Cause", "RerunRequest", "Reruns"]

_FAILURES = (Outcome.FAILED, Outcome.HARD_FAILED)
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerunRequest:
    """What a user asks to run again.

    Attributes:
        failed: Whether all failed samples run again.
        failed_steps: Whether the failed samples of step records that have failed run again.
        steps: Names of steps, or of step records, that run again as a whole.
        keep_downstream: Whether what depends on them does not run again.
    """

    failed: bool = False
    failed_steps: bool = False
    steps: tuple[str, ...] = ()
    keep_downstream: bool = False


class Cause(enum.IntEnum):
    """Why a sample runs again. If there are several causes, the higher one counts."""

    NONE = 0
    """It does not run again."""
    FAILED = 1
    """It has failed; it runs `restart`."""
    UNMARKED = 2
    """A user has deleted the file that shows that it has finished; it runs `cmd`."""
    REQUESTED = 3
    """A user has named its step; it runs `cmd`."""
    CHANGED = 4
    """What it depends on runs again; it runs `cmd`."""
    ADDED = 5
    """It was added to the study; it runs for the first time."""


class _Record:
    """A step record: its samples, and why they run again.

    Args:
        manifest: Its manifest.
        total: The number of samples of the study.
    """

    def __init__(self, manifest: Manifest, total: int) -> None:
        before = manifest.samples
        self.has_grown = manifest.sampled and before < total
        self.manifest = manifest = grown(manifest, total) if self.has_grown else manifest
        self.samples = SampleStates(manifest.samples, manifest.max_retries)
        self.causes = np.zeros(manifest.samples, np.uint8)
        self.causes[before:] = Cause.ADDED

    @property
    def anew(self) -> Mask:
        """A mask of the samples that run `cmd` again."""
        mask: Mask = (self.causes > Cause.FAILED) & (self.causes < Cause.ADDED)
        return mask

    def unmarked(self) -> Mask:
        """Return a mask of the finished samples whose marker a user has deleted."""
        mask = np.zeros(len(self.causes), bool)
        if self.manifest.finished_marker:
            finished = np.isin(self.samples.outcome, (Outcome.FINISHED, Outcome.STOPPED_STUDY))
            for sample in np.flatnonzero(finished).tolist():
                mask[sample] = not self._marker(sample).exists()
        return mask

    def _marker(self, sample: int) -> Path:
        path = self.manifest.paths.of(sample) if self.manifest.sampled else "."
        return Path(self.manifest.workspace, path, FINISHED_MARKER)

    def add(self, cause: Cause, mask: Mask) -> None:
        """Let samples run again."""
        np.maximum(self.causes, np.where(mask, np.uint8(cause), np.uint8(0)), out=self.causes)

    def record(self, ledger: LedgerWriter) -> None:
        """Record in the ledger which samples run again."""
        samples, number = self.samples, self.manifest.number
        for sample in np.flatnonzero(self.causes == Cause.FAILED).tolist():
            ledger.append(Kind.RERUN, number, samples.last_epoch(sample), sample)
        if not self.anew.any():
            return
        # A live worker must neither begin nor end a sample with the inputs of before.
        epoch = samples.highest_epoch + 1
        ledger.append(Kind.CANCELLED, number, epoch, 0, self.manifest.samples)
        if self.manifest.finished_marker:
            for sample in np.flatnonzero(self.anew).tolist():
                self._marker(sample).unlink(missing_ok=True)
        has_begun = (samples.outcome != Outcome.OPEN) | (samples.started > 0)
        again, others = SampleSet.of_mask(self.anew & has_begun), SampleSet.of_mask(self.anew & ~has_begun)
        for start, stop in again.bridged(others):
            ledger.append(Kind.RERUN, number, epoch, start, stop, code=1)


class Reruns:
    """What runs again in a study without a conductor.

    Args:
        plan: The study.
        request: What a user asks to run again.

    Attributes:
        misled: The names of the step records that have used outcomes which a power cut has cost.

    Raises:
        StudyError: a step does not exist, the graph cannot be read, or a native step cannot run again now.
    """

    def __init__(self, plan: StudyPlan, request: RerunRequest) -> None:
        self._plan, self._total = plan, plan.rows + read_additions(plan).count
        self._records = {record.manifest.name: record for record in _records_of(plan, self._total)}
        self._native: dict[str, GraphNode] = {}
        self._nodes: list[GraphNode] = []
        for record in self._records.values():
            if request.failed or (request.failed_steps and has_failed(record.manifest, record.samples)):
                failed = np.isin(record.samples.outcome, _FAILURES)
                record.add(Cause.FAILED, failed)
            record.add(Cause.UNMARKED, record.unmarked())
        self._cancelled = CancelledSteps(plan.cancelled_steps)
        self._requested: frozenset[str] = frozenset()
        self._repeated = CancelledSteps(plan.steps_to_repeat)
        self._lost = LostOutcomes(plan, ((record.manifest, record.samples) for record in self._records.values()))
        uses_lost = not request.keep_downstream and self._lost.may_have_been_used
        needs_graph = request.steps or self._cancelled.names() or self._repeated.names() or uses_lost
        if needs_graph or (self.names and not request.keep_downstream):
            self._nodes = graph_of(load_study(plan.root))
            self._add_steps(request.steps)
            for node in self._nodes:
                if node.name in self._repeated.names():
                    self._add(node, Cause.CHANGED, None)
        self.misled: list[str] = []
        if not request.keep_downstream:
            self._add_misled()
            self._add_dependents()
        self._check_native()

    @property
    def names(self) -> list[str]:
        """The names of the step records of which something runs again."""
        return [name for name, record in self._records.items() if record.causes.any()] + list(self._native)

    def _add_steps(self, names: tuple[str, ...]) -> None:
        """Let whole steps run again; one that was not submitted runs in any case."""
        requested = named(self._nodes, names)
        self._requested = frozenset(node.name for node in requested)
        for node in requested:
            self._add(node, Cause.REQUESTED, None)

    def _add(self, node: GraphNode, cause: Cause, mask: Mask | None) -> None:
        """Let samples of a step record run again; None for all."""
        record = self._records.get(node.name)
        if node.is_native:
            self._native[node.name] = node
        elif record is not None:
            record.add(cause, np.ones(record.manifest.samples, bool) if mask is None else mask)

    def _add_misled(self) -> None:
        """Let run again what has used outcomes that a power cut has cost: their samples run again in any case."""
        for node, mask in self._lost.users(self._nodes):
            self._add(node, Cause.CHANGED, mask)
            self.misled.append(node.name)
        self.misled = list(dict.fromkeys(self.misled))

    def _add_dependents(self) -> None:
        """Let run again what depends on samples that run again; the nodes follow the dependencies."""
        by_name = {node.name: node for node in self._nodes}
        for node in self._nodes:
            for parent in (by_name[name] for name in node.parents):
                changed = self._changed(parent)
                if changed is not None and changed.any():
                    self._add(node, Cause.CHANGED, changed if node.reads_one_sample_of(parent) else None)

    def _changed(self, node: GraphNode) -> Mask | None:
        """Return a mask of the samples of a step record that run again; None for a record that was not submitted."""
        if node.is_native:
            return np.array([node.name in self._native])
        return self._records[node.name].causes > 0 if node.name in self._records else None

    def _check_native(self) -> None:
        """Check that no native step that must run again still runs, with the inputs of before.

        Raises:
            StudyError: one of them may still run.
        """
        orphans = NativeOrphans(self._plan)
        for name in self._native:
            if orphans.may_run(name):
                raise StudyError(
                    f"'{name}' must run again, but its batch job or script may still run; end it with `maestro cancel "
                    f"{self._plan.root}`, and resume again."
                )

    def _state_of(self, name: str) -> NativeStepState:
        return NativeStepState.of(self._plan.native, name)

    # --- for the user ---

    def sentences(self) -> list[str]:
        """Return what will run, one sentence for each step; the first steps to run come first."""
        steps, records, stopped = self._plan.settings.steps, defaultdict(list), self._stopped()
        for record in self._records.values():
            if record.manifest.name not in stopped:
                records[record.manifest.step].append(record)
        native = {node.step for name, node in self._native.items() if name not in stopped}
        ready = {node.step for node in self._nodes if node.name not in stopped} if stopped else steps.keys()
        sentences = []
        for step in dict.fromkeys((*(node.step for node in self._nodes), *records, *steps)):
            parts = list(_parts(records[step]))
            if step in native:
                parts.append("again")
            if not records[step] and steps[step].queues and step in ready:
                parts.append("for the first time")
            if parts:
                sentences.append(f"{step}: {', '.join(parts)}")
        return sentences

    @property
    def cancelled(self) -> list[str]:
        """The step records that a user has cancelled one by one, and that stay cancelled."""
        return sorted(self._cancelled.names() - self._requested)

    def _stopped(self) -> set[str]:
        """Return the step records that stay cancelled, with those that depend on them; the nodes follow these."""
        stopped = set(self.cancelled)
        for node in self._nodes:
            if not stopped.isdisjoint(node.parents):
                stopped.add(node.name)
        return stopped

    @property
    def kept_failures(self) -> int:
        """Number of failed samples that do not run again."""
        return sum(
            int((np.isin(one.samples.outcome, _FAILURES) & (one.causes == Cause.NONE)).sum())
            for one in self._records.values()
        )

    # --- recording ---

    def record(self) -> None:
        """Record what runs again; afterwards a resume without a request runs it.

        Raises:
            LedgerError: the ledger cannot be written.
            OSError: the state of a native step cannot be changed.
        """
        self._cancelled.remove(self._requested)
        names = [node.name for node in self._nodes] or list(self._records)
        if not self.names:
            return
        path = self._plan.ledger / f"{COORDINATOR}{SUFFIX}"
        ledger = LedgerWriter(path, self._plan.number, to_disk=True)
        try:
            for name in reversed(names):
                if name in self._native:
                    self._state_of(name).forget()
                elif name in self._records:
                    self._records[name].record(ledger)
            ledger.flush()
        finally:
            ledger.close()
        self._store_added(names)

    def _store_added(self, names: list[str]) -> None:
        """Let step records have the samples that were added, after it is recorded what depends on them."""
        self._repeated.remove(self._repeated.names())
        records = [self._records[name] for name in reversed(names) if name in self._records]
        for manifest in (record.manifest for record in records if record.has_grown):
            manifest.write(self._plan.records / Path(manifest.workspace).relative_to(self._plan.root) / FILE)


def _records_of(plan: StudyPlan, total: int) -> list[_Record]:
    """Return all step records that were submitted, with the states of their samples, and with those that were added."""
    records = {manifest.number: _Record(manifest, total) for manifest in Manifest.read_all(plan.records)}
    for number, entries in read_by_record(plan.ledger, plan.number):
        if number in records:
            records[number].samples.apply(entries)
    return list(records.values())


def _parts(records: list[_Record]) -> Iterator[str]:
    """Yield how many samples of a step run, by cause."""
    if not records:
        return
    noun = "sample" if records[0].manifest.sampled else "step record"
    causes = np.concatenate([record.causes for record in records])
    is_open = np.concatenate([record.samples.outcome for record in records]) == Outcome.OPEN
    counts = np.bincount(causes, minlength=len(Cause))
    yield from _part(int(counts[Cause.FAILED]), f"failed {noun}", "again")
    yield from _part(int(counts[Cause.UNMARKED]), noun, f"again without {FINISHED_MARKER}")
    yield from _part(int(counts[Cause.REQUESTED]), noun, "again")
    yield from _part(int(counts[Cause.ADDED]), f"added {noun}", "")
    yield from _part(int(counts[Cause.CHANGED]), noun, "again because of changed inputs")
    yield from _part(int((is_open & (causes == Cause.NONE)).sum()), f"remaining {noun}", "")


def _part(count: int, noun: str, words: str) -> Iterator[str]:
    if count:
        yield f"{count} {noun}{'' if count == 1 else 's'} {words}".rstrip()
