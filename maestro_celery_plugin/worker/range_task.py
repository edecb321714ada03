"""Range tasks in a worker: a slot runs samples [start, stop) of a step record.

A slot keeps the samples that it can run in about a second. Before it runs them, it sends the rest of the range to the
task queue. A slot that has waited for its message sends the rest in halves, so that all slots receive work after a few
rounds, and few slots are idle at the end. While no slot waits, each message that is taken is replaced by one other. So
the number of messages grows with that of the slots, not with that of the samples, of which a study may have millions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.errors import LedgerError, SampleError, StudyError
from maestro_celery_plugin.hookspecs import Attempt
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.store import STORE, Store
from maestro_celery_plugin.machine import machine_number
from maestro_celery_plugin.plugins import plugin_manager
from maestro_celery_plugin.states import (
    BROKEN,
    UNREADABLE,
    Outcome,
    RunMode,
    cannot_run_code,
    is_permanent,
    is_quick_failure,
    is_request,
    outcome_of,
)
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.session import AGAIN_VARIABLE
from maestro_celery_plugin.worker.attempt import Runner, RunningAttempt
from maestro_celery_plugin.worker.gate import gate
from maestro_celery_plugin.worker.health import Health
from maestro_celery_plugin.worker.range_messages import RangeMessages, Send
from maestro_celery_plugin.worker.slot_ledger import SlotLedger
from maestro_celery_plugin.worker.slots import Running, Slots
from maestro_celery_plugin.worker.study_context import StudyContext

__all__ = ["UNCLAIMED_LIMIT", "RangeTasks"]

LOGGER = logging.getLogger(__name__)

# A worker leaves after it could not claim this many messages in a row.
UNCLAIMED_LIMIT = 10
# Delay after a fault of the worker or its machine, so that a broken machine does not take many samples.
FAULT_DELAY_S = 1.0


class RangeTasks:
    """Runs the range tasks of a worker process; several threads may use it.

    Args:
        writer: Name of the ledger files of the process.
        slots: The slots of the process.
        send: Sends a range task to a task queue, with a level; raises an error when the broker does not answer.
        store: The file operations.

    Attributes:
        slots: The slots of the process.
        health: Whether the process can run samples.
        unclaimed: Number of messages in a row that this process could not claim.
    """

    def __init__(self, writer: str, slots: Slots, send: Send, store: Store = STORE) -> None:
        self.slots, self.health, self.unclaimed = slots, Health(), 0
        self._writer, self._send, self._store = writer, send, store
        self._lock = threading.Lock()
        self._studies: dict[tuple[str, str], StudyContext] = {}

    def run(self, task: RangeTask) -> None:
        """Run a range task in a free slot.

        A worker that cannot read the study leaves the message; the coordinator sends its samples again.
        """
        with self.slots.take() as slot:
            try:
                run = _RangeRun(self.slots, self.health, self._send, self._study(task), task, slot)
                is_claimed = run.claim()
            except (LedgerError, OSError, StudyError) as error:
                LOGGER.error("A message about '%s' cannot be claimed: %s", task.manifest, error)
                self.unclaimed += 1
                self.slots.stopping.wait(FAULT_DELAY_S)
                return
            self.unclaimed = 0
            try:
                if is_claimed:
                    run.run()
            except LedgerError as error:  # the disk is full while the worker stops, or the entries are written later
                LOGGER.error("%s", error)
            finally:
                gate.end_expectation(slot)

    def _study(self, task: RangeTask) -> StudyContext:
        key = task.study, task.study_id
        with self._lock:
            if key not in self._studies:
                self._studies[key] = StudyContext(Path(task.study), task.study_id, self._writer, self._store)
            return self._studies[key]

    def flush(self) -> None:
        """Make the ledger visible to other nodes; the worker calls this a few times per second.

        Without these calls, other processes would see the start of a long sample only at its end, and declare it lost.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        with self._lock:
            studies = list(self._studies.values())
        error: LedgerError | None = None
        for study in studies:
            try:
                study.ledger.flush()
            except LedgerError as cause:  # the ledgers of other studies may be on other file systems
                error = error or cause
        if error is not None:
            raise error


