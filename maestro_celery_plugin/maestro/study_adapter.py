"""The adapter of one study: its step records go to the coordinator, its native steps to Maestro's own adapter.

If one of them has an error, Maestro still receives the states of the other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode
from maestrowf.interfaces.script import CancellationRecord, SubmissionRecord
from msgspec.structs import replace

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.coordinator import Coordinator, for_study, known_additions
from maestro_celery_plugin.config.step_entry import is_native
from maestro_celery_plugin.errors import EnsembleError, LedgerError, StudyError
from maestro_celery_plugin.host.start import begin
from maestro_celery_plugin.maestro.native_steps import NO_REASON, NativeJob, NativeSteps
from maestro_celery_plugin.maestro.notification import Notifications, notifications_of
from maestro_celery_plugin.maestro.status_keeper import keep_status
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.samples.table import SampleTable
from maestro_celery_plugin.states import MAESTRO_STATES
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.manifest_builder import build_manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.reasons import store_refusal
from maestro_celery_plugin.study.sample_commands import add_to_path
from maestro_celery_plugin.study.session import SESSION_VARIABLE, STUDY_VARIABLE, Session
from maestro_celery_plugin.worker.sample_directory import SampleDirectories

__all__ = ["EXTENSION", "StudyAdapter"]

LOGGER = logging.getLogger(__name__)

# The extension of script files.
EXTENSION = ".sh"
# Seconds before each further attempt to submit a step record after an error of the file system.
_SUBMIT_DELAYS_S = (1.0, 2.0, 4.0)
# Text for a step record of the workers, a `NativeJob` for a native step.
Job: TypeAlias = Any


class StudyAdapter:
    """The methods of Maestro's adapter for one study.

    Args:
        batch: Maestro's batch dictionary, with the plan of the study.
    """

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._plan = StudyPlan.from_batch(batch)
        if self._plan.session.exists():  # native steps inherit them
            variables = {SESSION_VARIABLE: str(self._plan.session), STUDY_VARIABLE: str(self._plan.root)}
            os.environ.update(variables)
            add_to_path(self._plan.session)
        self._native_steps = NativeSteps(self._plan)
        self._manifests: dict[str, Manifest] = {}

    @property
    def _coordinator(self) -> Coordinator:
        coordinator = for_study(self._plan)
        self._notifications.watch(coordinator)
        keep_status(coordinator)
        return coordinator

    @property
    def _notifications(self) -> Notifications:
        return notifications_of(self._plan)

    def write_script(self, ws_path: str, step: Any) -> tuple[bool, str, str | None]:
        """Write the scripts of a step record; in a dry run also the script of its first sample.

        Returns:
            True for a step record of the workers, its script, and its restart script, which always exists because
            Maestro does not restart a step without one (executiongraph.py:819). For a native step, the result of
            Maestro's own adapter.
        """
        with _end_conductor_on_errors(self._plan):
            if is_native(step.run):
                self._begin_host()
                return self._native_steps.write_script(ws_path, step, dry_run=self._is_dry_run)
            return self._write_script(ws_path, step)

    def _write_script(self, ws_path: str, step: Any) -> tuple[bool, str, str | None]:
        script = Path(ws_path, f"{step.name.replace('/', '_')}{EXTENSION}")
        try:
            manifest = self._manifest(step, ws_path)
        except EnsembleError as error:  # an error here would end the conductor; `submit` reports it and fails the step
            script.write_text(f"# {error}\n")
            return True, str(script), ""
        # The sample of an earlier conductor may still run this script, which its shell reads line by line. The worker
        # writes it again before the next attempt.
        may_run = not manifest.sampled or manifest.paths.of(0) == "."
        restart = script
        if manifest.restart != manifest.cmd:
            restart = script.with_name(f"{manifest.script}.restart{EXTENSION}")
        for path, text in {script: manifest.cmd, restart: manifest.restart}.items():
            if not (may_run and path.exists()):
                path.write_text(f"#!{manifest.shell}\n\n{text}\n")
        if manifest.sampled and self._is_dry_run:
            self._write_first_sample(manifest)
        return True, str(script), str(restart)

    def _write_first_sample(self, manifest: Manifest) -> None:
        """Write the script of the first sample, which a user can read after a dry run."""
        directories = SampleDirectories(manifest, self._table.row)
        Path(directories.path(0)).mkdir(parents=True, exist_ok=True)
        directories.write_script(0, restart=False)

    @functools.cached_property
    def _table(self) -> SampleTable:
        """The sample table of the study."""
        samples = self._plan.settings.samples
        return open_table(Path(str(self._plan.table)), samples.column_labels if samples else (), self._plan.info)

    def _manifest(self, step: Any, workspace: str) -> Manifest:
        """Return the manifest of a step record; Maestro submits a step record right after it has written the scripts.

        With `--usetmp`, Maestro writes the scripts to another directory than the workspace.
        """
        if step.real_name not in self._manifests:
            self._manifests[step.real_name] = build_manifest(self._plan, step, workspace, known_additions(self._plan))
        return replace(self._manifests[step.real_name], workspace=workspace)

    @property
    def _is_dry_run(self) -> bool:
        """Whether no step will start: a dry run has no session."""
        return not self._plan.session.exists()

    def submit(
        self, step: Any, path: str, cwd: str, job_map: dict[str, str] | None = None, env: dict[str, str] | None = None
    ) -> SubmissionRecord:
        """Submit a step record to the workers, or continue it after a restart."""
        notifications = self._notifications  # before the coordinator begins
        try:
            with _end_conductor_on_errors(self._plan):
                if is_native(step.run):
                    record = self._native_steps.submit(step, path, cwd, job_map=job_map, env=env)
                else:
                    record = SubmissionRecord(SubmissionCode.OK, 0, self._submit_to_workers(step, cwd))
        except EnsembleError as error:
            LOGGER.error("'%s' cannot be submitted: %s", step.real_name, error)
            self._store_refusal(step.real_name, str(error))
            notifications.note_failed([step.real_name])
            return SubmissionRecord(SubmissionCode.ERROR, 1)
        is_submitted = record.submission_code is SubmissionCode.OK
        self._store_refusal(step.real_name, None if is_submitted else NO_REASON)
        if not is_submitted:
            notifications.note_failed([step.real_name])
        return record

    def _begin_host(self) -> None:
        """Start the host of the session for studies that a native step starts, unless it runs for the workers.

        Maestro submits some native steps without this adapter (executiongraph.py:640).
        """
        if self._plan.session.exists():
            with contextlib.suppress(OSError):
                begin(Session(self._plan.session))

    def _store_refusal(self, name: str, problem: str | None) -> None:
        """Store why a step record cannot be submitted; log a failure, such as a full disk, and continue."""
        try:
            store_refusal(self._plan.refusals, name, problem)
        except OSError as error:
            LOGGER.warning("%s", error)

    def _submit_to_workers(self, step: Any, workspace: str) -> str:
        """Submit a step record to the workers; try again for some seconds, because the end of the conductor ends them.

        Raises:
            OSError: a file of the study cannot be written.
        """
        for delay_s in _SUBMIT_DELAYS_S:
            try:
                return self._coordinator.submit(self._manifest(step, workspace))
            except (OSError, LedgerError) as error:
                LOGGER.warning("'%s' is submitted again in %s s: %s", step.real_name, delay_s, error)
                clock.sleep(delay_s)
        return self._coordinator.submit(self._manifest(step, workspace))

    def check_jobs(self, joblist: list[Job]) -> tuple[JobStatusCode, dict[Job, State | None]]:
        """Return the state of each submitted step record.

        The result is never ERROR, which would end the conductor (executiongraph.py:789).
        """
        if not joblist:
            return JobStatusCode.OK, {}
        notifications = self._notifications  # before the coordinator begins
        jobs, native = _by_kind(joblist)
        states = self._states(jobs)
        if native:
            states |= self._native_states(native)
        notifications.note_failed(_record_of(job) for job, state in states.items() if state is State.FAILED)
        with contextlib.suppress(OSError):  # the next poll, or the end, notifies
            notifications.note_native()
        return (JobStatusCode.OK if states else JobStatusCode.NOJOBS), states

    def _native_states(self, jobs: list[NativeJob]) -> dict[Job, State | None]:
        try:
            return {**self._native_steps.states(jobs)}
        except (EnsembleError, OSError) as error:  # the next poll asks again; an error here would end the conductor
            LOGGER.error("The states of native steps are unknown now: %s", error)
            return {}

    def _states(self, jobs: list[str]) -> dict[Job, State | None]:
        try:
            return {job: State[MAESTRO_STATES[self._coordinator.state(job)]] for job in jobs}
        except (EnsembleError, OSError) as error:
            LOGGER.error("The states of the study cannot be read now: %s", error)
            return {}

    def cancel_jobs(self, joblist: list[Job]) -> CancellationRecord:
        """Cancel step records and their running samples."""
        jobs, native = _by_kind(joblist)
        codes: dict[Job, CancelCode] = dict.fromkeys(jobs, self._cancel(jobs))
        if native:
            codes |= dict.fromkeys(native, self._native_steps.cancel(native))
        is_accepted = CancelCode.ERROR not in codes.values()
        record = CancellationRecord(CancelCode.OK if is_accepted else CancelCode.ERROR, 0 if is_accepted else 1)
        for job, code in codes.items():
            record.add_status(job, code)
        return record

    def _cancel(self, jobs: list[str]) -> CancelCode:
        try:
            if jobs:
                self._coordinator.cancel(jobs)
        except (EnsembleError, OSError) as error:
            LOGGER.error("The study cannot be cancelled now: %s", error)
            return CancelCode.ERROR
        return CancelCode.OK


def _record_of(job: Job) -> str:
    """Return the name of the step record of a job."""
    name: str = job.rpartition("#")[0] if isinstance(job, str) else job.record
    return name


def _by_kind(jobs: Sequence[Job]) -> tuple[list[str], list[NativeJob]]:
    """Return the jobs that workers run, and the jobs of native steps."""
    return [job for job in jobs if isinstance(job, str)], [job for job in jobs if not isinstance(job, str)]


@contextmanager
def _end_conductor_on_errors(plan: StudyPlan) -> Iterator[None]:
    """End this conductor if it is not the only one, or if it cannot write the files of the study.

    Maestro would mark every step as failed, and these states are final. An interrupted study can be resumed.
    """
    try:
        yield
    except StudyError as error:
        raise SystemExit(f"error: {error}") from error
    except (OSError, LedgerError) as error:
        raise SystemExit(
            f"error: The files of the study '{plan.root}' cannot be written or read: {error}. The study is "
            f"interrupted; repair this, then continue it with `maestro-celery resume {plan.root}`."
        ) from error
