"""The jobs of allocations: batch jobs, or processes in the allocation around this process."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest

__all__ = ["Jobs", "is_process"]


class Jobs(Protocol):
    """Submits, queries and cancels the jobs of allocations."""

    def script(self, request: AllocationRequest, directory: Path) -> Path:
        """Write the script of an allocation, and return its path."""

    def submit(self, request: AllocationRequest, directory: Path) -> str:
        """Submit an allocation; return the identifier of its job.

        Raises:
            BatchSystemUnavailableError: the batch system does not answer now.
            AllocationError: the batch system refuses the job; the error contains the message of the batch system.
        """

    def report(self, job: str) -> JobReport:
        """Return the report of a job.

        Raises:
            AllocationError: the batch system does not answer.
        """

    def cancel(self, job: str, directory: Path | None) -> None:
        """Cancel a job that was submitted in a directory; None when the directory is unknown.

        Raises:
            AllocationError: the job cannot be cancelled, or was submitted elsewhere.
        """

    def find_job(self, directory: Path) -> str | None:
        """Return the open job that was submitted in a directory; None without such a job.

        Raises:
            BatchSystemUnavailableError: the batch system does not answer now.
        """


def is_process(job: str) -> bool:
    """Tell whether a job is a process, ``pid:start:machine``, instead of a batch job."""
    return ":" in job
