"""Range tasks: what a worker does with a message that names samples [start, stop) of a step record."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger import ENTRY, SUFFIX, Entries, Kind, LedgerReader, LedgerWriter
from maestro_celery_plugin.manifest import Manifest
from maestro_celery_plugin.plugins import plugin_manager
from maestro_celery_plugin.progress import Progress, cannot_run_code
from maestro_celery_plugin.runner import CannotRunError, Runner, RunningAttempt
from maestro_celery_plugin.samples import open_table
from maestro_celery_plugin.states import ExitCode, Outcome
from maestro_celery_plugin.study import StudyPlan

__all__ = ["COORDINATOR", "RangeTask", "WorkerSide", "halves"]

LOGGER = logging.getLogger(__name__)

COORDINATOR = "coordinator"
# A slot works on its piece of a range for about this long before it takes the next one.
BUDGET_S = 1.0
# Longer than it takes from a sample's script to its entry in the ledger, on a shared file system too.
CLAIM_LIMIT_S = 1.0

@dataclasses.dataclass(frozen=True)
class RangeTask:
    """A message: samples [start, stop) of a step record, under an epoch.

    Attributes:
        study: The study's workspace.
        manifest: The manifest's path below the study's directory of records.
        record: Number of the step record.
        start: First sample.
        stop: Behind the last sample.
        epoch: Under which the range was sent; a later one makes it void.
    """

    study: str
    manifest: str
    record: int
    start: int
    stop: int
    epoch: int

    def part(self, start: int, stop: int) -> RangeTask:
        """Return a part of the range."""
        return dataclasses.replace(self, start=start, stop=stop)

    @property
    def fields(self) -> tuple[str | int, ...]:
        """The message's arguments, without its signature."""
        return (self.study, self.manifest, self.record, self.start, self.stop, self.epoch)


def halves(task: RangeTask) -> list[RangeTask]:
    """Split a range in two, or leave it when it is a single sample."""
    middle = (task.start + task.stop) // 2
    parts = [task.part(task.start, middle), task.part(middle, task.stop)]
    return [part for part in parts if part.start < part.stop]


class _StudySide:
    """A study as a worker sees it: its ledger, manifests and what the coordinator has declared void."""

    def __init__(self, root: Path, worker: str) -> None:
        self.plan = StudyPlan.read(root)
        self.ledger = LedgerWriter(self.plan.ledger / f"{worker}{SUFFIX}")
        self._lock = threading.Lock()
        self._runners: dict[str, tuple[Manifest, Runner]] = {}
        self._fences: dict[int, list[tuple[int, int, int]]] = {}
        self._fence_offset = 0
        self._history = LedgerReader(self.plan.ledger)
        self._progress: dict[int, Progress] = {}
        self._unread: dict[int, list[Entries]] = {}
        self.decision = threading.Lock()

    def runner(self, relative: str) -> tuple[Manifest, Runner]:
        """Return a step record's manifest and runner, read once."""
        with self._lock:
            if relative not in self._runners:
                manifest = Manifest.read(self.plan.records / relative / "manifest.json")
                row = None
                if manifest.table:
                    row = open_table(Path(manifest.table), manifest.labels, Path(manifest.index_cache)).row
                self._runners[relative] = manifest, Runner(manifest, row or (lambda index: ()))
            return self._runners[relative]

    def is_void(self, task: RangeTask, sample: int) -> bool:
        """Tell whether the coordinator has sent or cancelled this sample under a later epoch."""
        path = self.plan.ledger / f"{COORDINATOR}{SUFFIX}"
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            return False
        if size >= self._fence_offset + ENTRY.itemsize:
            self._read_fences(path)
        return any(
            epoch > task.epoch and start <= sample < stop
            for epoch, start, stop in reversed(self._fences.get(task.record, ()))
        )

    def _read_fences(self, path: Path) -> None:
        with self._lock:
            entries = np.fromfile(path, dtype=ENTRY, offset=self._fence_offset)
            self._fence_offset += len(entries) * ENTRY.itemsize
            for entry in entries[(entries["kind"] == Kind.SENT) | (entries["kind"] == Kind.CANCELLED)]:
                fence = int(entry["epoch"]), int(entry["start"]), int(entry["stop"])
                if fence[0] > 1:
                    self._fences.setdefault(int(entry["record"]), []).append(fence)

    def progress(self, manifest: Manifest) -> Progress:
        """Return what the whole ledger says of a step record now."""
        with self._lock:
            for _, entries in self._history.poll():
                for number in np.unique(entries["record"]):
                    self._unread.setdefault(int(number), []).append(entries[entries["record"] == number])
            progress = self._progress.setdefault(manifest.number, Progress(manifest))
            for entries in self._unread.pop(manifest.number, []):
                progress.apply(entries)
            return progress


