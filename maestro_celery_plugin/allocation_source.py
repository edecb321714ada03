"""The source of a group's workers in allocations: one is open while there is work, and none longer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from maestro_celery_plugin.allocation_jobs import AllocationRequest, Jobs
from maestro_celery_plugin.allocations import Allocation, new_directory, read_allocations
from maestro_celery_plugin.errors import AllocationError, BatchSystemAwayError, WorkerError
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
        self._failures = 0
        self._failure = ""
        self._asked_at = self._changed_at = self._dismissed_at = self._not_before = 0.0
        earlier = [one for one in read_allocations(directory) if one.name == name]
        self.current: Allocation | None = earlier[-1] if earlier else None

    @property
    def is_open(self) -> bool:
        """Whether workers may still come or be there."""
        return self.current is not None and self.current.state.is_open

    def ensure(self) -> None:
        """See to it that an allocation is open.

        Raises:
            WorkerError: several in a row could not be had, or no sample was started in them.
        """
        if self.is_open or time.monotonic() < self._not_before:
            return
        if self._failures >= QUICK_FAILURES:
            raise WorkerError(
                f"allocation '{self.name}': {self._failures} in a row have ended before a sample was "
                f"started in them. {self._failure}"
            )
        self._open()

    def _open(self) -> None:
        number, directory = new_directory(self._directory, self.name)
        allocation = Allocation(self.name, number, directory, submitted_at=time.time())
        try:
            allocation.job = self._jobs.submit(self._request(number), directory)
        except BatchSystemAwayError as error:
            allocation.state, allocation.reason = AllocationState.FAILED, str(error)
            self._not_before = time.monotonic() + AWAY_DELAY_S
            LOGGER.warning("Allocation '%s': %s", self.name, error)
        except (AllocationError, OSError) as error:
            allocation.state, allocation.reason = AllocationState.FAILED, str(error)
            self._fail(str(error))
        allocation.store()
        self.current = allocation
        self._changed_at = self._asked_at = time.monotonic()
        if allocation.job is not None:
            LOGGER.info("Allocation '%s' is submitted as job %s.", allocation.label, allocation.job)

    def _fail(self, why: str) -> None:
        self._failures += 1
        self._failure = why
        self._not_before = time.monotonic() + RETRY_DELAY_S * self._failures
        LOGGER.error("Allocation '%s': %s", self.name, why)

    def look(self, *, eager: bool = False) -> Allocation | None:
        """Ask the batch system, when it is time; return the allocation if it has ended since.

        Args:
            eager: Whether something else says that it has.
        """
        allocation = self.current
        if allocation is None or allocation.job is None or not allocation.state.is_open:
            return None
        now = time.monotonic()
        pace_s = POLL_S if eager or now - self._changed_at < BRISK_S else SLOW_POLL_S
        if now - self._asked_at < pace_s:
            return None
        self._asked_at = now
        try:
            report = self._jobs.report(allocation.job)
        except AllocationError as error:
            LOGGER.warning("%s", error)
            return None
        has_waited = allocation.state is AllocationState.PENDING
        if allocation.take(report):
            self._changed_at = now
            if has_waited and report.state is AllocationState.FAILED:
                self._jobs.cancel(allocation.job)  # it waits for what will never be
            LOGGER.info("Allocation '%s': %s. %s", allocation.label, report.state.value, report.reason)
        return None if allocation.state.is_open else allocation

    def note_end(self, allocation: Allocation, *, has_worked: bool, words: str = "") -> None:
        """Take in whether any sample was started in an allocation that has ended.

        Args:
            allocation: The allocation.
            has_worked: Whether any was.
            words: The last ones of its workers, in case none was.
        """
        if has_worked:
            self._failures = 0
        elif allocation.state not in _INNOCENT and not allocation.released:
            lines = "\n".join(filter(None, (words, allocation.output)))
            said = f"Its last lines:\n{lines}" if lines else "It has printed nothing."
            self._fail(f"Job {allocation.job}: {allocation.state.value} {allocation.reason}. {said}")

    def dismiss(self, *, by_force: bool) -> None:
        """Note that nothing needs the open allocation any more; end it if its workers do not by leaving.

        Args:
            by_force: Whether there are no workers that could leave.
        """
        if self.current is not None and not self.current.released:
            LOGGER.info("Allocation '%s' is not needed any more.", self.current.label)
            self._dismissed_at = time.monotonic()
            self.current.released = True
            self.current.store()
            if by_force:
                self.release()
        elif time.monotonic() - self._dismissed_at > LEAVE_LIMIT_S:
            self._dismissed_at = time.monotonic()
            self.release()

    def release(self) -> None:
        """End the open allocation."""
        allocation = self.current
        if allocation is None or not self.is_open or allocation.job is None:
            return
        allocation.released = True
        allocation.store()
        try:
            self._jobs.cancel(allocation.job)
        except (AllocationError, OSError) as error:
            LOGGER.error("Allocation '%s' cannot be ended: %s", allocation.label, error)

    def await_end(self, limit_s: float) -> bool:
        """Wait until the allocation has left the queue; return whether it has."""
        deadline = time.monotonic() + limit_s
        while self.is_open and time.monotonic() < deadline:
            self.look(eager=True)
            time.sleep(0.2)
        return not self.is_open
