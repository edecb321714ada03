"""What a dead conductor has left of the native steps: their batch jobs, and scripts that still run."""

from __future__ import annotations

from collections.abc import Container, Iterator
from urllib.parse import unquote

from maestro_celery_plugin.conductor.batch_jobs import BatchJobs
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.maestro.cancel_report import CancelReport
from maestro_celery_plugin.maestro.native_step_state import NativeStepState, state_path
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["NativeOrphans"]


class NativeOrphans:
    """The batch jobs and running scripts of the native steps of a study without a conductor.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._system = batch_system(plan.settings.batch.type)

    def cancel(self, report: CancelReport, records: Container[str] | None = None) -> None:
        """Cancel the batch jobs; report each job, and what cannot be cancelled.

        Args:
            report: The report.
            records: The step records whose jobs are cancelled; None for all.
        """
        for record, state in self._states():
            if records is not None and record not in records:
                continue
            with report.part(f"The script or the batch job of '{record}' may still run"):
                self._end(record, state, report)

    def _end(self, record: str, state: NativeStepState, report: CancelReport) -> None:
        if state.is_running_here:
            report.add_left(f"The script of '{record}' still runs; `pgrep -f {state.path}/run.sh` shows its process.")
        elif state.is_interrupted:
            report.add_left(
                f"The submission of '{record}' was interrupted; look for its job in the queue, and cancel it."
            )
        elif not state.has_finished and state.read_job() is not None:
            self._cancel(record, state, report)

    def _states(self) -> Iterator[tuple[str, NativeStepState]]:
        for path in sorted(self._plan.native.glob("*")):
            yield unquote(path.name), NativeStepState(path)

    def _cancel(self, record: str, state: NativeStepState, report: CancelReport) -> None:
        job, system = str(state.read_job()), self._system
        if system is None:
            return
        try:
            if not system.reports([job])[job].is_in_queue:
                return
            BatchJobs(system, self._plan.settings.batch).cancel(job, state.directory)
        except AllocationError as error:
            report.add_left(f"Job {job} of '{record}' may still run: {error}")
        else:
            report.add(f"Job {job} of '{record}' is cancelled.")

    def may_run(self, record: str) -> bool:
        """Tell whether a native step record still runs; True if the batch system does not say."""
        state, system = NativeStepState(state_path(self._plan.native, record)), self._system
        job = None if state.has_finished else state.read_job()
        if state.is_running_here or job is None or system is None:
            return state.is_running_here
        try:
            return system.reports([str(job)])[str(job)].state.is_open
        except AllocationError:
            return True

    def open_jobs(self) -> Iterator[str]:
        """Yield the batch jobs that are open, or that may be open because nobody can tell."""
        system = self._system
        if system is None:
            return
        for record, state in self._states():
            try:
                job = state.read_job()
                if state.is_interrupted:
                    yield f"perhaps a batch job of '{record}', whose submission was interrupted"
                elif job is not None and not state.has_finished and system.reports([str(job)])[str(job)].is_in_queue:
                    yield f"the batch job {job}"
            except (AllocationError, OSError) as error:
                yield f"perhaps a batch job of '{record}' ({error})"