class WorkerSide:
    """The slots of a worker process, and what is running in them.

    Args:
        worker: The worker's name; names its ledger files.
        send: Puts a range task on a task queue; raises when the broker is away.
    """

    def __init__(self, worker: str, slots: int, send: Callable[[RangeTask, str], None]) -> None:
        self._worker, self._send = worker, send
        self._studies: dict[str, _StudySide] = {}
        self._lock = threading.Lock()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self.running: dict[int, tuple[RunningAttempt, RangeTask, int]] = {}
        self._mean_s: dict[tuple[str, int], float] = {}
        self.busy = 0
        self.last_work = time.monotonic()
        self.stopping = threading.Event()

    def _study(self, root: str) -> _StudySide:
        with self._lock:
            if root not in self._studies:
                self._studies[root] = _StudySide(Path(root), self._worker)
            return self._studies[root]

    def work(self, task: RangeTask) -> None:
        """Work on a range: keep a piece for this slot, send the rest on, run the piece."""
        study = self._study(task.study)
        manifest, runner = study.runner(task.manifest)
        if not 0 <= task.start < task.stop <= manifest.samples or manifest.number != task.record:
            LOGGER.error("refused a range that the step record does not have: %s", task)
            return
        slot = self._free.get()
        self._count(+1)
        try:
            self._until_written(study.ledger.append, Kind.TAKEN, task.record, task.epoch, task.start, task.stop, slot=slot)
            self._work_in_slot(task, study, manifest, runner, slot)
        finally:
            self._until_written(
                study.ledger.append, Kind.RELEASED, task.record, task.epoch, task.start, task.stop, slot=slot
            )
            study.ledger.flush()
            self._count(-1)
            self._free.put(slot)

    def _count(self, change: int) -> None:
        with self._lock:
            self.busy += change
            self.last_work = time.monotonic()

    def _work_in_slot(self, task: RangeTask, study: _StudySide, manifest: Manifest, runner: Runner, slot: int) -> None:
        stop = self._pass_on(task, self._piece(task), study, manifest, slot)
        begin, sample = time.monotonic(), task.start
        while sample < stop and not self.stopping.is_set() and not study.is_void(task, sample):
            self._run(task, sample, study, manifest, runner, slot)
            sample += 1
            if time.monotonic() - begin > 2 * BUDGET_S and sample < stop:
                stop = self._pass_on(task.part(sample, stop), 0, study, manifest, slot)

    def _piece(self, task: RangeTask) -> int:
        """Return how many samples the slot keeps: what fits its budget, one while that is unknown."""
        mean_s = self._mean_s.get((task.study, task.record))
        return max(1, int(BUDGET_S / mean_s)) if mean_s else 1

    def _pass_on(self, task: RangeTask, keep: int, study: _StudySide, manifest: Manifest, slot: int) -> int:
        """Send everything behind the first `keep` samples on, in halves; return the stop of what is kept.

        When the broker is away, what could not be sent is kept.
        """
        stop = task.stop
        rest = task.part(min(task.start + keep, task.stop), task.stop)
        for part in reversed(halves(rest)):
            try:
                self._send(part, manifest.task_queue)
            except Exception as cause:  # whatever the transport raises: the samples stay here
                LOGGER.warning("keeping samples %d to %d: the broker is away (%s)", task.start, stop - 1, cause)
                break
            self._until_written(
                study.ledger.append, Kind.PASSED, task.record, task.epoch, part.start, part.stop, slot=slot
            )
            stop = part.start
        return stop

    def _run(
        self, task: RangeTask, sample: int, study: _StudySide, manifest: Manifest, runner: Runner, slot: int
    ) -> None:
        """Run one sample, unless the ledger says that it has run or is running."""
        append = study.ledger.append
        try:
            first = runner.claim(sample)
            if first:
                again = False
                self._until_written(append, Kind.STARTED, task.record, task.epoch, sample, slot=slot)
            else:
                decision = self._claim_again(task, sample, study, manifest, runner, slot)
                if decision is None:
                    return
                again = decision
            running = runner.start(sample, first=first, again=again)
        except CannotRunError as cause:
            self._cannot_run(task, sample, study, slot, cause)
            return
        self.running[slot] = running, task, sample
        attempt = running.wait()
        del self.running[slot]
        kind = Kind.STOPPED if attempt.was_ended else Kind.ENDED
        self._until_written(
            append, kind, task.record, task.epoch, sample, int(attempt.duration_s * 1e6), code=attempt.code, slot=slot
        )
        self._learn(task, attempt.duration_s)
        plugin_manager().hook.attempt_finished(attempt=attempt)

    def _claim_again(
        self, task: RangeTask, sample: int, study: _StudySide, manifest: Manifest, runner: Runner, slot: int
    ) -> bool | None:
        """Decide about a sample that may have been started before.

        Returns:
            Whether it runs `restart` instead of `cmd`; None when it shall not run.
        """
        progress = study.progress(manifest)
        is_claimed = runner.directory(sample) != manifest.workspace
        if is_claimed and not progress.started[sample]:
            # Somebody has written its script a moment ago, or died right after that.
            self.stopping.wait(CLAIM_LIMIT_S)
        with study.decision:
            progress = study.progress(manifest)
            if progress.outcome[sample] != Outcome.OPEN or progress.started[sample] >= task.epoch:
                return None
            code = int(progress.code[sample])
            again = bool(progress.started[sample]) and code != ExitCode.RETRY and code >= -signal.NSIG
            self._until_written(
                study.ledger.append, Kind.STARTED, task.record, task.epoch, sample, code=int(again), slot=slot
            )
        return again

    def _cannot_run(self, task: RangeTask, sample: int, study: _StudySide, slot: int, cause: CannotRunError) -> None:
        """Record that a sample could not be started, and give the machine a moment to recover."""
        LOGGER.error("sample %d of %s cannot be started: %s", sample, task.manifest, cause)
        self._until_written(
            study.ledger.append, Kind.ENDED, task.record, task.epoch, sample, code=cannot_run_code(cause.errno), slot=slot
        )
        if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.EIO):
            self.stopping.wait(1.0)

    def _learn(self, task: RangeTask, duration_s: float) -> None:
        key = task.study, task.record
        mean_s = self._mean_s.get(key, duration_s)
        self._mean_s[key] = max(1e-4, 0.9 * mean_s + 0.1 * duration_s)

    def _until_written(self, append: Callable[..., None], *values: int, **options: int) -> None:
        """Append to the ledger, waiting for a full disk to be emptied: an outcome must not be lost."""
        while True:
            try:
                append(*values, **options)
                return
            except LedgerError as cause:
                LOGGER.error("waiting to write the ledger: %s", cause)
                if self.stopping.wait(2.0):
                    raise

    def check_running(self) -> None:
        """End the samples that shall not run any more; called again and again while there are some."""
        for running, task, sample in list(self.running.values()):
            if self.stopping.is_set() or self._studies[task.study].is_void(task, sample):
                running.end()

