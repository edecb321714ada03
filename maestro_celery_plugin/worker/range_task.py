"""Range tasks in a worker: a slot runs samples [start, stop) of a step record.

A slot keeps the samples that it can run in about a second. Before it runs them, it sends the rest of the range in
halves to the task queue. So all slots receive work after a few rounds, and few slots are idle at the end.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.messages import RangeTask, halves
from maestro_celery_plugin.errors import LedgerError, SampleError
from maestro_celery_plugin.hookspecs import Attempt
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.plugins import plugin_manager
from maestro_celery_plugin.states import BROKEN, UNREADABLE, Outcome, cannot_run_code
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.worker.attempt import Runner, RunningAttempt
from maestro_celery_plugin.worker.sample_directory import CannotRunError
from maestro_celery_plugin.worker.slots import Running, Slots
from maestro_celery_plugin.worker.study_context import StudyContext

__all__ = ["RangeTasks"]

LOGGER = logging.getLogger(__name__)

Send = Callable[[RangeTask, str], None]

# Longer than the time from the script of a sample to its entry in the ledger, even on a shared file system.
CLAIM_LIMIT_S = 1.0
# Errors of the sample are final; errors of the machine may be temporary.
_FINAL_ERRORS = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EIO)
# The exit code of a shell for a command that does not exist.
NOT_FOUND = 127


class RangeTasks:
    """Runs the range tasks of a worker process; several threads may use it.

    Args:
        writer: Name of the ledger files of the process.
        slots: The slots of the process.
        send: Sends a range task to a task queue; raises an error when the broker does not answer.

    Attributes:
        slots: The slots of the process.
    """

    def __init__(self, writer: str, slots: Slots, send: Send) -> None:
        self.slots = slots
        self._writer, self._send = writer, send
        self._lock = threading.Lock()
        self._studies: dict[str, StudyContext] = {}

    def run(self, task: RangeTask) -> None:
        """Run a range task in a free slot."""
        with self._lock:
            if task.study not in self._studies:
                self._studies[task.study] = StudyContext(Path(task.study), self._writer)
            study = self._studies[task.study]
        with self.slots.take() as slot:
            _RangeRun(self.slots, self._send, study, task, slot).run()

    def flush(self) -> None:
        """Make the ledger visible to other nodes; the worker calls this a few times per second.

        Without these calls, other processes would see the start of a long sample only at its end, and declare it lost.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        with self._lock:
            studies = list(self._studies.values())
        for study in studies:
            study.ledger.flush()