class _RangeRun:
    """One range task in one slot."""

    def __init__(
        self, slots: Slots, health: Health, send: Send, study: StudyContext, task: RangeTask, slot: int
    ) -> None:
        self._slots, self._health, self._study, self._task, self._slot = slots, health, study, task, slot
        self._ledger = SlotLedger(study.ledger, task, slot, slots.stopping)
        self._messages = RangeMessages(study.claims, study.writer, self._ledger, send, slots.stopping, task.series)
        self._sample, self._lapses = task.start, slots.lapses
        self._manifest: Manifest
        self._runner: Runner
        self._signal: signal.Signals

    def claim(self) -> bool:
        """Claim the message; return whether its samples may run.

        They may not if they are cancelled, or if another slot or the coordinator has claimed the message.

        Raises:
            OSError: the claim cannot be made now.
        """
        task = self._task
        if self._study.fences.is_invalid(task.record, task.epoch, task.start):
            return False
        if self._messages.claim(task):
            return True
        LOGGER.info("A message was already claimed: %s.", task)
        return False

    def run(self) -> None:
        """Take the range, run a piece of it, and send the rest to the task queue."""
        task = self._task
        self._ledger.write(Kind.TAKEN, task.start, task.stop, code=task.series)
        try:
            self._manifest, self._runner = self._study.runner(task.manifest, task.epoch)
            if not 0 <= task.start < task.stop <= self._manifest.samples or self._manifest.number != task.record:
                LOGGER.error("Refused a range that is not part of the step record: %s.", task)
                return
            self._signal = signal.Signals[self._manifest.signal]
            self._run_piece()
        except LedgerError:
            raise
        except Exception as error:  # of the machine, of the sample table, or in the plugin
            self._record_not_run(_fault_of(error), error)
        finally:
            self._ledger.write(Kind.RELEASED, task.start, task.stop)
            self._ledger.flush()

    def _record_not_run(self, code: int, cause: Exception) -> None:
        """Record that the next sample cannot run because of a fault of this worker."""
        LOGGER.error("Sample %d of '%s' cannot run here: %s", self._sample, self._task.manifest, cause)
        self._ledger.write(Kind.NOT_RUN, self._sample, machine_number(), code=code)
        self._record_health(failed=True)
        if not is_permanent(code):
            self._slots.stopping.wait(FAULT_DELAY_S)

    def _run_piece(self) -> None:
        begin = clock.monotonic()
        stop = self._send_rest(self._sample + self._slots.piece_size(self._task, self._manifest.step), self._task.stop)
        modes = self._study.modes(self._task, stop)
        while self._sample < stop and self._may_start_next():
            if self._sample + 1 == stop and self._slots.ends_soon(self._task, self._manifest.step):
                gate.expect_free(self._slot)
            if self._sample in modes and not self._try_sample(self._sample, modes[self._sample]):
                self._send_rest(self._sample + 1, stop)  # other workers may be able to run these samples
                return
            self._sample += 1
            if self._health.is_held:
                self._send_rest(self._sample, stop)  # for other workers, or for this one when it may continue
                return
            if self._slots.is_over_budget(self._task, clock.monotonic() - begin):
                stop = self._send_rest(self._sample, stop)

    @property
    def _is_lost(self) -> bool:
        """Whether this worker was stopped since it has taken the range, so that others may have it."""
        return self._slots.lapses != self._lapses

    def _may_start_next(self) -> bool:
        """Tell whether the next sample may start."""
        task = self._task
        if self._health.is_held or not self._slots.may_start or self._is_lost:
            return False
        if self._study.fences.is_invalid(task.record, task.epoch, self._sample):
            return False
        return self._slots.has_time_for(task, self._manifest)

    def _send_rest(self, start: int, stop: int) -> int:
        """Send samples [start, stop) to the task queue; return the end of the range that stays in this slot."""
        rest = self._task.part(min(start, stop), stop)
        in_halves = self._slots.has_waited(self._slot)
        return self._messages.send_rest(rest, self._manifest.task_queue, self._manifest.priority, in_halves=in_halves)

    def _try_sample(self, sample: int, mode: RunMode) -> bool:
        """Run one sample; return False if it cannot run here."""
        try:
            self._run_sample(sample, mode)
        except (OSError, SampleError) as error:
            self._record_not_run(_fault_of(error), error)
            return False
        return True

    def _run_sample(self, sample: int, mode: RunMode) -> None:
        """Run one sample."""
        directories = self._runner.directories
        is_first = directories.make(sample)
        if not is_first and mode is RunMode.FIRST and self._task.epoch == 1 and directories.is_own(sample):
            # Another worker has run the sample, because this worker counts as dead. If not, the coordinator sends the
            # sample again.
            LOGGER.warning("Sample %d of '%s' has a script already.", sample, self._task.manifest)
            return
        restart = mode is RunMode.RESTART
        directories.set_marker(sample, finished=False)
        self._ledger.write(Kind.STARTED, sample, code=int(restart))
        # The directory of a step that has no samples exists before its first run; a resent range tells more.
        is_again = mode is not RunMode.FIRST or (self._task.epoch > 1 and not is_first)
        running = self._runner.start(
            sample,
            first=is_first,
            restart=restart,
            environment=self._environment(is_again=is_again),
            is_cut_off=lambda: self._slots.is_cut_off or self._is_lost,
        )
        self._slots.add(self._slot, self._as_running(running, sample))
        try:
            attempt = running.wait()
        finally:
            self._slots.remove(self._slot)
        if not attempt.was_ended and self._slots.was_ended_with_allocation(attempt.code):
            attempt = dataclasses.replace(attempt, was_ended=True)
        self._record_end(attempt)
        self._slots.record_duration(self._task, self._manifest.step, attempt.duration_s)
        _call_hooks(attempt)

    def _environment(self, *, is_again: bool) -> Mapping[str, str] | None:
        """Return the environment of a sample; None for that of the worker.

        Args:
            is_again: Whether the sample may have run before.
        """
        environment = self._slots.launches.environment(self._slot, self._manifest)
        own = dict(self._study.variables)
        if is_again:
            own[AGAIN_VARIABLE] = "1"
        return {**(environment or os.environ), **own} if own else environment

    def _record_end(self, attempt: Attempt) -> None:
        """Record how an attempt has ended."""
        sample = attempt.sample
        kind = Kind.STOPPED if attempt.was_ended else Kind.ENDED
        if kind is Kind.ENDED and outcome_of(attempt.code) in (Outcome.FINISHED, Outcome.STOPPED_STUDY):
            self._mark_finished(sample)  # before the ledger: then the next step may begin
        self._ledger.write(kind, sample, int(attempt.duration_s * 1e6), code=attempt.code)
        if kind is not Kind.ENDED:
            return
        if is_request(attempt.code):
            self._slots.record_request(self._task)
            with contextlib.suppress(LedgerError):  # the watch thread tries again
                self._ledger.flush()  # the delay before the next attempt begins when the conductor sees this entry
        self._record_health(failed=is_quick_failure(attempt.code, attempt.duration_s))

    def _mark_finished(self, sample: int) -> None:
        """Create the marker of a finished sample; while the disk is full, wait, as for its entry in the ledger.

        Without its directory, which it has removed itself, a sample has no marker. It has finished nevertheless.
        """
        while True:
            try:
                self._runner.directories.set_marker(sample, finished=True)
                return
            except OSError as error:
                LOGGER.error(
                    "Sample %d of '%s' has finished, but has no marker: %s", sample, self._task.manifest, error
                )
                if is_permanent(_fault_of(error)) or self._slots.stopping.wait(FAULT_DELAY_S):
                    return

    def _record_health(self, *, failed: bool) -> None:
        if self._study.has_other_hosts:  # without another machine, no comparison is possible
            self._health.record(failed=failed)

    def _as_running(self, attempt: RunningAttempt, sample: int) -> Running:
        task, study = self._task, self._study
        return Running(
            attempt,
            task.study_id,
            task.record,
            self._signal,
            lambda: study.fences.must_end(task.record, task.epoch, sample),
            launches=self._manifest.launches,
        )


def _fault_of(error: Exception) -> int:
    """Return the code of a sample that cannot run because of an error; log an error in the plugin."""
    if isinstance(error, OSError):
        return cannot_run_code(error.errno or errno.EIO)
    if isinstance(error, MemoryError):
        return cannot_run_code(errno.ENOMEM)
    if isinstance(error, SampleError):
        return UNREADABLE
    LOGGER.error("An error occurred in the worker.", exc_info=error)
    return BROKEN


def _call_hooks(attempt: Attempt) -> None:
    """Call the hook `attempt_finished` of the extensions."""
    try:
        hook = plugin_manager().hook.attempt_finished
        if hook.get_hookimpls():  # a call of pluggy costs time for each sample, even without an extension
            hook(attempt=attempt)
    except Exception:  # an error in an extension must not fail samples
        LOGGER.exception("The hook 'attempt_finished' of an extension has failed.")
