"""Batch jobs, which Maestro's adapters write, submit and cancel."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maestrowf.datastructures.core import StudyStep

from maestro_celery_plugin.batch.base import BatchSystem, JobReport
from maestro_celery_plugin.batch.maestro_adapter import OpenAdapter, failure, open_adapter
from maestro_celery_plugin.batch.ownership import check_owner, confirmed_job, find_job
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.jobs import is_process
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.config.walltime import clock_text
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.states import AllocationState

__all__ = ["BatchJobs"]

LOGGER = logging.getLogger(__name__)


class BatchJobs:
    """Batch jobs that Maestro's adapter writes, submits and cancels.

    Args:
        system: The batch system.
        settings: The batch settings with which jobs are cancelled.
    """

    def __init__(self, system: BatchSystem, settings: BatchSettings | None = None) -> None:
        self._system, self._settings = system, settings or BatchSettings()

    def _open(self, request: AllocationRequest) -> contextlib.AbstractContextManager[OpenAdapter]:
        keywords = self._system.adapter_arguments(request.settings)
        if request.procs:
            keywords["procs"] = request.procs
        return open_adapter(self._system, {"nodes": request.nodes, "shell": request.shell, **keywords})

    def _step(self, request: AllocationRequest) -> Any:
        """Return the allocation as a step for Maestro's adapter."""
        step = StudyStep()
        step.name = request.job_name
        step.description = f"workers of the study {request.study}"
        step.run.update(cmd=request.body, nodes=request.nodes, procs=request.procs or "", gpus=request.gpus or "")
        step.run["walltime"] = clock_text(request.walltime_s) if request.walltime_s else ""
        step.run["exclusive"] = request.procs is None
        step.run.update(self._system.step_keys(request.nodes, request.procs, request.gpus))
        return step

    def script(self, request: AllocationRequest, directory: Path) -> Path:
        """Write the batch script with Maestro's adapter.

        Raises:
            AllocationError: the adapter cannot be used on this machine, or not now.
        """
        with self._open(request) as opened:
            return self._write(opened.adapter, request, directory)

    def _write(self, adapter: Any, request: AllocationRequest, directory: Path) -> Path:
        step = self._step(request)
        try:
            with _errors_only(adapter):  # it warns about each step key that an srun line does not use
                _, path, _ = adapter.write_script(str(directory), step)
        except OSError:
            raise
        except Exception as cause:  # Maestro's adapters do not document their errors
            raise AllocationError(
                f"Maestro's adapter for '{self._system.type}' cannot write the batch script of '{step.name}': {cause}"
            ) from cause
        script = Path(path)
        text = self._system.adjusted_script(script.read_text())
        if self._system.directives is not None:
            text = self._system.directives.insert(text, request.settings.args)
        script.write_text(text)
        return script

    def submit(self, request: AllocationRequest, directory: Path) -> str:
        """Submit through Maestro's adapter."""
        with self._open(request) as opened:
            step = self._step(request)
            script = self._write(opened.adapter, request, directory)
            try:
                record = opened.adapter.submit(step, str(script), str(directory))
            except Exception as cause:  # Maestro's adapters do not document their errors
                job = self._submitted_despite(cause, directory)
                if job is not None:
                    return job
                raise failure(self._system, f"'{script}' cannot be submitted", str(cause)) from cause
            if record.submission_code.name != "OK":
                reason = opened.words or f"it gives no reason; submit '{script}' manually to see the reason"
                raise failure(self._system, f"The batch system refuses '{script}'", reason)
        return confirmed_job(self._system, str(record.job_identifier), directory)

    def _submitted_despite(self, cause: Exception, directory: Path) -> str | None:
        """Return the job that exists although Maestro's adapter could not read its number; None without such a job."""
        try:
            job = find_job(self._system, directory)
        except AllocationError:
            return None
        if job is not None:
            LOGGER.warning(
                "The output of the submission of job %s from '%s' has no number (%s).", job, directory, cause
            )
        return job

    def report(self, job: str) -> JobReport:
        """Query the batch system.

        If an earlier conductor has started workers in the allocation around it, they have ended with this allocation.
        """
        if is_process(job):
            return JobReport(AllocationState.GONE)
        return self._system.reports([job])[job]

    def cancel(self, job: str, directory: Path | None) -> None:
        """Cancel through Maestro's adapter; a job that has ended needs no cancellation."""
        check_owner(self._system, job, directory)
        with open_adapter(self._system, self._system.adapter_arguments(self._settings)) as opened:
            try:
                is_accepted = opened.adapter.cancel_jobs([job]).cancel_status.name == "OK"
                reason = opened.words
            except Exception as cause:  # Maestro's adapters do not document their errors
                is_accepted, reason = False, str(cause)
        if not is_accepted and self._may_be_open(job):
            what = "the batch system does not cancel it"
            raise failure(self._system, what, f"{reason or 'it gives no reason'}; cancel it manually")

    def _may_be_open(self, job: str) -> bool:
        try:
            report = self._system.reports([job])[job]
        except AllocationError:
            return True
        return report.is_in_queue

    def find_job(self, directory: Path) -> str | None:
        """Query the batch system for the job that was submitted in a directory."""
        return find_job(self._system, directory)


@contextlib.contextmanager
def _errors_only(adapter: Any) -> Iterator[None]:
    """Leave only errors in the log of Maestro's adapter."""
    logger = logging.getLogger(type(adapter).__module__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
