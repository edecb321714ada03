"""Work on a range: what a slot does with a message that names samples [start, stop) of a step record.

A slot keeps what it can run in about a second and sends the rest on in halves before it works, so that
any number of slots fills in a few rounds and the end is not waited for by many.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import signal
import time
from typing import TYPE_CHECKING

import numpy as np

from maestro_celery_plugin.broker.messages import RangeTask, halves
from maestro_celery_plugin.errors import LedgerError, SampleError
from maestro_celery_plugin.ledger.reader import Kind
from maestro_celery_plugin.ledger.sample_states import BROKEN, UNREADABLE, cannot_run_code
from maestro_celery_plugin.plugins import plugin_manager
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.worker.attempt import CannotRunError, Runner
from maestro_celery_plugin.worker.study_context import StudySide

if TYPE_CHECKING:
    from maestro_celery_plugin.worker.slots import WorkerSide

__all__ = ["BUDGET_S", "RangeWork"]

LOGGER = logging.getLogger(__name__)

# A slot works on its piece of a range for about this long before it takes the next one.
BUDGET_S = 1.0
# Longer than it takes from a sample's script to its entry in the ledger, on a shared file system too.
CLAIM_LIMIT_S = 1.0
# Errors of the machine, which may pass; the others are the sample's.
_FINAL_ERRORS = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EIO)
# The shells' exit code for a command that is not there.
NOT_FOUND = 127


class RangeWork:
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
