"""The source of a group's workers in allocations: one is open while there is work, and none longer."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from maestro_celery_plugin.batch.allocation import Allocation, new_directory, read_allocations
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.conductor.batch_jobs import AllocationRequest, Jobs
from maestro_celery_plugin.errors import AllocationError, AllocationOverError, BatchSystemAwayError, WorkerError
from maestro_celery_plugin.states import AllocationState

__all__ = ["AllocationSource"]

LOGGER = logging.getLogger(__name__)

# So many allocations in a row in which no sample was started fail the steps of their groups.
QUICK_FAILURES = 3
# Before the next try after such an allocation, times the number of failures so far.
RETRY_DELAY_S = 3.0
# Before the next try at a batch system that did not answer.
AWAY_DELAY_S = 15.0
# A batch system is asked every few seconds while things move, and every 15 s otherwise.
POLL_S, SLOW_POLL_S, BRISK_S = 2.0, 15.0, 60.0
# Workers that were told to leave get this long before their batch job is cancelled.
LEAVE_LIMIT_S = 30.0
# An allocation that has its nodes, and no worker for so long, is given up: their start takes minutes at most.
EMPTY_LIMIT_S = 300.0
# A job that the batch system does not know is given up at the third such answer.
UNKNOWN_LIMIT = 3
# Ends that were nobody's fault are followed by longer and longer delays, and not for ever.
SETBACKS, SETBACK_LIMIT_S = 10, 600.0
# Whose fault it was not that no sample was started.
_INNOCENT = (AllocationState.PREEMPTED, AllocationState.NODE_FAILED, AllocationState.BOOT_FAILED)


class AllocationSource:
    """Opens, watches and ends the allocations of one name.

    Args:
        directory: The study's directory of allocations.
        name: Name of the allocations.
        request: Returns what is asked of the batch system for the allocation of a number.
        jobs: Where the allocations come from.

    Attributes:
        current: The last allocation, which may have ended; None before the first.
    """

    def __init__(
        self, directory: Path, name: str, request: Callable[[int], AllocationRequest], jobs: Jobs
    ) -> None:
        self.name = name
        self._directory, self._request, self._jobs = directory, request, jobs
        self._failures = self._setbacks = self._unknown = 0
        self._failure = ""
        self._empty_since: float | None = None
        self._asked_at = self._changed_at = self._released_at = self._not_before = 0.0
        earlier = [one for one in read_allocations(directory) if one.name == name]
        self.current: Allocation | None = earlier[-1] if earlier else None

    @property
    def is_open(self) -> bool:
        """Whether workers may still come or be there."""
        return self.current is not None and self.current.is_open

    def ensure(self) -> None:
        """See to it that an allocation is open.

        Raises:
            WorkerError: several in a row could not be had, or no sample was started in them.
        """
        if self.is_open or time.monotonic() < self._not_before:
            return
        if self._failures >= QUICK_FAILURES or self._setbacks >= SETBACKS:
            raise WorkerError(
                f"allocation '{self.name}': {self._failures + self._setbacks} in a row have ended before a sample was "
                f"started in them. {self._failure}"
            )
        try:
            self._settle_or_open()
        except BatchSystemAwayError as error:
            self._not_before = time.monotonic() + AWAY_DELAY_S
            LOGGER.warning("Allocation '%s': %s", self.name, error)

    def _settle_or_open(self) -> None:
        """Submit an allocation, unless the one before has been taken by the batch system after all.

        It is stored before it is submitted: a conductor that dies in between leaves a trace of it.

        Raises:
            BatchSystemAwayError: the batch system does not answer now.
            WorkerError: there is no time for another one in the allocation around this process.
        """
        allocation = self.current
        if allocation is not None and allocation.is_unsettled:
            allocation.job = self._jobs.find(allocation.directory)
        else:
            number, directory = new_directory(self._directory, self.name)
            allocation = self.current = Allocation(self.name, number, directory, submitted_at=time.time())
            allocation.store()
        if allocation.job is None:
            self._submit(allocation)
        self._changed_at = self._asked_at = time.monotonic()
        allocation.store()
        if allocation.job is not None:
            LOGGER.info("Allocation '%s' is submitted as job %s.", allocation.label, allocation.job)

    def _submit(self, allocation: Allocation) -> None:
        try:
            allocation.job = self._jobs.submit(self._request(allocation.number), allocation.directory)
        except BatchSystemAwayError:
            raise
        except AllocationOverError as error:
            allocation.take(JobReport(AllocationState.FAILED, str(error)))
            raise WorkerError(str(error)) from error
        except (AllocationError, OSError) as error:
            allocation.state, allocation.reason = AllocationState.FAILED, str(error)
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        self._failures += 1
        self._failure = why
        self._not_before = time.monotonic() + RETRY_DELAY_S * self._failures
        LOGGER.error("Allocation '%s': %s", self.name, why)

    def _set_back(self, why: str) -> None:
        """Note an end that was nobody's fault; the next try comes later each time."""
        self._setbacks += 1
        self._failure = why
        self._not_before = time.monotonic() + min(SETBACK_LIMIT_S, RETRY_DELAY_S * 2**self._setbacks)
        LOGGER.warning("Allocation '%s': %s", self.name, why)

    def look(self, *, is_empty: bool = False) -> Allocation | None:
        """Ask the batch system, when it is time; return the allocation if it has ended since.

        Args:
            is_empty: Whether it has its nodes and no worker: it has begun a moment ago, or has ended.
        """
        allocation = self.current
        if allocation is None or allocation.job is None or not allocation.is_open:
            return None
        now = time.monotonic()
        if not is_empty:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        elif now - self._empty_since > EMPTY_LIMIT_S and not allocation.released:
            return self._give_up(allocation)
        pace_s = POLL_S if is_empty or self._unknown or now - self._changed_at < BRISK_S else SLOW_POLL_S
        if now - self._asked_at < pace_s:
            return None
        self._asked_at = now
        try:
            report = self._jobs.report(allocation.job)
        except AllocationError as error:
            LOGGER.warning("%s", error)
            return None
        self._unknown = self._unknown + 1 if report.state is AllocationState.GONE else 0
        if 0 < self._unknown < UNKNOWN_LIMIT:
            return None  # batch systems do not know a job for a moment after it was submitted
        has_waited = allocation.state is AllocationState.PENDING
        if allocation.take(report):
            self._changed_at = now
            if has_waited and report.state is AllocationState.FAILED:
                self._cancel(allocation)  # it waits for what will never be
            LOGGER.info("Allocation '%s': %s. %s", allocation.label, report.state.value, report.reason)
        return None if allocation.is_open else allocation

    def _give_up(self, allocation: Allocation) -> Allocation:
        """End an allocation whose workers never came, or are all gone while its job goes on."""
        why = f"none of its workers has been seen for {EMPTY_LIMIT_S:.0f} s"
        allocation.take(JobReport(AllocationState.FAILED, why))
        self._empty_since = None
        self._cancel(allocation)
        return allocation

    def note_end(self, allocation: Allocation, *, has_worked: bool, words: str = "") -> None:
        """Take in whether any sample was started in an allocation that has ended.

        Args:
            allocation: The allocation.
            has_worked: Whether any was.
            words: The last ones of its workers, in case none was.
        """
        if has_worked:
            self._failures = self._setbacks = 0
        elif not allocation.released:
            lines = "\n".join(filter(None, (words, allocation.output)))
            said = f"Its last lines:\n{lines}" if lines else "It has printed nothing."
            end = f"{allocation.state.value}{f' ({allocation.reason})' if allocation.reason else ''}"
            why = f"Job {allocation.job}: {end}. Its script and output are in '{allocation.directory}'. {said}"
            (self._set_back if allocation.state in _INNOCENT else self._fail)(why)

    def release(self, *, by_force: bool) -> None:
        """Note that nothing needs the open allocation any more; end it if its workers do not by leaving.

        Args:
            by_force: Whether there are no workers that could leave.
        """
        if self.current is not None and not self.current.released:
            LOGGER.info("Allocation '%s' is not needed any more.", self.current.label)
            self._released_at = time.monotonic()
            self.current.released = True
            self.current.store()
            if by_force:
                self.cancel()
        elif time.monotonic() - self._released_at > LEAVE_LIMIT_S:
            self._released_at = time.monotonic()
            self.cancel()

    def settle(self) -> None:
        """Find out whether the batch system has taken an allocation of which nobody knows."""
        if self.current is not None and self.current.is_unsettled:
            with contextlib.suppress(BatchSystemAwayError):
                self.current.job = self._jobs.find(self.current.directory)

    def cancel(self) -> None:
        """End the open allocation."""
        allocation = self.current
        if allocation is None or not self.is_open:
            return
        allocation.released = True
        allocation.store()
        self._cancel(allocation)

    def _cancel(self, allocation: Allocation) -> None:
        try:
            self._jobs.cancel(str(allocation.job))
        except (AllocationError, OSError) as error:
            LOGGER.error("Job %s of allocation '%s' cannot be ended: %s", allocation.job, allocation.label, error)

    def await_end(self, limit_s: float) -> bool:
        """Wait until the allocation has left the queue; return whether it has."""
        deadline = time.monotonic() + limit_s
        while self.is_open and time.monotonic() < deadline:
            self.look(is_empty=True)
            time.sleep(0.2)
        return not self.is_open