class _RangeRun:
    """One range task in one slot."""

    def __init__(self, slots: Slots, send: Send, study: StudyContext, task: RangeTask, slot: int) -> None:
        self._slots, self._send, self._study, self._task, self._slot = slots, send, study, task, slot
        self._sample = task.start
        self._manifest: Manifest
        self._runner: Runner
        self._signal: signal.Signals

    def run(self) -> None:
        """Take the range, run a piece of it, and send the rest to the task queue."""
        task = self._task
        self._write_entry(Kind.TAKEN, task.start, task.stop)
        try:
            self._manifest, self._runner = self._study.runner(task.manifest)
            if not 0 <= task.start < task.stop <= self._manifest.samples or self._manifest.number != task.record:
                LOGGER.error("Refused a range that is not part of the step record: %s.", task)
                return
            self._signal = signal.Signals[self._manifest.signal]
            self._run_piece()
        except SampleError as error:
            LOGGER.error("%s: %s", task.manifest, error)
            self._write_entry(Kind.ENDED, self._sample, code=UNREADABLE)
        except LedgerError:
            raise
        except Exception:  # an error in the plugin; without an outcome, the sample would be sent again endlessly
            LOGGER.exception(
                "Sample %d of '%s' has failed because of an error in the worker.", self._sample, task.manifest
            )
            self._write_entry(Kind.ENDED, self._sample, code=BROKEN)
        finally:
            self._write_entry(Kind.RELEASED, task.start, task.stop)
            self._study.ledger.flush()

    def _run_piece(self) -> None:
        begin = clock.monotonic()
        stop = self._send_rest(self._sample + self._slots.piece_size(self._task), self._task.stop)
        skipped = self._samples_with_outcome(stop)
        while self._sample < stop and self._may_start_next():
            if self._sample not in skipped:
                self._run_sample(self._sample)
            self._sample += 1
            if self._slots.is_over_budget(clock.monotonic() - begin):
                stop = self._send_rest(self._sample, stop)

    def _may_start_next(self) -> bool:
        """Tell whether the next sample may start."""
        task = self._task
        if self._slots.stopping.is_set() or self._study.is_invalid(task.record, task.epoch, self._sample):
            return False
        return self._slots.has_time_for(task, self._manifest)

    def _samples_with_outcome(self, stop: int) -> frozenset[int]:
        """Return the samples of the piece that already have an outcome.

        A range that is sent again contains such samples. Their scripts would also prevent another attempt, but a sample
        may delete its script.
        """
        if self._task.epoch == 1:
            return frozenset()
        outcome = self._study.sample_states(self._manifest).outcome[self._task.start : stop]
        return frozenset((self._task.start + np.flatnonzero(outcome != Outcome.OPEN)).tolist())

    def _send_rest(self, start: int, stop: int) -> int:
        """Send samples [start, stop) in halves to the task queue; return the end of the range that stays in this slot.

        If the broker does not answer, the samples that could not be sent stay in this slot.
        """
        for part in reversed(halves(self._task.part(min(start, stop), stop))):
            try:
                self._send(part, self._manifest.task_queue)
            except Exception as cause:  # each transport has its own errors
                LOGGER.warning(
                    "Samples %d to %d stay in this worker: the broker does not answer (%s).",
                    self._sample,
                    stop - 1,
                    cause,
                )
                break
            self._write_entry(Kind.PASSED, part.start, part.stop)
            stop = part.start
        return stop

    def _run_sample(self, sample: int) -> None:
        """Run one sample, unless the ledger shows that it has run or is running."""
        try:
            first = self._runner.directories.claim(sample)
            again = False
            if first:
                self._write_entry(Kind.STARTED, sample)
            else:
                decision = self._claim_again(sample)
                if decision is None:
                    return
                again = decision
            environment = self._slots.launches.environment(self._slot, self._manifest)
            running = self._runner.start(sample, first=first, again=again, environment=environment)
        except CannotRunError as cause:
            self._record_failed_start(sample, cause)
            return
        self._slots.add(self._slot, self._as_running(running, sample))
        attempt = running.wait()
        self._slots.remove(self._slot)
        if not attempt.was_ended and self._slots.was_ended_with_allocation(attempt.code):
            attempt = dataclasses.replace(attempt, was_ended=True)
        kind = Kind.STOPPED if attempt.was_ended else Kind.ENDED
        self._write_entry(kind, sample, int(attempt.duration_s * 1e6), code=attempt.code)
        self._slots.record_duration(self._task, attempt.duration_s)
        _call_hooks(attempt)

    def _as_running(self, attempt: RunningAttempt, sample: int) -> Running:
        task, study = self._task, self._study
        return Running(attempt, task.record, self._signal, lambda: study.must_end(task.record, task.epoch, sample))

    def _claim_again(self, sample: int) -> bool | None:
        """Decide whether a sample that may have been started before runs again.

        Returns:
            Whether it runs `restart` instead of `cmd`; None when it must not run.
        """
        study, manifest = self._study, self._manifest
        has_own_script = self._runner.directories.path(sample) != manifest.workspace
        if has_own_script and not study.sample_states(manifest).started[sample]:
            # Another worker has just written the script and not the entry yet, or has died in between.
            self._slots.stopping.wait(CLAIM_LIMIT_S)
        with study.decision:
            states = study.sample_states(manifest)
            is_running = states.started[sample] > states.ended[sample]
            if states.outcome[sample] != Outcome.OPEN or states.started[sample] >= self._task.epoch or is_running:
                return None
            again = states.runs_restart(sample)
            self._write_entry(Kind.STARTED, sample, code=int(again))
        return again

    def _record_failed_start(self, sample: int, cause: CannotRunError) -> None:
        """Record that a sample could not start; wait a moment after an error of the machine."""
        LOGGER.error("Sample %d of '%s' cannot start: %s", sample, self._task.manifest, cause)
        code = NOT_FOUND if cause.errno in _FINAL_ERRORS else cannot_run_code(cause.errno)
        self._write_entry(Kind.ENDED, sample, code=code)
        if cause.errno in _MACHINE_ERRORS:
            self._slots.stopping.wait(1.0)

    def _write_entry(self, kind: Kind, start: int, stop: int = 0, *, code: int = 0) -> None:
        """Append an entry to the ledger; while the disk is full, wait, because an outcome must not be lost."""
        task = self._task
        while True:
            try:
                self._study.ledger.append(kind, task.record, task.epoch, start, stop, code=code, slot=self._slot)
                return
            except LedgerError as cause:
                LOGGER.error("%s The worker tries again; free disk space.", cause)
                if self._slots.stopping.wait(2.0):
                    raise


def _call_hooks(attempt: Attempt) -> None:
    """Call the hook `attempt_finished` of the extensions."""
    try:
        hook = plugin_manager().hook.attempt_finished
        if hook.get_hookimpls():  # a call of pluggy costs time for each sample, even without an extension
            hook(attempt=attempt)
    except Exception:  # an error in an extension must not fail samples
        LOGGER.exception("The hook 'attempt_finished' of an extension has failed.")
