"""Jobs that are processes of this machine: they start workers in the allocation around this process."""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path

from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.conductor.allocation_request import AllocationRequest
from maestro_celery_plugin.conductor.jobs import Jobs, is_process
from maestro_celery_plugin.errors import AllocationExpiredError
from maestro_celery_plugin.machine import is_this_machine, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import AllocationState

__all__ = ["ProcessJobs"]


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
        if not is_process(job):
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
        if is_process(job):
            process = _process_of(job)
            if process is not None:
                process.signal(signal.SIGTERM, group=True)
        else:
            self._outside.cancel(job, directory)


def _process_of(job: str) -> ProcessId | None:
    """Return the process of a job ``pid:start:machine``; None for a process of another machine."""
    pid, start, *machine = job.split(":")
    return ProcessId(int(pid), int(start)) if is_this_machine("".join(machine)) else None
