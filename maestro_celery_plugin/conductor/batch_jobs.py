"""Batch jobs, which Maestro's adapters write, submit and cancel."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maestrowf.datastructures.core import StudyStep
from maestrowf.interfaces import ScriptAdapterFactory

from maestro_celery_plugin.batch.base import BatchSystem, JobReport
from maestro_celery_plugin.batch.ownership import check_owner, confirmed_job, find_job
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.jobs import is_process
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.config.walltime import clock_text
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError
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

    def _adapter(self, request: AllocationRequest) -> Any:
        arguments = self._system.adapter_arguments(request.settings)
        if request.procs:
            arguments["procs"] = request.procs
        adapter = ScriptAdapterFactory.get_adapter(self._system.adapter)
        return adapter(nodes=request.nodes, shell=request.shell, **arguments)

    def _step(self, request: AllocationRequest) -> Any:
        """Return the allocation as a step for Maestro's adapter."""
        step = StudyStep()
        step.name = request.job_name
        step.description = f"workers of the study {request.study}"
        step.run.update(cmd=request.body, nodes=request.nodes, procs=request.procs or "", gpus=request.gpus or "")
        step.run["walltime"] = clock_text(request.walltime_s) if request.walltime_s else ""
        step.run["exclusive"] = request.procs is None
        if request.procs is None:
            step.run.update(self._system.step_keys(request.nodes))
        return step

    def script(self, request: AllocationRequest, directory: Path) -> Path:
        """Write the batch script with Maestro's adapter."""
        return self._write(request, directory)[2]

    def _write(self, request: AllocationRequest, directory: Path) -> tuple[Any, Any, Path]:
        adapter, step = self._adapter(request), self._step(request)
        with _log_level(adapter, logging.ERROR):  # it warns about each step key that an srun line does not use
            _, path, _ = adapter.write_script(str(directory), step)
        script = Path(path)
        script.write_text(self._system.adjusted_script(script.read_text()))
        return adapter, step, script

    def submit(self, request: AllocationRequest, directory: Path) -> str:
        """Submit through Maestro's adapter."""
        adapter, step, script = self._write(request, directory)
        try:
            with _messages_of(adapter) as messages:
                record = adapter.submit(step, str(script), str(directory))
        except Exception as cause:  # Maestro's adapters do not document their errors
            job = self._submitted_despite(cause, directory)
            if job is not None:
                return job
            error_class = (
                BatchSystemUnavailableError if self._system.unavailable.search(str(cause)) else AllocationError
            )
            raise error_class(f"'{script}' cannot be submitted: {cause}") from cause
        if record.submission_code.name != "OK":
            reason = messages.text or f"it gives no reason; submit '{script}' manually to see the reason"
            if self._system.unavailable.search(reason):
                raise BatchSystemUnavailableError(f"The batch system does not accept '{script}' now: {reason}")
            raise AllocationError(f"The batch system refuses '{script}': {reason}")
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
        """Cancel through Maestro's adapter."""
        check_owner(self._system, job, directory)
        arguments = self._system.adapter_arguments(self._settings)
        try:
            adapter = ScriptAdapterFactory.get_adapter(self._system.adapter)(**arguments)
            record = adapter.cancel_jobs([job])
        except Exception as cause:  # Maestro's adapters do not document their errors
            raise AllocationError(f"it cannot be cancelled ({cause}); cancel it manually") from cause
        if record.cancel_status.name != "OK":
            raise AllocationError("the batch system refuses to cancel it; cancel it manually")

    def find_job(self, directory: Path) -> str | None:
        """Query the batch system for the job that was submitted in a directory."""
        return find_job(self._system, directory)


@contextlib.contextmanager
def _log_level(adapter: Any, level: int) -> Iterator[logging.Logger]:
    """Set the level of the log of Maestro's adapter; yield its logger."""
    logger = logging.getLogger(type(adapter).__module__)
    before = logger.level
    logger.setLevel(level)
    try:
        yield logger
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _messages_of(adapter: Any) -> Iterator[_Messages]:
    """Yield the messages of Maestro's adapter, even if the user has turned off the log."""
    messages = _Messages()
    with _log_level(adapter, logging.WARNING) as logger:
        logger.addHandler(messages)
        try:
            yield messages
        finally:
            logger.removeHandler(messages)


class _Messages(logging.Handler):
    """Keeps the log messages of Maestro's adapter, which contain the message of the batch system after a failure."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._lines.append(record.getMessage())

    @property
    def text(self) -> str:
        text = " ".join(" ".join(self._lines).split())
        return text.removeprefix("Submission returned an error (see next line).").strip()
