"""Allocations as the source of workers: one allocation is open while its worker groups have work."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation, new_directory, read_allocations
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.conductor.batch_jobs import AllocationRequest, Jobs
from maestro_celery_plugin.errors import AllocationError, AllocationOverError, BatchSystemAwayError, WorkerError
from maestro_celery_plugin.states import AllocationState

__all__ = ["AllocationSource"]

LOGGER = logging.getLogger(__name__)

# The steps of the groups fail after this many allocations in a row in which no sample has started.
QUICK_FAILURES = 3
# Delay before the next try after such an allocation, times the number of failures.
RETRY_DELAY_S = 3.0
# Delay before the next try when the batch system did not answer.
AWAY_DELAY_S = 15.0
# Intervals between two queries of the batch system: after a recent change, and otherwise.
POLL_S, SLOW_POLL_S, BRISK_S = 2.0, 15.0, 60.0
# Workers that were requested to leave have this long before their batch job is cancelled.
LEAVE_LIMIT_S = 30.0
# An allocation with nodes but without a worker for this long is cancelled: workers start within minutes.
EMPTY_LIMIT_S = 300.0
# A job counts as ended after this many answers in a row that the batch system does not know it.
UNKNOWN_LIMIT = 3
# After ends with a cause outside of the study, the delay grows; after this many, the steps fail.
SETBACKS, SETBACK_LIMIT_S = 10, 600.0
# Ends with a cause outside of the study.
_INNOCENT = (AllocationState.PREEMPTED, AllocationState.NODE_FAILED, AllocationState.BOOT_FAILED)


class AllocationSource:
    """Opens, watches and ends the allocations of one name.

    Args:
        directory: Directory of the allocations of the study.
        name: Name of the allocations.
        request: Returns the request for the allocation of a number.
        jobs: Submits the allocations.

    Attributes:
        name: Name of the allocations.
        current: The last allocation, which may have ended; None before the first.
    """

    def __init__(self, directory: Path, name: str, request: Callable[[int], AllocationRequest], jobs: Jobs) -> None:
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
        """Whether workers run in the last allocation or may still start."""
        return self.current is not None and self.current.is_open

    def ensure(self) -> None:
        """Open an allocation, unless one is open.

        Raises:
            WorkerError: several allocations in a row were refused, or no sample has started in them.
        """
        if self.is_open or clock.monotonic() < self._not_before:
            return
        if self._failures >= QUICK_FAILURES or self._setbacks >= SETBACKS:
            raise WorkerError(
                f"allocation '{self.name}': {self._failures + self._setbacks} in a row have ended before a sample "
                f"started. {self._failure}"
            )
        try:
            self._resolve_or_open()
        except BatchSystemAwayError as error:
            self._not_before = clock.monotonic() + AWAY_DELAY_S
            LOGGER.warning("Allocation '%s': %s", self.name, error)

    def _resolve_or_open(self) -> None:
        """Submit an allocation, unless the batch system has the one whose submission was interrupted.

        The allocation is stored before its submission, so that a later conductor sees an interrupted submission.

        Raises:
            BatchSystemAwayError: the batch system does not answer now.
            WorkerError: the allocation around this process has no time left.
        """
        allocation = self.current
        if allocation is not None and allocation.is_unsettled:
            allocation.job = self._jobs.find(allocation.directory)
        else:
            number, directory = new_directory(self._directory, self.name)
            allocation = self.current = Allocation(self.name, number, directory, submitted_at=clock.now())
            allocation.store()
        if allocation.job is None:
            self._submit(allocation)
        self._changed_at = self._asked_at = clock.monotonic()
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
        self._not_before = clock.monotonic() + RETRY_DELAY_S * self._failures
        LOGGER.error("Allocation '%s': %s", self.name, why)

    def _delay(self, why: str) -> None:
        """Record an end with a cause outside of the study; the delay before the next try doubles each time."""
        self._setbacks += 1
        self._failure = why
        self._not_before = clock.monotonic() + min(SETBACK_LIMIT_S, RETRY_DELAY_S * 2**self._setbacks)
        LOGGER.warning("Allocation '%s': %s", self.name, why)

    def look(self, *, is_empty: bool = False) -> Allocation | None:
        """Query the batch system if the interval is over; return the allocation if it has ended since the last call.

        Args:
            is_empty: Whether it has nodes but no worker: it has just begun, or has ended.
        """
        allocation = self.current
        if allocation is None or allocation.job is None or not allocation.is_open:
            return None
        now = clock.monotonic()
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
            return None  # batch systems may not know a job for a moment after its submission
        has_waited = allocation.state is AllocationState.PENDING
        if allocation.take(report):
            self._changed_at = now
            if has_waited and report.state is AllocationState.FAILED:
                self._cancel(allocation)  # it waits for resources that will never be free
            LOGGER.info("Allocation '%s': %s. %s", allocation.label, report.state.value, report.reason)
        return None if allocation.is_open else allocation

    def _give_up(self, allocation: Allocation) -> Allocation:
        """End an allocation whose workers did not start, or have all left while its job runs."""
        why = f"it had no worker for {EMPTY_LIMIT_S:.0f} s"
        allocation.take(JobReport(AllocationState.FAILED, why))
        self._empty_since = None
        self._cancel(allocation)
        return allocation

    def note_end(self, allocation: Allocation, *, has_worked: bool, output: str = "") -> None:
        """Record whether a sample has started in an allocation that has ended.

        Args:
            allocation: The allocation.
            has_worked: Whether a sample has started.
            output: The end of the log of a worker.
        """
        if has_worked:
            self._failures = self._setbacks = 0
        elif not allocation.released:
            lines = "\n".join(filter(None, (output, allocation.output)))
            said = f"Its last lines:\n{lines}" if lines else "It has no output."
            end = f"{allocation.state.value}{f' ({allocation.reason})' if allocation.reason else ''}"
            why = f"Job {allocation.job}: {end}. Script and output are in '{allocation.directory}'. {said}"
            (self._delay if allocation.state in _INNOCENT else self._fail)(why)

    def release(self, *, by_force: bool) -> None:
        """Release the open allocation, which no step needs any more; cancel it if its workers do not leave.

        Args:
            by_force: Whether to cancel it at once, because it has no workers.
        """
        if self.current is not None and not self.current.released:
            LOGGER.info("No step needs allocation '%s' any more.", self.current.label)
            self._released_at = clock.monotonic()
            self.current.released = True
            self.current.store()
            if by_force:
                self.cancel()
        elif clock.monotonic() - self._released_at > LEAVE_LIMIT_S:
            self._released_at = clock.monotonic()
            self.cancel()

    def resolve(self) -> None:
        """Look for the job of an allocation whose submission was interrupted."""
        if self.current is not None and self.current.is_unsettled:
            with contextlib.suppress(BatchSystemAwayError):
                self.current.job = self._jobs.find(self.current.directory)

    def cancel(self) -> None:
        """Cancel the open allocation."""
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
            LOGGER.error("Job %s of allocation '%s' cannot be cancelled: %s", allocation.job, allocation.label, error)

    def await_end(self, limit_s: float) -> bool:
        """Wait for the end of the allocation; return whether it has ended."""
        deadline = clock.monotonic() + limit_s
        while self.is_open and clock.monotonic() < deadline:
            self.look(is_empty=True)
            clock.sleep(0.2)
        return not self.is_open
