"""The step records of a study, kept up to date from its ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.conductor.step_record import Tracker
from maestro_celery_plugin.conductor.worker_pool import WorkerGroup
from maestro_celery_plugin.ledger.leases import Holdings
from maestro_celery_plugin.ledger.reader import COORDINATOR, SUFFIX, Entries, Kind, LedgerReader, LedgerWriter
from maestro_celery_plugin.ledger.sample_states import Progress
from maestro_celery_plugin.states import Outcome, RecordState
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.reasons import Reason, write_reasons

__all__ = ["TERMINAL", "Records"]

LOGGER = logging.getLogger(__name__)

TERMINAL = (RecordState.FINISHED, RecordState.FAILED, RecordState.TIMED_OUT, RecordState.CANCELLED)


class Records:
    """All step records that were ever submitted, and who holds what of them.

    Args:
        plan: The study.
        groups: Its worker groups.

    Attributes:
        holdings: The pieces in the hands of workers.
        stopped_by: Which sample asked to stop the study, in words; None when none has.
        starters: The writers that have started a sample.
    """

    def __init__(self, plan: StudyPlan, groups: Iterable[WorkerGroup]) -> None:
        self._plan, self._groups = plan, tuple(groups)
        self._writer = LedgerWriter(plan.ledger / f"{COORDINATOR}{SUFFIX}")
        self._reader = LedgerReader(plan.ledger)
        self._trackers: dict[str, Tracker] = {}
        self._by_number: dict[int, Tracker] = {}
        self.holdings = Holdings()
        self.stopped_by: str | None = None
        self.starters: set[str] = set()

    def load(self, alive: Iterable[str]) -> None:
        """Take up what an earlier conductor has left.

        Args:
            alive: The workers that live.
        """
        for manifest in Manifest.read_all(self._plan.records):
            self._add(manifest, str(Path(manifest.workspace).relative_to(self._plan.root)))
        self.store_reasons()  # those of the earlier conductor do not hold any more
        self.follow()
        for writer in self.holdings.writers().difference(alive):
            self.holdings.forget(writer)
        for tracker in self:
            # The conductor died as well, so it was not a sample that took the worker down.
            self._write_lost(tracker, tracker.progress.unended & ~self.held(tracker), innocent=True)
        self.follow()

    def __iter__(self) -> Iterator[Tracker]:
        return iter(self._trackers.values())

    def with_work(self) -> list[Tracker]:
        """Return the records that Maestro awaits and that have not ended."""
        return [tracker for tracker in self if tracker.active and self.state(tracker) not in TERMINAL]

    def number(self, relative: str) -> int:
        """Return the number of the record with this workspace, a new one if there is none yet."""
        tracker = self._trackers.get(relative)
        return tracker.manifest.number if tracker else max(self._by_number, default=0) + 1

    def enter(self, manifest: Manifest, relative: str) -> Tracker:
        """Store a record's manifest; return its tracker, which may know the record from earlier."""
        manifest.write(self._plan.records / relative / "manifest.json")
        return self._trackers.get(relative) or self._add(manifest, relative)

    def _add(self, manifest: Manifest, relative: str) -> Tracker:
        groups = tuple(group.name for group in self._groups if manifest.task_queue in group.queues)
        tracker = Tracker(manifest, relative, Progress(manifest), groups)
        self._trackers[relative] = self._by_number[manifest.number] = tracker
        return tracker

    def state(self, tracker: Tracker) -> RecordState:
        """Return the state of a record."""
        return tracker.state(held=any(self.holdings.of_record(tracker.manifest.number)))

    def held(self, tracker: Tracker) -> np.ndarray[Any, Any]:
        """Return which samples of a record somebody holds, as a mask."""
        return self.holdings.mask(tracker.manifest.number, tracker.manifest.samples)

    # --- reading the ledger ---

    def follow(self, but: Container[str] = ()) -> None:
        """Take in what is new in the ledger.

        Args:
            but: Writers to pass over this time; not where something is concluded from silence.
        """
        for writer, entries in self._reader.poll(but):
            if writer != COORDINATOR:
                self.holdings.apply(writer, entries)
                if writer not in self.starters and (entries["kind"] == Kind.STARTED).any():
                    self.starters.add(writer)
            for number in np.unique(entries["record"]):
                tracker = self._by_number.get(int(number))
                if tracker:
                    self._apply(tracker, entries[entries["record"] == number])

    def _apply(self, tracker: Tracker, entries: Entries) -> None:
        tracker.apply(entries)
        if not tracker.active:
            return
        samples = entries["start"][entries["kind"] == Kind.ENDED]
        outcomes = tracker.progress.outcome[samples]
        if (outcomes == Outcome.HARD_FAILED).any():
            self.void(tracker)
        if (outcomes == Outcome.STOPPED_STUDY).any():
            self._stop_study(tracker, int(samples[outcomes == Outcome.STOPPED_STUDY][0]))

    def _stop_study(self, tracker: Tracker, sample: int) -> None:
        self.stopped_by = f"Sample {sample} of '{tracker.manifest.name}' has asked to stop all workers (exit code 105)."
        LOGGER.warning("%s", self.stopped_by)
        left = [other for other in self if other.active and not other.progress.is_complete]
        self.cancel(*left, reason=self.stopped_by)

    # --- writing the ledger ---

    def note_sent(self, tracker: Tracker, epoch: int, start: int, stop: int) -> None:
        """Note that samples are sent under a new epoch, which makes void what was sent of them before."""
        self._writer.append(Kind.SENT, tracker.manifest.number, epoch, start, stop)

    def flush(self) -> None:
        """Make what was written visible to workers on other nodes.

        Raises:
            LedgerError: it could not be written.
        """
        self._writer.flush()

    def cancel(self, *trackers: Tracker, reason: str) -> None:
        """Cancel records, for a reason that is left for `maestro-celery explain`."""
        for tracker in trackers:
            tracker.cancelled, tracker.cancelled_at, tracker.reason = True, time.monotonic(), reason
        self.void(*trackers)
        self.store_reasons()

    def store_reasons(self) -> None:
        """Leave for `maestro-celery explain` why step records do not run, or have ended; if there is space for it."""
        reasons = {t.manifest.name: Reason(t.reason, t.failure is not None) for t in self if t.reason}
        try:
            write_reasons(self._plan.reasons, reasons)
        except OSError as cause:
            LOGGER.warning("%s", cause)

    def void(self, *trackers: Tracker) -> None:
        """Declare everything of records void that was sent so far."""
        for tracker in trackers:
            progress = tracker.progress
            if progress.cancelled_epoch <= progress.epoch:
                number, count = tracker.manifest.number, tracker.manifest.samples
                self._writer.append(Kind.CANCELLED, number, progress.epoch + 1, 0, count)
        self.flush()
        self.follow()

    def lose(self, writers: Iterable[str], *, innocent: bool = False) -> None:
        """Record what dead workers were running as lost; they hold nothing any more.

        Args:
            writers: The workers.
            innocent: Whether it is certain that no sample was the reason of their death.
        """
        for piece in [piece for writer in writers for piece in self.holdings.forget(writer)]:
            tracker = self._by_number.get(piece.record)
            if tracker is not None:
                mask = np.zeros(tracker.manifest.samples, bool)
                mask[piece.start : piece.stop] = True
                self._write_lost(tracker, mask & tracker.progress.unended, innocent=innocent)
        self.follow()

    def note_lost(self, tracker: Tracker, mask: np.ndarray[Any, Any]) -> None:
        """Note that attempts have no end and nobody holds them, so that their samples may run again."""
        self._write_lost(tracker, mask, innocent=True)
        self.follow()

    def _write_lost(self, tracker: Tracker, mask: np.ndarray[Any, Any], *, innocent: bool) -> None:
        for sample in np.flatnonzero(mask):
            epoch = int(tracker.progress.started[sample])
            self._writer.append(Kind.LOST, tracker.manifest.number, epoch, int(sample), code=int(innocent))

    def close(self) -> None:
        """Note what the workers have lost that are gone, and close the ledger."""
        self.follow()
        self.lose(self.holdings.writers(), innocent=True)
        self._writer.close()
