"""Range tasks: what a worker does with a message that names samples [start, stop) of a step record.

A slot keeps what it can run in about a second and sends the rest on in halves before it works, so that
any number of slots fills in a few rounds and the end is not waited for by many.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maestro_celery_plugin.deadline import Deadline
from maestro_celery_plugin.errors import LedgerError, SampleError
from maestro_celery_plugin.ledger import Kind
from maestro_celery_plugin.manifest import Manifest
from maestro_celery_plugin.plugins import plugin_manager
from maestro_celery_plugin.progress import BROKEN, UNREADABLE, cannot_run_code
from maestro_celery_plugin.runner import CannotRunError, Runner, RunningAttempt
from maestro_celery_plugin.sample_launches import SampleLaunches
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study_side import StudySide

__all__ = ["RangeTask", "WorkerSide", "halves"]

LOGGER = logging.getLogger(__name__)

# A slot works on its piece of a range for about this long before it takes the next one.
BUDGET_S = 1.0
# Longer than it takes from a sample's script to its entry in the ledger, on a shared file system too.
CLAIM_LIMIT_S = 1.0
# Errors of the machine, which may pass; the others are the sample's.
_FINAL_ERRORS = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)
# The shells' exit code for a command that is not there.
NOT_FOUND = 127
# What a batch system sends to every process of an allocation that it ends, samples and workers alike.
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGKILL)
# So long after a sample's death by such a signal it shows whether it was meant for the worker, too.
SIGNAL_LIMIT_S = 2.0
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EIO)


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
    """Split a range in two; a single sample stays whole, and nothing comes of nothing."""
    middle = (task.start + task.stop) // 2
    parts = [task.part(task.start, middle), task.part(middle, task.stop)]
    return [part for part in parts if part.start < part.stop]


class WorkerSide:
    """The slots of a worker process, and what is running in them.

    Args:
        writer: Names the process's ledger files.
        slots: How many samples run at a time.
        send: Puts a range task on a task queue; raises when the broker is away.
        deadline: When the allocation ends.
        launches: What samples that start parallel programs get; None where there is nothing to launch with.

    Attributes:
        deadline: When the allocation ends.
        launches: What samples that start parallel programs get.
        busy: How many slots work.
        last_work: When one began or ended to (monotonic).
        stopping: Set when no further sample shall start.
    """

    def __init__(
        self,
        writer: str,
        slots: int,
        send: Callable[[RangeTask, str], None],
        deadline: Deadline | None = None,
        launches: SampleLaunches | None = None,
    ) -> None:
        self.send = send
        self.deadline = deadline or Deadline()
        self.launches = launches or SampleLaunches(writer)
        self.busy = 0
        self.last_work = time.monotonic()
        self.stopping = threading.Event()
        self._writer = writer
        self._lock = threading.Lock()
        self._studies: dict[str, StudySide] = {}
        self._running: dict[int, tuple[RunningAttempt, _RangeWork, int]] = {}
        self._mean_s: dict[tuple[str, int], float] = {}
        self._longest_s: dict[tuple[str, int], float] = {}
        self._refused: set[int] = set()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)

    def work(self, task: RangeTask) -> None:
        """Work on a range in a free slot."""
        with self._lock:
            if task.study not in self._studies:
                self._studies[task.study] = StudySide(Path(task.study), self._writer)
            study = self._studies[task.study]
        slot = self._free.get()
        self._count(+1)
        try:
            _RangeWork(self, study, task, slot).run()
        finally:
            self._count(-1)
            self._free.put(slot)

    def _count(self, change: int) -> None:
        with self._lock:
            self.busy += change
            self.last_work = time.monotonic()

    def piece(self, task: RangeTask) -> int:
        """Return how many samples a slot keeps: what fits its budget, one while that is unknown."""
        mean_s = self._mean_s.get((task.study, task.record))
        return max(1, int(BUDGET_S / mean_s)) if mean_s else 1

    def learn(self, task: RangeTask, duration_s: float) -> None:
        """Take in how long a sample of a step record has taken."""
        key = task.study, task.record
        mean_s = self._mean_s.get(key, duration_s)
        self._mean_s[key] = max(1e-4, 0.9 * mean_s + 0.1 * duration_s)
        self._longest_s[key] = max(duration_s, self._longest_s.get(key, 0.0))

    def has_time_for(self, task: RangeTask, manifest: Manifest) -> bool:
        """Tell whether a sample of a step record may be started before the allocation ends.

        A record whose samples may not is noted, so that the conductor does not send them here again.
        """
        running = [r.elapsed_s for r, work, _ in list(self._running.values()) if work.record == task.record]
        longest_s = max((*running, self._longest_s.get((task.study, task.record), 0.0)))
        if self.deadline.fits(manifest.time_request_s, longest_s):
            return True
        self._refused.add(task.record)
        return False

    @property
    def refused(self) -> tuple[int, ...]:
        """Numbers of the step records whose samples are not started any more, for lack of time."""
        return tuple(sorted(self._refused))

    def shares_end(self, code: int) -> bool:
        """Tell whether a sample has ended by a signal that was meant for this worker, too.

        Args:
            code: Exit code of the sample; a shell adds 128 to the number of a signal.
        """
        if not self.deadline.is_in_allocation:
            return False
        is_suspicious = code in [sign for number in _ENDING_SIGNALS for sign in (-number, 128 + number)]
        return is_suspicious and self.stopping.wait(SIGNAL_LIMIT_S)

    def note_running(self, slot: int, running: RunningAttempt, work: _RangeWork, sample: int) -> None:
        """Keep an attempt in view while it runs."""
        self._running[slot] = running, work, sample

    def note_ended(self, slot: int) -> None:
        """Forget an attempt."""
        del self._running[slot]

    def check_running(self) -> None:
        """End the samples that shall not run any more; called again and again while there are some."""
        is_over, is_warning = self.deadline.is_over, self.deadline.is_warning
        to_be_warned: dict[signal.Signals, dict[int, RunningAttempt]] = {}
        for slot, (running, work, sample) in list(self._running.items()):
            if self.stopping.is_set() or work.must_end(sample):
                running.end()
            elif is_over:
                running.end(at_once=True)
            elif is_warning:
                to_be_warned.setdefault(work.signal, {})[slot] = running
        for number, attempts in to_be_warned.items():
            self.launches.warn(attempts, number)


class _RangeWork:
    """One range task in one slot."""

    def __init__(self, worker: WorkerSide, study: StudySide, task: RangeTask, slot: int) -> None:
        self._worker, self._study, self._task, self._slot = worker, study, task, slot
        self._sample = task.start
        self._manifest: Manifest
        self._runner: Runner

    def run(self) -> None:
        """Take the range, run a piece of it, send the rest on."""
        task = self._task
        self._note(Kind.TAKEN, task.start, task.stop)
        try:
            self._manifest, self._runner = self._study.runner(task.manifest)
            if not 0 <= task.start < task.stop <= self._manifest.samples or self._manifest.number != task.record:
                LOGGER.error("refused a range that the step record does not have: %s", task)
                return
            self._run_piece()
        except SampleError as error:
            LOGGER.error("%s: %s", task.manifest, error)
            self._note(Kind.ENDED, self._sample, code=UNREADABLE)
        except LedgerError:
            raise
        except Exception:  # a fault of ours: without an outcome, the sample would be sent again for ever
            LOGGER.exception("%s: sample %d", task.manifest, self._sample)
            self._note(Kind.ENDED, self._sample, code=BROKEN)
        finally:
            self._note(Kind.RELEASED, task.start, task.stop)
            self._study.ledger.flush()

    @property
    def record(self) -> int:
        """Number of the step record."""
        return self._task.record

    @property
    def signal(self) -> signal.Signals:
        """The signal that its samples get before their allocation ends."""
        return signal.Signals[self._manifest.signal]

    def is_void(self, sample: int) -> bool:
        """Tell whether the coordinator has sent or cancelled a sample since."""
        return self._study.is_void(self._task.record, self._task.epoch, sample)

    def must_end(self, sample: int) -> bool:
        """Tell whether a running attempt at a sample shall end."""
        return self._study.must_end(self._task.record, self._task.epoch, sample)

    def _run_piece(self) -> None:
        begin = time.monotonic()
        stop = self._pass_on(self._sample + self._worker.piece(self._task), self._task.stop)
        decided = self._decided(stop)
        while self._sample < stop and self._may_go_on():
            if self._sample not in decided:
                self._run_sample(self._sample)
            self._sample += 1
            if time.monotonic() - begin > 2 * BUDGET_S:
                stop = self._pass_on(self._sample, stop)

    def _may_go_on(self) -> bool:
        """Whether the next sample may be started."""
        if self._worker.stopping.is_set() or self.is_void(self._sample):
            return False
        return self._worker.has_time_for(self._task, self._manifest)

    def _decided(self, stop: int) -> frozenset[int]:
        """Return the samples of the piece that had an outcome when it was sent.

        Ranges that are sent again lead across such samples. Their scripts tell, too, unless they have
        removed them.
        """
        if self._task.epoch == 1:
            return frozenset()
        outcome = self._study.progress(self._manifest).outcome[self._task.start : stop]
        return frozenset((self._task.start + np.flatnonzero(outcome != Outcome.OPEN)).tolist())

    def _pass_on(self, start: int, stop: int) -> int:
        """Send samples [start, stop) on in halves; return where what is left ends.

        When the broker is away, what could not be sent stays here.
        """
        for part in reversed(halves(self._task.part(min(start, stop), stop))):
            try:
                self._worker.send(part, self._manifest.task_queue)
            except Exception as cause:  # whatever the transport raises
                LOGGER.warning("samples up to %d stay here: the broker is away (%s)", stop - 1, cause)
                break
            self._note(Kind.PASSED, part.start, part.stop)
            stop = part.start
        return stop

    def _run_sample(self, sample: int) -> None:
        """Run one sample, unless the ledger says that it has run or is running."""
        try:
            first = self._runner.claim(sample)
            again = False
            if first:
                self._note(Kind.STARTED, sample)
            else:
                decision = self._claim_again(sample)
                if decision is None:
                    return
                again = decision
            environment = self._worker.launches.environment(self._slot, self._manifest)
            running = self._runner.start(sample, first=first, again=again, environment=environment)
        except CannotRunError as cause:
            self._cannot_run(sample, cause)
            return
        self._worker.note_running(self._slot, running, self, sample)
        attempt = running.wait()
        self._worker.note_ended(self._slot)
        if not attempt.was_ended and self._worker.shares_end(attempt.code):
            attempt = dataclasses.replace(attempt, was_ended=True)
        kind = Kind.STOPPED if attempt.was_ended else Kind.ENDED
        self._note(kind, sample, int(attempt.duration_s * 1e6), code=attempt.code)
        self._worker.learn(self._task, attempt.duration_s)
        try:
            hook = plugin_manager().hook.attempt_finished
            if hook.get_hookimpls():  # pluggy's call costs time, for each sample, with nobody there, too
                hook(attempt=attempt)
        except Exception:  # a third party's; the samples need not suffer
            LOGGER.exception("a plugin's attempt_finished has failed")

    def _claim_again(self, sample: int) -> bool | None:
        """Decide about a sample that may have been started before.

        Returns:
            Whether it runs `restart` instead of `cmd`; None when it shall not run.
        """
        study, manifest = self._study, self._manifest
        has_script_of_its_own = self._runner.directory(sample) != manifest.workspace
        if has_script_of_its_own and not study.progress(manifest).started[sample]:
            # Somebody has written its script a moment ago, or died right after that.
            self._worker.stopping.wait(CLAIM_LIMIT_S)
        with study.decision:
            progress = study.progress(manifest)
            is_running = progress.started[sample] > progress.ended[sample]
            if progress.outcome[sample] != Outcome.OPEN or progress.started[sample] >= self._task.epoch or is_running:
                return None
            again = progress.runs_restart(sample)
            self._note(Kind.STARTED, sample, code=int(again))
        return again

    def _cannot_run(self, sample: int, cause: CannotRunError) -> None:
        """Record that a sample could not be started, and give the machine a moment to recover."""
        LOGGER.error("sample %d of '%s' cannot be started: %s", sample, self._task.manifest, cause)
        code = NOT_FOUND if cause.errno in _FINAL_ERRORS else cannot_run_code(cause.errno)
        self._note(Kind.ENDED, sample, code=code)
        if cause.errno in _MACHINE_ERRORS:
            self._worker.stopping.wait(1.0)

    def _note(self, kind: Kind, start: int, stop: int = 0, *, code: int = 0) -> None:
        """Write the ledger, waiting for a full disk to be emptied: an outcome must not be lost."""
        task = self._task
        while True:
            try:
                self._study.ledger.append(kind, task.record, task.epoch, start, stop, code=code, slot=self._slot)
                return
            except LedgerError as cause:
                LOGGER.error("waiting to write the ledger: %s", cause)
                if self._worker.stopping.wait(2.0):
                    raise
