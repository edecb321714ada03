"""Plain steps: those that Maestro runs itself beside the steps of the workers, as batch jobs or in the conductor.

Maestro's own adapter for the user's `batch.type` writes, submits, watches and cancels them. What Maestro
does not keep is which of them have ended, so that a resumed study would run all of them again: see
`plain_traces.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import getpass
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode

from maestro_celery_plugin.batch.base import batch_system
from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.config.settings import BatchSettings, plain
from maestro_celery_plugin.config.step_entry import SHELL_KEY
from maestro_celery_plugin.config.tokens import study_values, substitute
from maestro_celery_plugin.errors import AllocationError, BatchSystemAwayError
from maestro_celery_plugin.maestro.native_traces import PlainTrace
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.study.conductor_lock import conduct

if TYPE_CHECKING:
    from maestrowf.abstracts.interfaces import ScriptAdapter
    from maestrowf.interfaces.script import SubmissionRecord

    from maestro_celery_plugin.study.layout import StudyPlan

__all__ = ["PlainJob", "PlainSteps", "adapter_of"]

LOGGER = logging.getLogger(__name__)

# A batch job of an earlier conductor that is in one of these states is not submitted again.
_GOING_ON = frozenset(
    {State.INITIALIZED, State.PENDING, State.WAITING, State.QUEUED, State.RUNNING, State.FINISHING, State.FINISHED}
)

@dataclasses.dataclass(frozen=True)
class PlainJob:
    """Maestro's job identifier of a plain step record; those of the workers' step records are text.

    Attributes:
        record: Maestro's name of the step record.
        id: What the adapter calls the job, of whatever type; None for a record that finished long ago.
    """

    record: str
    id: Any = dataclasses.field(hash=False)

    def __str__(self) -> str:
        return "--" if self.id is None else str(self.id)  # as in Maestro's status.csv (executiongraph.py:695)


def adapter_of(batch: BatchSettings, shell: str | None = None) -> ScriptAdapter:
    """Return Maestro's own adapter for a batch block, with the user's keys and those that it insists on.

    Args:
        batch: The batch block.
        shell: Interpreter of the scripts, when not the block's.

    Raises:
        AllocationError: Maestro has no adapter for the block's `type`.
    """
    from maestrowf.interfaces import ScriptAdapterFactory

    system = batch_system(batch.type)
    keywords = {"shell": _shebang(shell or batch.shell)}
    if system is None:
        return ScriptAdapterFactory.get_adapter("local")(**keywords)
    # Maestro's adapters ask for the jobs of $USER (slurmscriptadapter.py:278), which cron does not set.
    os.environ.setdefault("USER", getpass.getuser())
    written = {key: value for key, value in plain(batch).items() if key != "type"}
    if batch.nodes == "all":  # of an allocation of workers; a batch job needs a number
        del written["nodes"]
    return ScriptAdapterFactory.get_adapter(system.adapter)(**written | system.adapter_arguments(batch) | keywords)


def _shebang(shell: str) -> str:
    """Return an interpreter as it can stand behind ``#!``, where the kernel looks for no bare name."""
    return shell if "/" in shell.split()[0] else f"/usr/bin/env -S {shell}"


