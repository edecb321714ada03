"""The batch jobs of native steps: Maestro's own adapter submits, queries and cancels them.

The adapter does not tell a job that has ended from a batch system that does not answer, and may take another number for
the identifier of a job (`batch/ownership.py`). Therefore the plugin also asks the batch system itself.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode
from maestrowf.interfaces.script import SubmissionRecord

from maestro_celery_plugin.batch.base import BatchSystem, JobReport
from maestro_celery_plugin.batch.maestro_adapter import failure
from maestro_celery_plugin.batch.ownership import check_owner, confirmed_job, find_submitted
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError
from maestro_celery_plugin.maestro.native_adapter import open_native
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.maestro.postponed import Submission
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["CANCELLED", "CONTINUING", "UNKNOWN", "NativeJob", "NativeJobs"]

LOGGER = logging.getLogger(__name__)

# The identifier of a job that exists, but that the batch system has not named yet, and of a postponed submission.
UNKNOWN = "unknown"
# The identifier of a step record that was cancelled before its submission, so that it has no job.
CANCELLED = "cancelled"
# For an adapter that neither raises an error nor logs one.
NO_REASON = "it gives no reason; the log of the conductor may have its message."
# The states in which the batch job of an earlier conductor continues and is not submitted again.
CONTINUING = frozenset(
    {State.INITIALIZED, State.PENDING, State.WAITING, State.QUEUED, State.RUNNING, State.FINISHING, State.FINISHED}
)


@dataclasses.dataclass(frozen=True)
class NativeJob:
    """The job identifier of a native step record; the identifier of other step records is text.

    Attributes:
        record: Maestro's name of the step record.
        id: The adapter's identifier of the job, of any type; None if the record had finished before its submission.
    """

    record: str
    id: Any = dataclasses.field(hash=False)

    def __str__(self) -> str:
        return "--" if self.id is None else str(self.id)  # as in Maestro's status.csv (executiongraph.py:695)


class NativeJobs:
    """The batch jobs of the native steps of a study.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan

    @property
    def _system(self) -> BatchSystem | None:
        return batch_system(self._plan.settings.batch.type)

    def state_of(self, record: str) -> NativeStepState:
        """Return the stored state of a step record."""
        return NativeStepState(self._plan.native / quote(record, safe=""))

    def submit(self, submission: Submission, earlier: Any) -> SubmissionRecord:
        """Submit through Maestro's adapter; after an error, look for the job, which may exist nevertheless.

        Args:
            submission: The submission.
            earlier: Identifier of the last job, which has ended.

        Raises:
            BatchSystemUnavailableError: the batch system does not answer, or does not say whether there is a job.
            AllocationError: the batch system refuses it, or the adapter has an error, and there is no job.
        """
        system = self._system
        with open_native(self._plan.settings.batch) as opened:
            problem, cause = f"'{submission.path}' cannot be submitted", None
            try:
                answer = opened.adapter.submit(submission.step, submission.path, submission.cwd, **submission.options)
                if answer.submission_code is SubmissionCode.OK or system is None:
                    return answer
                problem, reason = f"the batch system refuses '{submission.path}'", opened.words or NO_REASON
            except Exception as error:  # an adapter fails if the command prints no number
                LOGGER.exception("The output of the submission of '%s' cannot be read.", submission.record)
                reason, cause = str(error), error
        try:
            found = self.find(Path(submission.cwd))
        except BatchSystemUnavailableError as unavailable:
            if not _is_missing(unavailable):
                raise
            found = None  # without the commands of the batch system, nothing was submitted
        if found is not None and found != str(earlier):
            LOGGER.warning("'%s' was submitted as job %s, in spite of the error.", submission.record, found)
            return SubmissionRecord(SubmissionCode.OK, 0, found)
        if system is None:
            raise AllocationError(f"{problem}: {reason}") from cause
        raise failure(system, problem, reason) from cause

    def confirmed(self, id: Any, directory: Path) -> Any:
        """Return the identifier of a job that was just submitted; `UNKNOWN` if the batch system does not say now."""
        system = self._system
        if system is None or not isinstance(id, str | int):
            return id
        try:
            job = confirmed_job(system, str(id), directory)
        except BatchSystemUnavailableError as error:
            LOGGER.warning("%s", error)
            return UNKNOWN
        return id if job == str(id) else job

    def find(self, directory: Path, printed: str | None = None) -> str | None:
        """Return the batch job that was submitted in a workspace; None without such a job.

        Args:
            directory: The workspace.
            printed: The number that the submission has printed; without it, only an open job is found.

        Raises:
            BatchSystemUnavailableError: the batch system does not answer now.
        """
        system = self._system
        return find_submitted(system, directory, printed) if system else None

    def is_continuing(self, job: NativeJob) -> bool:
        """Tell whether a job waits, runs or has finished.

        The adapter is asked as well: for the plugin, a job that waits for resources that will never be free has failed.

        Raises:
            BatchSystemUnavailableError: the batch system does not answer now.
        """
        system = self._system
        if system is not None:
            try:
                report = system.reports([str(job.id)])[str(job.id)]
            except AllocationError as cause:
                raise BatchSystemUnavailableError(str(cause)) from cause
            if report.state.is_open or report.state is AllocationState.COMPLETED:
                return True
            if report.state is AllocationState.GONE and report.reason:
                raise BatchSystemUnavailableError(f"It is not known how job {job.id} has ended: {report.reason}")
        return self.query([job]).get(job) in CONTINUING

    def known(self, job: NativeJob) -> NativeJob:
        """Return a job with the identifier of the batch system; without one if there is no such job.

        Raises:
            BatchSystemUnavailableError: the batch system does not say now which job it is.
        """
        if job.id != UNKNOWN:
            return job
        state, system = self.state_of(job.record), self._system
        id, directory = state.read_job(), state.directory
        if id is None and system is not None and directory is not None:
            id = find_submitted(system, directory, state.printed)
            if id is None:
                LOGGER.error("The batch system has no job of '%s', whose submission was not confirmed.", job.record)
                return job
            state.write_job(id, directory)
        return NativeJob(job.record, UNKNOWN if id is None else id)

    def query(self, jobs: Sequence[NativeJob]) -> dict[NativeJob, State | None]:
        """Return the states of jobs from Maestro's adapter; leave out jobs for which it has no answer.

        The state is None for a job that the batch system no longer lists. The adapter for Flux then returns ERROR with
        the states of all other jobs (flux0_49_0.py:514).
        """
        if not jobs:
            return {}
        by_id = {job.id: job for job in jobs}
        try:
            with open_native(self._plan.settings.batch) as opened:
                code, states = opened.adapter.check_jobs(list(by_id))
        except BatchSystemUnavailableError as error:
            LOGGER.warning("%s", error)
            return {}
        except Exception:  # any error of an adapter: the other step records continue
            LOGGER.exception("The batch system cannot be queried now.")
            return {}
        if code is not JobStatusCode.OK:
            LOGGER.error("The batch system does not report the states of some jobs now (%s).", code.name)
            states = {id: state for id, state in states.items() if state is not None}
        return {by_id[id]: state for id, state in states.items() if id in by_id}

    def is_gone(self, job: NativeJob) -> bool:
        """Tell whether the batch system answers, does not list a job, and knows of no end of it."""
        system = self._system
        if system is None or not isinstance(job.id, str | int):
            return False
        try:
            return system.reports([str(job.id)])[str(job.id)] == JobReport(AllocationState.GONE)
        except AllocationError as error:
            LOGGER.warning("%s", error)
            return False

    def cancel(self, jobs: Iterable[NativeJob]) -> CancelCode:
        """Cancel batch jobs; return ERROR unless the batch system accepts all cancellations."""
        ids, code = [], CancelCode.OK
        for job in jobs:
            try:
                id = None if job.id is None else self._cancellable(job)
            except BatchSystemUnavailableError as error:
                LOGGER.error("The job of '%s' cannot be cancelled now: %s", job.record, error)
                code = CancelCode.ERROR
            else:
                ids += [] if id is None else [id]
        return code if self._cancel(ids) else CancelCode.ERROR

    def _cancel(self, ids: Sequence[Any]) -> bool:
        """Cancel jobs; return whether none of them remains open, because a job that has ended cannot be cancelled."""
        if not ids:
            return True
        try:
            with open_native(self._plan.settings.batch) as opened:
                if opened.adapter.cancel_jobs(ids).cancel_status is CancelCode.OK:
                    return True
                LOGGER.error("The batch system does not cancel all jobs: %s", opened.words or NO_REASON)
        except AllocationError as error:
            LOGGER.error("%s", error)
            return False
        except Exception:  # any error of an adapter, as in `query`
            LOGGER.exception("The batch system cannot cancel jobs now.")
            return False
        return not self._may_be_open(ids)

    def _may_be_open(self, ids: Sequence[Any]) -> bool:
        system, jobs = self._system, [str(id) for id in ids]
        if system is None:
            return True
        try:
            reports = system.reports(jobs).values()
        except AllocationError:
            return True
        return any(report.is_in_queue for report in reports)

    def _cancellable(self, job: NativeJob) -> Any:
        """Return the identifier of a job; None if there is no such job, or if it was not submitted by this study.

        Raises:
            BatchSystemUnavailableError: the batch system does not answer.
        """
        known = self.known(job)
        if known.id == UNKNOWN:
            return None
        system = self._system
        if system is not None and isinstance(known.id, str | int):
            try:
                check_owner(system, str(known.id), self.state_of(job.record).directory)
            except BatchSystemUnavailableError:
                raise
            except AllocationError as error:
                LOGGER.error("%s", error)
                return None
        return known.id


def _is_missing(error: BaseException | None) -> bool:
    """Tell whether a batch system does not answer because its command is not on this machine."""
    while error is not None and not isinstance(error, FileNotFoundError):
        error = error.__cause__
    return error is not None
