"""The source of workers in allocations: it keeps one allocation open while its worker groups have work.

The conductors of several studies may use the allocation (`shared_allocation.py`): its owner alone queries the batch
system, and releases or cancels it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation, new_directory
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.backoff import Backoff
from maestro_celery_plugin.conductor.jobs import Jobs
from maestro_celery_plugin.conductor.shared_allocation import POLL_S, SharedAllocation
from maestro_celery_plugin.errors import (
    AllocationError,
    AllocationExpiredError,
    BatchSystemUnavailableError,
    WorkerError,
)
from maestro_celery_plugin.states import AllocationState

__all__ = ["AllocationSource"]

LOGGER = logging.getLogger(__name__)

# Intervals between two queries of the batch system: POLL_S until BRISK_S after a change, then SLOW_POLL_S.
SLOW_POLL_S, BRISK_S = 15.0, 60.0
# Time between the request to leave and the cancellation of the batch job, if workers have not left.
LEAVE_LIMIT_S = 30.0
# An allocation with nodes but without a worker for this long is cancelled: workers start within minutes.
EMPTY_LIMIT_S = 300.0
# A job counts as ended after the batch system has reported it as unknown this many times in a row.
UNKNOWN_LIMIT = 3


class AllocationSource(SharedAllocation):
    """Opens, watches and cancels the allocations of one name.

    Args:
        directory: Directory of the allocations of the study.
        name: Name of the allocations.
        request: Function that returns the request for the allocation with a number.
        jobs: Submits, queries and cancels the jobs of the allocations.

    """

    def __init__(self, directory: Path, name: str, request: Callable[[int], AllocationRequest], jobs: Jobs) -> None:
        super().__init__(directory, name)
        self._request, self._jobs = request, jobs
        self._backoff = Backoff(name)
        self._unknown = 0
        self._has_left = self._is_let_end = False
        self._empty_since: float | None = None
        self._queried_at = self._changed_at = self._released_at = 0.0

    def ensure(self) -> None:
        """Open an allocation, unless one is open.

        Raises:
            WorkerError: several allocations in a row were refused or have ended before a sample started.
        """
        if self.is_open or not self._backoff.is_due() or not self.own() or self.is_open:
            return
        try:
            self._resolve_or_open()
        except BatchSystemUnavailableError as error:
            self._backoff.record_unavailability(str(error))
            if self.current is not None:
                self.current.reason = f"waits. {str(error).rstrip('.')}"  # for `status` and `explain`
                with contextlib.suppress(OSError):
                    self.current.store()

    def _resolve_or_open(self) -> None:
        """Submit an allocation, unless the batch system has a job from an interrupted submission.

        The allocation is stored before its submission, so that a later conductor sees an interrupted submission.

        Raises:
            BatchSystemUnavailableError: the batch system does not answer now.
            WorkerError: the allocation around this process has no time left.
        """
        allocation = self.current
        if allocation is not None and allocation.is_submission_unknown:
            allocation.job = self._jobs.find_job(allocation.directory)
        else:
            number, directory = new_directory(self._directory, self.name)
            allocation = self.current = Allocation(self.name, number, directory, submitted_at=clock.now())
            self._has_left = self._is_let_end = False
            allocation.store()
        if allocation.job is None:
            self._submit(allocation)
        self._changed_at = self._queried_at = clock.monotonic()
        if allocation.job is not None:
            allocation.reason = ""
        allocation.store()
        if allocation.job is not None:
            LOGGER.info("Allocation '%s' is submitted as job %s.", allocation.label, allocation.job)

    def _submit(self, allocation: Allocation) -> None:
        try:
            allocation.job = self._jobs.submit(self._request(allocation.number), allocation.directory)
        except BatchSystemUnavailableError:
            raise
        except AllocationExpiredError as error:
            allocation.apply_report(JobReport(AllocationState.FAILED, str(error)))
            raise WorkerError(str(error)) from error
        except (AllocationError, OSError) as error:
            allocation.state, allocation.reason = AllocationState.FAILED, str(error)
            self._backoff.record_failure(str(error))

    def refresh(self, *, is_empty: bool = False) -> Allocation | None:
        """Query the batch system if the interval has passed; return the allocation if it has ended since the last call.

        Args:
            is_empty: Whether the allocation has nodes but no worker, because it has just begun or has just ended.
        """
        ended = None if self.is_owner else self.follow_or_take_over()
        if ended is not None or not self.is_owner:
            return ended
        allocation = self.current
        if allocation is None or allocation.job is None or not allocation.is_open:
            return None
        now = clock.monotonic()
        if not is_empty:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        elif now - self._empty_since > EMPTY_LIMIT_S and not allocation.released:
            return self._cancel_empty(allocation)
        interval_s = POLL_S if is_empty or self._unknown or now - self._changed_at < BRISK_S else SLOW_POLL_S
        if now - self._queried_at < interval_s:
            return None
        self._queried_at = now
        report = self._report(str(allocation.job))
        if report is not None and report.waits_forever and not self._cancel(allocation):
            return None  # before it counts as ended: nobody would cancel its job later
        if report is not None and allocation.apply_report(report):
            self._changed_at = now
            LOGGER.info("Allocation '%s': %s. %s", allocation.label, report.state.value, report.reason)
        return None if allocation.is_open else allocation

    def _report(self, job: str) -> JobReport | None:
        """Return the report of the batch system; None when there is no answer, or one that may be wrong."""
        try:
            report = self._jobs.report(job)
        except AllocationError as error:
            LOGGER.warning("%s", error)
            return None
        self._unknown = self._unknown + 1 if report.state is AllocationState.GONE else 0
        if 0 < self._unknown < UNKNOWN_LIMIT:
            return None  # a batch system may not know a job directly after its submission
        if self._has_left and report.state is AllocationState.CANCELLED:
            return JobReport(AllocationState.COMPLETED)  # its cancellation has only ended what follows the script
        return report

    def _cancel_empty(self, allocation: Allocation) -> Allocation | None:
        """Cancel an allocation whose workers did not start, or all left while its job still runs.

        It has ended when that has succeeded: nobody would cancel its job later.
        """
        if not self._cancel(allocation):
            return None
        reason = f"no worker was seen in it for {EMPTY_LIMIT_S:.0f} s"
        allocation.apply_report(JobReport(AllocationState.FAILED, reason))
        self._empty_since = None
        return allocation

    def record_end(self, allocation: Allocation, *, has_worked: bool, output: str = "") -> None:
        """Record whether a sample has started in an allocation that has ended.

        Args:
            allocation: The allocation.
            has_worked: Whether a sample has started.
            output: The end of the log of a worker.
        """
        if has_worked or self.has_worked_elsewhere(allocation):
            self._backoff.record_work()
        elif not allocation.released:
            self._backoff.record_end_without_work(allocation, output)
        if not self.is_open:
            self.disown()  # any conductor may open the next one

    def release(self, *, is_empty: bool) -> None:
        """Release the open allocation, which no step needs any more; cancel it if it does not end.

        Without workers, its script ends by itself, unless no worker has started yet: then it is cancelled immediately.

        Args:
            is_empty: Whether it has no workers.
        """
        if not self.own():
            return
        self._is_let_end = False
        if self.current is not None and not self.current.released:
            LOGGER.info("No step needs allocation '%s' any more.", self.current.label)
            self._released_at = clock.monotonic()
            self._store_release(self.current)
            if is_empty and not self.current.slots:
                self.cancel()
        elif clock.monotonic() - self._released_at > LEAVE_LIMIT_S:
            self._released_at = clock.monotonic()
            self.cancel(has_left=is_empty)

    def let_end(self, *, has_worked: bool) -> None:
        """Let the open allocation end when its workers leave, however long that takes; cancel it if it has not begun.

        In one that has begun, workers may run samples although their heartbeats are not visible yet.

        Args:
            has_worked: Whether a sample has started in it, so that it has begun, whatever its last report says.
        """
        if self.current is None or not self.is_open or self.current.released or not self.own():
            return
        self._released_at = clock.monotonic()
        if self.current.state is AllocationState.PENDING and not self.current.slots and not has_worked:
            self.cancel()
        else:
            self._is_let_end = True
            self._store_release(self.current)

    def keep(self) -> None:
        """Keep the open allocation although `let_end` has let it end: its workers continue."""
        if self.current is not None and self.is_open and self._is_let_end:
            self._is_let_end = False
            self._store_release(self.current, is_released=False)

    def resolve(self) -> None:
        """Look for the job of an allocation whose submission was interrupted."""
        if self.current is not None and self.current.is_submission_unknown:
            with contextlib.suppress(BatchSystemUnavailableError):
                self.current.job = self._jobs.find_job(self.current.directory)

    def cancel(self, *, has_left: bool = False) -> None:
        """Cancel the open allocation.

        Args:
            has_left: Whether its workers, if it had any, have left, so that it has not ended too early.
        """
        allocation = self.current
        if allocation is None or not self.is_open or not self.own():
            return
        self._has_left = has_left and allocation.slots > 0
        self._is_let_end = False
        self._store_release(allocation)
        self._cancel(allocation)

    @staticmethod
    def _store_release(allocation: Allocation, *, is_released: bool = True) -> None:
        """Store that the study does not need an allocation any more; a full disk must not keep the allocation open."""
        allocation.released = is_released
        try:
            allocation.store()
        except OSError as error:
            LOGGER.error("The release of allocation '%s' cannot be stored: %s", allocation.label, error)

    def _cancel(self, allocation: Allocation) -> bool:
        """Cancel the job of an allocation; return False if a later try may succeed."""
        try:
            self._jobs.cancel(str(allocation.job), allocation.directory)
        except (AllocationError, OSError) as error:
            LOGGER.error("Job %s of allocation '%s' cannot be cancelled: %s", allocation.job, allocation.label, error)
            # The batch system refuses it for good if the job is that of somebody else.
            return not isinstance(error, BatchSystemUnavailableError | OSError)
        return True

    def await_end(self, limit_s: float) -> bool:
        """Wait for the end of the allocation; return whether it has ended."""
        deadline = clock.monotonic() + limit_s
        while self.is_open and clock.monotonic() < deadline:
            self.refresh(is_empty=True)
            clock.sleep(0.2)
        return not self.is_open