class PlainSteps:
    """The plain steps of a study, as Maestro's adapter sees them.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan

    def _trace(self, record: str) -> PlainTrace:
        return PlainTrace(self._plan.plain / quote(record, safe=""))

    def write_script(self, directory: str, step: Any, *, dry_run: bool) -> tuple[bool, str, str | None]:
        """Let Maestro's adapter write the scripts of a step record.

        Returns:
            Whether it is to be submitted, and the scripts for `cmd` and `restart`. If not, Maestro runs the
            first one in the conductor (executiongraph.py:157); that then is one which notes its end.

        Raises:
            StudyError: another conductor of this study lives.
        """
        adapter = adapter_of(self._plan.settings.batch, step.run.get(SHELL_KEY))
        scheduled, script, restart = adapter.write_script(directory, self._filled(step))
        if dry_run:
            return scheduled, script, restart
        conductorship, trace = conduct(self._plan), self._trace(step.real_name)
        if scheduled or trace.has_finished:
            return True, script, restart
        conductorship.has_news = True  # it has ended before Maestro waits for the next poll
        return False, trace.guard(script), restart

    def _filled(self, step: Any) -> Any:
        """Return a step with the study's tokens put in, and without the key that only we know."""
        filled = copy.copy(step)
        filled.run = {key: value for key, value in step.run.items() if key != SHELL_KEY}
        plan = self._plan
        paths = SamplePaths(plan.rows, plan.level_max_dirs)
        for key in ("cmd", "restart"):
            text = filled.run[key]
            filled.run[key] = substitute(text, study_values(str(plan.root), plan.timestamp, paths, text))
        return filled

    def submit(self, step: Any, path: str, cwd: str, **more: Any) -> SubmissionRecord:
        """Submit a step record, unless it has finished, or goes on as the batch job of an earlier conductor."""
        from maestrowf.interfaces.script import SubmissionRecord

        trace = self._trace(step.real_name)
        if trace.is_cut_off and not trace.has_finished:
            trace.write_job(self._find(Path(cwd)))
        job = PlainJob(step.real_name, None) if trace.has_finished else self._going_on(step.real_name, trace)
        if job is not None:
            conduct(self._plan).has_news = True
            return SubmissionRecord(SubmissionCode.OK, 0, job)
        trace.write_job(None)  # a conductor that dies before it knows the job leaves a trace
        record = adapter_of(self._plan.settings.batch).submit(step, path, cwd, **more)
        if record.submission_code is not SubmissionCode.OK:
            trace.forget_job()
            return record
        trace.write_job(record.job_identifier)
        return SubmissionRecord(SubmissionCode.OK, record.return_code, PlainJob(step.real_name, record.job_identifier))

    def _find(self, directory: Path) -> str | None:
        """Return the batch job that was submitted in a step record's workspace, if one is known."""
        system = batch_system(self._plan.settings.batch.type)
        try:
            return system.find(directory) if system else None
        except BatchSystemAwayError as error:
            LOGGER.warning("%s", error)
            return None

    def _going_on(self, record: str, trace: PlainTrace) -> PlainJob | None:
        """Return the batch job of an earlier conductor if it need not be submitted again.

        One of this conductor has timed out or was lost when Maestro submits its step record again.
        """
        job = PlainJob(record, trace.read_job())
        if job.id is None or self._ask([job]).get(job) not in _GOING_ON:
            return None
        LOGGER.info("'%s' goes on as the job '%s', which an earlier conductor has submitted.", record, job)
        return job

    def states(self, jobs: Iterable[PlainJob]) -> dict[PlainJob, State | None]:
        """Return what the batch system says of jobs; nothing of any when it cannot be asked.

        None is its word for a job that it has forgotten; Maestro passes over it (executiongraph.py:798).
        """
        traces = {job: self._trace(job.record) for job in jobs}
        states: dict[PlainJob, State | None] = {job: State.FINISHED for job in traces if traces[job].has_finished}
        states |= self._ask([job for job in traces if job not in states])
        for job, state in states.items():
            if state is State.FINISHED:
                traces[job].note_finished()
        return states

    def _ask(self, jobs: Sequence[PlainJob]) -> dict[PlainJob, State | None]:
        if not jobs:
            return {}
        by_id = {job.id: job for job in jobs}
        try:
            code, states = adapter_of(self._plan.settings.batch).check_jobs(list(by_id))
        except Exception:  # whatever an adapter raises: the workers' step records go on
            LOGGER.exception("The batch system cannot be asked now.")
            return {}
        if code is not JobStatusCode.OK:
            LOGGER.error("The batch system does not tell the state of its jobs now (%s).", code.name)
            return {}
        return {by_id[id]: state for id, state in states.items() if id in by_id}

    def end_left(self) -> Iterator[str]:
        """Cancel the batch jobs that a dead conductor has left, and say so; or that something goes on."""
        for path in sorted(self._plan.plain.glob("*")):
            record, trace = unquote(path.name), PlainTrace(path)
            if trace.is_running_here:
                yield f"The script of '{record}' goes on on its own; `pgrep -f {path}/run.sh` names its process."
            elif trace.is_cut_off:
                yield f"Whether '{record}' was submitted is not known; look for its job in the queue, and cancel it."
            elif not trace.has_finished and trace.read_job() is not None:
                yield from self._end_job(PlainJob(record, trace.read_job()))

    def _end_job(self, job: PlainJob) -> Iterator[str]:
        system = batch_system(self._plan.settings.batch.type)
        if system is None:
            return
        try:
            if not system.reports([str(job)])[str(job)].state.is_open:
                return
            BatchJobs(system).cancel(str(job))
        except AllocationError as error:
            yield f"Job {job} of '{job.record}' may go on: {error}"
        else:
            yield f"Job {job} of '{job.record}' is cancelled."

    def cancel(self, jobs: Iterable[PlainJob]) -> CancelCode:
        """Cancel batch jobs; return whether the batch system has taken it on."""
        ids = [job.id for job in jobs if job.id is not None]
        if not ids:
            return CancelCode.OK
        try:
            code: CancelCode = adapter_of(self._plan.settings.batch).cancel_jobs(ids).cancel_status
        except Exception:  # as above
            LOGGER.exception("The batch system cannot be told to cancel jobs now.")
            return CancelCode.ERROR
        return code
