"""Native steps: Maestro runs them itself, as batch jobs or in the conductor.

Maestro's own adapter for the `batch.type` of the user writes, submits, watches and cancels them. Maestro does not store
which of them have finished, so a resumed study would run all of them again. `native_step_state.py` stores their states.
"""

from __future__ import annotations

import copy
import dataclasses
import getpass
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode
from maestrowf.abstracts.interfaces import ScriptAdapter
from maestrowf.interfaces import ScriptAdapterFactory
from maestrowf.interfaces.script import SubmissionRecord

from maestro_celery_plugin.batch.ownership import check_owner, confirmed_job, find_job
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.config.step_entry import SHELL_KEY
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.samples.token_values import study_values
from maestro_celery_plugin.study import conductor_lock
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["NativeJob", "NativeSteps", "adapter_of"]

LOGGER = logging.getLogger(__name__)

# The identifier of a job that exists, but that the batch system has not named yet.
_UNKNOWN = "unknown"
# The states in which the batch job of an earlier conductor continues and is not submitted again.
_CONTINUING = frozenset(
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


def adapter_of(batch: BatchSettings, shell: str | None = None) -> ScriptAdapter:
    """Return Maestro's own adapter for a batch block, with the user's keys and the keys that it requires.

    Args:
        batch: The batch block.
        shell: Interpreter of the scripts; None for the `shell` of the block.

    Raises:
        AllocationError: Maestro has no adapter for the block's `type`.
    """
    system = batch_system(batch.type)
    keywords = {"shell": _shebang(shell or batch.shell)}
    if system is None:
        return ScriptAdapterFactory.get_adapter("local")(**keywords)
    # Maestro's adapters query the jobs of $USER (slurmscriptadapter.py:278), which cron does not set.
    os.environ.setdefault("USER", getpass.getuser())
    keys = {key: value for key, value in conversion.to_dict(batch).items() if key != "type"}
    if batch.nodes == "all":  # for an allocation of workers; a batch job needs a number
        del keys["nodes"]
    return ScriptAdapterFactory.get_adapter(system.adapter)(**keys | system.adapter_arguments(batch) | keywords)


def _shebang(shell: str) -> str:
    """Return an interpreter in a form for ``#!``, where the kernel needs a path."""
    return shell if "/" in shell.split()[0] else f"/usr/bin/env -S {shell}"


class NativeSteps:
    """The native steps of a study, with the interface of Maestro's adapter.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan

    def _state(self, record: str) -> NativeStepState:
        return NativeStepState(self._plan.native / quote(record, safe=""))

    def write_script(self, directory: str, step: Any, *, dry_run: bool) -> tuple[bool, str, str | None]:
        """Let Maestro's adapter write the scripts of a step record.

        Returns:
            Whether Maestro submits it, and the scripts for `cmd` and `restart`. Otherwise Maestro runs the first script
            in the conductor (executiongraph.py:157); this script then records its end.

        Raises:
            StudyError: another conductor runs this study.
        """
        adapter = adapter_of(self._plan.settings.batch, step.run.get(SHELL_KEY))
        scheduled, script, restart = adapter.write_script(directory, self._filled(step))
        if dry_run:
            return scheduled, script, restart
        lock, state = conductor_lock.acquire(self._plan), self._state(step.real_name)
        if scheduled or state.has_finished:
            return True, script, restart
        lock.must_poll = True  # the step record will end before Maestro waits for the next poll
        return False, state.write_run_once_script(script), restart

    def _filled(self, step: Any) -> Any:
        """Return a step with the values of the study's tokens, and without `shell`, which is no key of Maestro."""
        filled = copy.copy(step)
        filled.run = {key: value for key, value in step.run.items() if key != SHELL_KEY}
        plan = self._plan
        paths = SamplePaths(plan.rows, plan.level_max_dirs)
        for key in ("cmd", "restart"):
            text = filled.run[key]
            filled.run[key] = substitute(text, study_values(str(plan.root), plan.timestamp, paths, text))
        return filled

    def submit(self, step: Any, path: str, cwd: str, **options: Any) -> SubmissionRecord:
        """Submit a step record, unless it has finished, or the batch job of an earlier conductor continues."""
        state = self._state(step.real_name)
        if state.is_interrupted and not state.has_finished:
            state.write_job(self._find(Path(cwd)), cwd)
        job = NativeJob(step.real_name, None) if state.has_finished else self._continuing(step.real_name, state)
        if job is not None:
            conductor_lock.acquire(self._plan).must_poll = True
            return SubmissionRecord(SubmissionCode.OK, 0, job)
        state.write_job(None, cwd)  # so that a later conductor detects an interrupted submission
        try:
            record = adapter_of(self._plan.settings.batch).submit(step, path, cwd, **options)
        except Exception as error:  # an adapter fails if the command prints no number; the job may exist
            LOGGER.exception("The output of the submission of '%s' cannot be read.", step.real_name)
            found = self._find(Path(cwd))
            if found is None:
                raise AllocationError(f"'{path}' cannot be submitted: {error}") from error
            record = SubmissionRecord(SubmissionCode.OK, 0, found)
        if record.submission_code is not SubmissionCode.OK:
            state.forget_job()
            return record
        id = self._confirmed(record.job_identifier, Path(cwd))
        state.write_job(None if id == _UNKNOWN else id, cwd)
        return SubmissionRecord(SubmissionCode.OK, record.return_code, NativeJob(step.real_name, id))

    def _confirmed(self, id: Any, directory: Path) -> Any:
        """Return the identifier of a job that was just submitted; `_UNKNOWN` if the batch system does not say now."""
        system = batch_system(self._plan.settings.batch.type)
        if system is None or not isinstance(id, str | int):
            return id
        try:
            job = confirmed_job(system, str(id), directory)
        except BatchSystemUnavailableError as error:
            LOGGER.warning("%s", error)
            return _UNKNOWN
        return id if job == str(id) else job

    def _find(self, directory: Path) -> str | None:
        """Return the open batch job that was submitted in a workspace; None without such a job."""
        system = batch_system(self._plan.settings.batch.type)
        try:
            return find_job(system, directory) if system else None
        except BatchSystemUnavailableError as error:
            LOGGER.warning("%s", error)
            return None

    def _continuing(self, record: str, state: NativeStepState) -> NativeJob | None:
        """Return the batch job of an earlier conductor if it continues; None otherwise.

        If Maestro submits a step record again, its earlier job under this conductor has timed out or was lost.
        """
        job = NativeJob(record, state.read_job())
        if job.id is None or self._query([job]).get(job) not in _CONTINUING:
            return None
        LOGGER.info("'%s' continues as job '%s' of an earlier conductor.", record, job)
        return job

    def states(self, jobs: Iterable[NativeJob]) -> dict[NativeJob, State | None]:
        """Return the states of jobs; leave out jobs for which the batch system does not answer.

        The state is None for a job that the batch system no longer lists; Maestro ignores None (executiongraph.py:798).
        """
        stored = {job: self._state(job.record) for job in jobs}
        states: dict[NativeJob, State | None] = {job: State.FINISHED for job in stored if stored[job].has_finished}
        known = []
        for job in stored:
            if job not in states:
                try:
                    known.append(self._known(job))
                except BatchSystemUnavailableError as error:
                    LOGGER.warning("%s", error)
        by_record = {job.record: job for job in stored}
        states |= {by_record[job.record]: State.FAILED for job in known if job.id == _UNKNOWN}
        found = self._query([job for job in known if job.id != _UNKNOWN])
        states |= {by_record[job.record]: state for job, state in found.items()}
        for job, state in states.items():
            if state is State.FINISHED:
                stored[job].record_finished()
        return states

    def _known(self, job: NativeJob) -> NativeJob:
        """Return a job with the identifier of the batch system; without one if there is no such job.

        Raises:
            BatchSystemUnavailableError: the batch system does not say now which job it is.
        """
        if job.id != _UNKNOWN:
            return job
        state, system = self._state(job.record), batch_system(self._plan.settings.batch.type)
        id, directory = state.read_job(), state.directory
        if id is None and system is not None and directory is not None:
            id = find_job(system, directory)
            if id is None:
                LOGGER.error("The batch system has no job of '%s', whose submission was not confirmed.", job.record)
                return job
            state.write_job(id, directory)
        return NativeJob(job.record, _UNKNOWN if id is None else id)

    def _query(self, jobs: Sequence[NativeJob]) -> dict[NativeJob, State | None]:
        if not jobs:
            return {}
        by_id = {job.id: job for job in jobs}
        try:
            code, states = adapter_of(self._plan.settings.batch).check_jobs(list(by_id))
        except Exception:  # any error of an adapter: the other step records continue
            LOGGER.exception("The batch system cannot be queried now.")
            return {}
        if code is not JobStatusCode.OK:
            LOGGER.error("The batch system does not report the states of jobs now (%s).", code.name)
            return {}
        return {by_id[id]: state for id, state in states.items() if id in by_id}

    def cancel(self, jobs: Iterable[NativeJob]) -> CancelCode:
        """Cancel batch jobs; return ERROR unless the batch system accepts the cancellation."""
        try:
            ids = [id for job in jobs if job.id is not None and (id := self._cancellable(job)) is not None]
            if not ids:
                return CancelCode.OK
            code: CancelCode = adapter_of(self._plan.settings.batch).cancel_jobs(ids).cancel_status
        except Exception:  # any error of an adapter, as in `_query`
            LOGGER.exception("The batch system cannot cancel jobs now.")
            return CancelCode.ERROR
        return code

    def _cancellable(self, job: NativeJob) -> Any:
        """Return the identifier of a job; None if there is no such job, or if it was not submitted by this study.

        Raises:
            AllocationError: the batch system does not answer.
        """
        known = self._known(job)
        if known.id == _UNKNOWN:
            return None
        system = batch_system(self._plan.settings.batch.type)
        if system is not None and isinstance(known.id, str | int):
            try:
                check_owner(system, str(known.id), self._state(job.record).directory)
            except BatchSystemUnavailableError:
                raise
            except AllocationError as error:
                LOGGER.error("%s", error)
                return None
        return known.id
