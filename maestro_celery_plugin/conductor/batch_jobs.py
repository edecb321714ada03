"""The jobs of allocations: batch jobs of Maestro's adapters, or processes in the allocation around this process."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any, Protocol

from maestrowf.datastructures.core import StudyStep
from maestrowf.interfaces import ScriptAdapterFactory

from maestro_celery_plugin.batch.base import BatchSystem, JobReport
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.batch.ownership import check_owner, confirmed_job, find_job
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.config.walltime import clock_text
from maestro_celery_plugin.errors import AllocationError, AllocationExpiredError, BatchSystemUnavailableError
from maestro_celery_plugin.machine import is_this_machine, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import AllocationState

__all__ = ["BatchJobs", "Jobs", "ProcessJobs"]

LOGGER = logging.getLogger(__name__)


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
        logger = logging.getLogger(type(adapter).__module__)
        level = logger.level
        logger.setLevel(logging.ERROR)  # the adapter warns about each step key that an srun line does not use
        try:
            _, path, _ = adapter.write_script(str(directory), step)
        finally:
            logger.setLevel(level)
        script = Path(path)
        script.write_text(self._system.adjusted_script(script.read_text()))
        return adapter, step, script

    def submit(self, request: AllocationRequest, directory: Path) -> str:
        """Submit through Maestro's adapter."""
        adapter, step, script = self._write(request, directory)
        messages = _Messages()
        logger = logging.getLogger(type(adapter).__module__)
        level = logger.level
        logger.setLevel(logging.WARNING)  # the messages are needed even if the user has turned off the log
        logger.addHandler(messages)
        try:
            record = adapter.submit(step, str(script), str(directory))
        except Exception as cause:  # Maestro's adapters do not document their errors
            job = self._submitted_despite(cause, directory)
            if job is not None:
                return job
            error_class = (
                BatchSystemUnavailableError if self._system.unavailable.search(str(cause)) else AllocationError
            )
            raise error_class(f"'{script}' cannot be submitted: {cause}") from cause
        finally:
            logger.removeHandler(messages)
            logger.setLevel(level)
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
        if _is_process(job):
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


class ProcessJobs:
    """Processes of this machine that start workers in the allocation around this process.

    Args:
        job: Identifier of the batch job around this process.
        deadline: The deadline of this allocation.
        outside: The batch jobs that an earlier conductor of the study has submitted outside of this allocation.
    """

    def __init__(self, job: str, deadline: Deadline, outside: Jobs) -> None:
        self._job, self._deadline, self._outside = job, deadline, outside
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def script(self, request: AllocationRequest, directory: Path) -> Path:
        """Write a script with the lines that start the workers."""
        path = directory / f"{request.job_name}.sh"
        path.write_text(f"#!{request.shell}\n\n{request.body}\n")
        path.chmod(0o755)
        return path

    def submit(self, request: AllocationRequest, directory: Path) -> str:
        """Start the workers in their own process group."""
        if not self._deadline.fits(None, 0.0):
            raise AllocationExpiredError(
                f"The allocation around this study (job {self._job}) ends in {self._deadline.remaining_s:.0f} s, too "
                "soon for more samples; `maestro-celery resume` continues the study in another allocation."
            )
        script = self.script(request, directory)
        with (
            (directory / f"{request.job_name}.out").open("ab") as out,
            (directory / f"{request.job_name}.err").open("ab") as err,
        ):
            process = subprocess.Popen(
                [*shlex.split(request.shell), str(script)],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        job = f"{process.pid}:{ProcessId.of(process.pid).start}:{machine_id()}"
        self._processes[job] = process
        return job

    def report(self, job: str) -> JobReport:
        """Return the state of the process that starts the workers, or of a batch job of an earlier conductor."""
        if not _is_process(job):
            return self._outside.report(job)
        process = self._processes.get(job)
        if process is None:
            earlier = _process_of(job)
            is_alive = earlier is not None and earlier.is_alive
            return JobReport(AllocationState.RUNNING if is_alive else AllocationState.GONE)
        code = process.poll()
        if code is None:
            return JobReport(AllocationState.RUNNING)
        return JobReport(AllocationState.FAILED, f"exit code {code}") if code else JobReport(AllocationState.COMPLETED)

    def find_job(self, directory: Path) -> str | None:
        """Return None: workers of an interrupted submission end with the allocation, or at their idle limit."""
        return None

    def cancel(self, job: str, directory: Path | None) -> None:
        """End the processes that start the workers; they end the workers."""
        if _is_process(job):
            process = _process_of(job)
            if process is not None:
                process.signal(signal.SIGTERM, group=True)
        else:
            self._outside.cancel(job, directory)


def _is_process(job: str) -> bool:
    return ":" in job


def _process_of(job: str) -> ProcessId | None:
    """Return the process of a job ``pid:start:machine``; None for a process of another machine."""
    pid, start, *machine = job.split(":")
    return ProcessId(int(pid), int(start)) if is_this_machine("".join(machine)) else None
