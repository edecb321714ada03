"""Native steps: Maestro runs them itself, as batch jobs or in the conductor.

Maestro's own adapter for the `batch.type` of the user writes, submits, watches and cancels them. Maestro does not store
which of them have finished, so a resumed study would run all of them again. `native_step_state.py` stores their states.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maestrowf.abstracts.enums import CancelCode, State, SubmissionCode
from maestrowf.interfaces.script import SubmissionRecord
from msgspec.structs import replace

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.coordinator import known_additions
from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.step_entry import SHELL_KEY
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError, StudyError
from maestro_celery_plugin.maestro.native_adapter import insert_options, open_native
from maestro_celery_plugin.maestro.native_jobs import CANCELLED, CONTINUING, UNKNOWN, NativeJob, NativeJobs
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.maestro.postponed import Submission, postponed_of
from maestro_celery_plugin.samples.token_values import study_values
from maestro_celery_plugin.study import conductor_lock
from maestro_celery_plugin.study.additions import grown_paths
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.reasons import store_failure, store_refusal

__all__ = ["NO_REASON", "NativeJob", "NativeSteps"]

LOGGER = logging.getLogger(__name__)

# What Maestro's own adapter for local jobs returns instead of an error.
NO_REASON = "Maestro's adapter has refused it; the log of the conductor has its message."
# Scripts are written again after SCRIPT_DELAY_S while the batch system does not answer; this blocks Maestro, so that
# after SCRIPT_LIMIT_S the conductor ends, and the study can be resumed.
SCRIPT_DELAY_S, SCRIPT_LIMIT_S = 5.0, 600.0
# Maestro's polls in a row without a job in the batch system, after which it has ended in an unknown way.
GONE_LIMIT = 3
_GONE = (
    "The batch system does not list its job any more, and does not know how it has ended; look at its output, and "
    "continue the study with `maestro-celery resume`."
)


class NativeSteps:
    """The native steps of a study, with the interface of Maestro's adapter.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._jobs = NativeJobs(plan)
        self._postponed = postponed_of(plan.root)
        self._cancelled = CancelledSteps(plan.cancelled_steps)

    def write_script(self, directory: str, step: Any, *, dry_run: bool) -> tuple[bool, str, str | None]:
        """Let Maestro's adapter write the scripts of a step record.

        Returns:
            Whether Maestro submits it, and the scripts for `cmd` and `restart`. Otherwise Maestro runs the first script
            in the conductor (executiongraph.py:157); this script then records its end.

        Raises:
            StudyError: another conductor runs this study.
        """
        scheduled, script, restart = self._write(directory, step, dry_run=dry_run)
        if dry_run:
            return scheduled, script, restart
        lock, state = conductor_lock.acquire(self._plan), self._jobs.state_of(step.real_name)
        if scheduled or state.has_finished or step.real_name in self._cancelled.names():
            return True, script, restart
        lock.must_poll = True  # the step record will end before Maestro waits for the next poll
        return False, state.write_run_once_script(script), restart

    def _write(self, directory: str, step: Any, *, dry_run: bool) -> tuple[bool, str, str | None]:
        """Write the scripts; wait for the batch system, to which some of Maestro's adapters connect for a script.

        Raises:
            StudyError: the batch system does not answer for a long time, or its adapter cannot be used.
        """
        end = clock.monotonic() + (0 if dry_run else SCRIPT_LIMIT_S)
        while True:
            try:
                with open_native(self._plan.settings.batch, step.run.get(SHELL_KEY)) as opened:
                    result: tuple[bool, str, str | None] = opened.adapter.write_script(directory, self._filled(step))
                    insert_options(self._plan.settings.batch, result)
                    return result
            except AllocationError as error:
                if dry_run and self._plan.overrides.no_errors:
                    return self._write_plain(directory, step, error)
                if clock.monotonic() >= end or not isinstance(error, BatchSystemUnavailableError):
                    raise StudyError(
                        f"The scripts of '{step.real_name}' cannot be written. {str(error).rstrip('.')}. Continue the "
                        f"study later with `maestro-celery resume {self._plan.root}`."
                    ) from error
                LOGGER.warning("The scripts of '%s' wait for the batch system. %s", step.real_name, error)
            clock.sleep(SCRIPT_DELAY_S)

    def _write_plain(self, directory: str, step: Any, error: AllocationError) -> tuple[bool, str, str | None]:
        """Write the scripts without the directives of the batch system, which is missing; Maestro runs none of them."""
        LOGGER.warning("The scripts of '%s' have no batch directives. %s", step.real_name, error)
        with open_native(replace(self._plan.settings.batch, type=LOCAL), step.run.get(SHELL_KEY)) as opened:
            _, script, restart = opened.adapter.write_script(directory, self._filled(step))
        return True, script, restart

    def _filled(self, step: Any) -> Any:
        """Return a step with the values of the study's tokens, and without `shell`, which is no key of Maestro."""
        filled = copy.copy(step)
        filled.run = {key: value for key, value in step.run.items() if key != SHELL_KEY}
        plan = self._plan
        paths = grown_paths(plan, plan.rows + known_additions(plan))
        for key in ("cmd", "restart"):
            text = filled.run[key]
            values = study_values(str(plan.root), plan.timestamp, plan.column_labels, paths, text)
            filled.run[key] = substitute(text, {**values, **plan.specification_files})
        return filled

    def submit(self, step: Any, path: str, cwd: str, **options: Any) -> SubmissionRecord:
        """Submit a step record, unless it has finished, or the batch job of an earlier conductor continues.

        If the batch system does not say now whether an earlier job continues, the submission is postponed: `states`
        asks again.
        """
        submission = Submission(step=step, path=path, cwd=cwd, options=options)
        if step.real_name in self._cancelled.names() and not self._jobs.state_of(step.real_name).has_finished:
            conductor_lock.acquire(self._plan).must_poll = True
            return SubmissionRecord(SubmissionCode.OK, 0, NativeJob(step.real_name, CANCELLED))
        try:
            if self._postponed.is_quiet and self._jobs.state_of(step.real_name).has_job:
                raise BatchSystemUnavailableError("The batch system did not answer a moment ago.")
            return self._submit(submission)
        except BatchSystemUnavailableError as error:
            LOGGER.warning("The submission of '%s' waits for the batch system: %s", step.real_name, error)
            self._postponed.add(submission)
            return SubmissionRecord(SubmissionCode.OK, 0, NativeJob(step.real_name, UNKNOWN))

    def _submit(self, submission: Submission) -> SubmissionRecord:
        """Submit a step record, or return its job if it needs no submission.

        Raises:
            BatchSystemUnavailableError: the batch system does not say now whether there is a job.
            AllocationError: the step record cannot be submitted.
        """
        record, state = submission.record, self._jobs.state_of(submission.record)
        if state.has_finished:
            job: NativeJob | None = NativeJob(record, None)
        else:
            job = self._continuing(record, state, Path(submission.cwd))
        if job is not None:
            conductor_lock.acquire(self._plan).must_poll = True
            return SubmissionRecord(SubmissionCode.OK, 0, job)
        earlier = state.read_job(), state.directory
        state.write_job(None, submission.cwd)  # so that a later conductor detects an interrupted submission
        try:
            answer = self._jobs.submit(submission, earlier[0])
        except BatchSystemUnavailableError:
            raise
        except AllocationError:
            state.restore_job(*earlier)
            raise
        if answer.submission_code is not SubmissionCode.OK:
            state.restore_job(*earlier)
            return answer
        printed = answer.job_identifier
        id = self._jobs.confirmed(printed, Path(submission.cwd))
        if id == UNKNOWN:
            state.write_job(None, submission.cwd, printed=str(printed))
        else:
            state.write_job(id, submission.cwd)
        return SubmissionRecord(SubmissionCode.OK, answer.return_code, NativeJob(record, id))

    def _continuing(self, record: str, state: NativeStepState, directory: Path) -> NativeJob | None:
        """Return the batch job of an earlier conductor if it continues; None otherwise.

        If Maestro submits a step record again, its earlier job under this conductor has timed out or was lost.

        Raises:
            BatchSystemUnavailableError: the batch system does not say now whether it continues.
        """
        if state.is_interrupted:
            found = self._jobs.find(directory, state.printed)
            if found is not None:
                state.write_job(found, directory)
        job = NativeJob(record, state.read_job())
        if job.id is None or not self._jobs.is_continuing(job):
            return None
        LOGGER.info("'%s' continues as job '%s' of an earlier conductor.", record, job)
        return job

    def states(self, jobs: Iterable[NativeJob]) -> dict[NativeJob, State | None]:
        """Return the states of jobs; leave out jobs for which the batch system does not answer.

        The state is None for a job that the batch system no longer lists; Maestro ignores None (executiongraph.py:798).
        """
        jobs = list(jobs)
        without_job = {job: State.CANCELLED for job in jobs if job.id == CANCELLED}
        self._cancel_named([job for job in jobs if job not in without_job])
        stored = {job: self._jobs.state_of(job.record) for job in jobs if job not in without_job}
        states: dict[NativeJob, State | None] = {}
        for job in list(stored):
            try:
                if stored[job].has_finished:
                    states[job] = State.FINISHED
            except OSError as error:  # the next poll asks again; an error here would end the conductor
                LOGGER.warning("It is unknown whether '%s' has finished: %s", job.record, error)
                del stored[job]
        known = self._all_known([job for job in stored if job not in states], states)
        by_record = {job.record: job for job in stored}
        states |= {by_record[job.record]: State.FAILED for job in known if job.id == UNKNOWN}
        found = self._jobs.query([job for job in known if job.id != UNKNOWN])
        for job in (job for job in known if job.id != UNKNOWN and found.get(job) is None):
            if self._postponed.count_gone(job.record, is_gone=self._jobs.is_gone(job)) >= GONE_LIMIT:
                LOGGER.error("'%s' (job %s) has failed. %s", job.record, job, _GONE)
                with contextlib.suppress(OSError):  # a full disk: the log has it
                    store_failure(self._plan.refusals, job.record, _GONE)
                found[job] = State.FAILED
        states |= {by_record[job.record]: state for job, state in found.items()}
        for job, state in list(states.items()):
            if state is State.FINISHED and not _is_recorded(stored[job]):
                del states[job]
            elif state is not State.FINISHED and self._is_cancelled(job) and state not in CONTINUING:
                states[job] = State.CANCELLED  # instead of the end of an earlier job
        return states | without_job

    def _is_cancelled(self, job: NativeJob) -> bool:
        submission = self._postponed.get(job.record)
        return job.record in self._postponed.cancelled or (submission is not None and submission.is_cancelled)

    def _cancel_named(self, jobs: Iterable[NativeJob]) -> None:
        """Cancel the jobs of step records that a user has named, until the batch system has accepted this."""
        try:
            names = self._cancelled.names() - self._postponed.cancelled
        except OSError as error:  # the next poll reads them; an error here would end the conductor
            LOGGER.warning("%s", error)
            return
        for job in jobs:
            if job.record in names and self.cancel([job]) is CancelCode.OK:
                self._postponed.cancelled.add(job.record)

    def _all_known(self, jobs: list[NativeJob], states: dict[NativeJob, State | None]) -> list[NativeJob]:
        """Return jobs with the identifiers of the batch system, after the postponed submissions.

        Jobs that the batch system does not name now are left out. A step record that it refuses gets its state here.
        """
        known, is_answering = [], True
        for job in jobs:
            if job.id == UNKNOWN and not is_answering:
                continue  # it would block Maestro again
            try:
                self._submit_postponed(job.record)
                known.append(self._jobs.known(job))
            except (BatchSystemUnavailableError, OSError) as error:  # or a full disk; the next poll tries again
                is_answering = False
                LOGGER.warning("%s", error)
            except AllocationError as error:
                self._postponed.remove(job.record)
                LOGGER.error("'%s' cannot be submitted: %s", job.record, error)
                with contextlib.suppress(OSError):
                    store_refusal(self._plan.refusals, job.record, str(error))
                states[job] = State.FAILED
        return known

    def _submit_postponed(self, record: str) -> None:
        """Submit a step record if its submission was postponed, unless it was cancelled meanwhile.

        Raises:
            BatchSystemUnavailableError: the batch system still does not answer.
            AllocationError: the step record cannot be submitted.
        """
        submission = self._postponed.get(record)
        if submission is None or submission.is_cancelled:
            return
        answer = self._submit(submission)
        self._postponed.remove(record)
        if answer.submission_code is not SubmissionCode.OK:
            raise AllocationError(NO_REASON)

    def cancel(self, jobs: Iterable[NativeJob]) -> CancelCode:
        """Cancel batch jobs; return ERROR unless the batch system accepts the cancellation."""
        jobs = [job for job in jobs if job.id != CANCELLED]
        for submission in filter(None, (self._postponed.get(job.record) for job in jobs)):
            submission.is_cancelled = True
        return self._jobs.cancel(jobs)


def _is_recorded(state: NativeStepState) -> bool:
    """Record that a step record has finished; return False if this is not possible now, so that it has not ended."""
    try:
        state.record_finished()
    except OSError as error:
        LOGGER.error("The end of a step cannot be recorded, which waits: %s", error)
        return False
    return True
