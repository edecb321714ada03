"""The backoff of submissions: when the next allocation may be submitted, and when none follows."""

from __future__ import annotations

import logging

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.errors import WorkerError
from maestro_celery_plugin.states import AllocationState

__all__ = ["Backoff"]

LOGGER = logging.getLogger(__name__)

# The steps of the groups fail after this many allocations in a row in which no sample has started.
MAX_FAILURES = 3
# Delay before the next submission after such an allocation, multiplied by the number of failures.
RETRY_DELAY_S = 3.0
# Delay before the next submission after the batch system did not answer.
UNAVAILABLE_DELAY_S = 15.0
# The delay doubles, up to SETBACK_LIMIT_S, at each end with a cause outside of the study. After MAX_SETBACKS such ends
# in a row, the steps fail.
MAX_SETBACKS, SETBACK_LIMIT_S = 10, 600.0
# Ends with a cause outside of the study.
_EXTERNAL_ENDS = (AllocationState.PREEMPTED, AllocationState.NODE_FAILED, AllocationState.BOOT_FAILED)


class Backoff:
    """Delays the next submission of an allocation after refusals, and after ends before a sample has started.

    Args:
        name: Name of the allocations.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failures = self._setbacks = 0
        self._reason = ""
        self._not_before = 0.0

    def is_due(self) -> bool:
        """Tell whether an allocation may be submitted now.

        Raises:
            WorkerError: several allocations in a row were refused or have ended before a sample started.
        """
        if clock.monotonic() < self._not_before:
            return False
        if self._failures >= MAX_FAILURES or self._setbacks >= MAX_SETBACKS:
            raise WorkerError(
                f"allocation '{self._name}' was refused or has ended {self._failures + self._setbacks} times in a row "
                f"before a sample started. {self._reason}"
            )
        return True

    def record_work(self) -> None:
        """Record that a sample has started in the last allocation."""
        self._failures = self._setbacks = 0

    def record_end_without_work(self, allocation: Allocation, output: str) -> None:
        """Record an allocation that has ended before a sample started.

        Args:
            allocation: The allocation.
            output: The end of the log of a worker.
        """
        lines = "\n".join(filter(None, (output, allocation.output)))
        ending = f"The output ends with:\n{lines}" if lines else "The output is empty."
        end = f"{allocation.state.value}{f' ({allocation.reason})' if allocation.reason else ''}"
        reason = f"Job {allocation.job}: {end}. Script and output are in '{allocation.directory}'. {ending}"
        if allocation.state in _EXTERNAL_ENDS:
            self._record_setback(reason)
        else:
            self.record_failure(reason)

    def record_failure(self, reason: str) -> None:
        """Record an allocation that was refused, or has ended because of an error in the study."""
        self._failures += 1
        self._reason = reason
        self._not_before = clock.monotonic() + RETRY_DELAY_S * self._failures
        LOGGER.error("Allocation '%s': %s", self._name, reason)

    def _record_setback(self, reason: str) -> None:
        """Record an end with a cause outside of the study, and double the delay before the next submission."""
        self._setbacks += 1
        self._reason = reason
        self._not_before = clock.monotonic() + min(SETBACK_LIMIT_S, RETRY_DELAY_S * 2**self._setbacks)
        LOGGER.warning("Allocation '%s': %s", self._name, reason)

    def record_unavailability(self, reason: str) -> None:
        """Record that the batch system did not answer."""
        self._not_before = clock.monotonic() + UNAVAILABLE_DELAY_S
        LOGGER.warning("Allocation '%s': %s", self._name, reason)
