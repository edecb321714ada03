"""The adapter: Maestro's contract for batch systems (abstracts/interfaces/scriptadapter.py), kept for Celery.

Maestro builds an adapter anew at every poll (executiongraph.py:774), so it holds nothing; what lasts is
the study's coordinator. Plain steps, which Maestro runs itself, are passed on to Maestro's own adapter
(`plain_steps.py`); neither side's trouble keeps the other's states from Maestro.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode
from maestrowf.abstracts.interfaces import ScriptAdapter
from maestrowf.interfaces.script import CancellationRecord, SubmissionRecord

from maestro_celery_plugin.config.step_entry import is_plain
from maestro_celery_plugin.errors import EnsembleError, StudyError

if TYPE_CHECKING:
    from maestro_celery_plugin.conductor.coordinator import Coordinator
    from maestro_celery_plugin.maestro.native_steps import PlainJob, PlainSteps
    from maestro_celery_plugin.study.layout import StudyPlan
    from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["CeleryScriptAdapter"]

LOGGER = logging.getLogger(__name__)

# Text for a step record of the workers, a `PlainJob` for a plain step.
Job: TypeAlias = Any


class CeleryScriptAdapter(ScriptAdapter):  # type: ignore[misc]
    """Runs the step records of a study as samples on Celery workers."""

    key = "celery"

    def __init__(self, **batch: Any) -> None:
        super().__init__(shell=batch.get("shell", "/bin/bash"))
        self._batch = batch

    @property
    def extension(self) -> str:
        """The extension of script files."""
        return ".sh"

    @property
    def _plan(self) -> StudyPlan:
        from maestro_celery_plugin.study.layout import StudyPlan

        return StudyPlan.from_batch(self._batch)

    @property
    def _coordinator(self) -> Coordinator:
        from maestro_celery_plugin.conductor.coordinator import for_study

        return for_study(self._plan)

    @property
    def _plain_steps(self) -> PlainSteps:
        from maestro_celery_plugin.maestro.native_steps import PlainSteps

        return PlainSteps(self._plan)

    def _write_script(self, ws_path: str, step: Any) -> tuple[bool, str, str | None]:
        """Write the scripts of a step record; in a dry run also those of one sample.

        Returns:
            True if it is for the workers, the script and the restart script. The latter is always
            there then, because Maestro restarts a step that timed out only if it has one
            (executiongraph.py:819). Of a plain step, what Maestro's own adapter returns.
        """
        from maestro_celery_plugin.study.manifest_builder import manifest_of, write_example

        if is_plain(step.run):
            with _only_conductor():
                return self._plain_steps.write_script(ws_path, step, dry_run=self._is_dry_run)
        script = Path(ws_path, f"{step.name.replace('/', '_')}{self.extension}")
        try:
            manifest = manifest_of(self._plan, step, ws_path, number=0)
        except EnsembleError as error:  # would end the conductor; `submit` meets it again, and fails the step
            script.write_text(f"# {error}\n")
            return True, str(script), ""
        script.write_text(f"#!{manifest.shell}\n\n{manifest.cmd}\n")
        restart = script
        if manifest.restart != manifest.cmd:
            restart = script.with_name(f"{manifest.script}.restart{self.extension}")
            restart.write_text(f"#!{manifest.shell}\n\n{manifest.restart}\n")
        if manifest.sampled and self._is_dry_run:
            write_example(manifest)
        return True, str(script), str(restart)

    @property
    def _is_dry_run(self) -> bool:
        """Whether nothing will be started: a dry run makes no session."""
        return not self._plan.session.exists()

    def submit(
        self, step: Any, path: str, cwd: str, job_map: dict[str, str] | None = None, env: dict[str, str] | None = None
    ) -> SubmissionRecord:
        """Hand a step record to the workers, or go on with one after a restart."""
        from maestro_celery_plugin.study.manifest_builder import manifest_of

        try:
            with _only_conductor():
                if is_plain(step.run):
                    return self._plain_steps.submit(step, path, cwd, job_map=job_map, env=env)
                coordinator, plan = self._coordinator, self._plan
                relative = str(Path(cwd).relative_to(plan.root))
                manifest: Manifest = manifest_of(plan, step, cwd, coordinator.number(relative))
                job = coordinator.submit(manifest, relative)
        except (EnsembleError, OSError) as error:
            LOGGER.error("'%s' cannot be submitted: %s", step.real_name, error)
            return SubmissionRecord(SubmissionCode.ERROR, 1)
        return SubmissionRecord(SubmissionCode.OK, 0, job)

    def check_jobs(self, joblist: list[Job]) -> tuple[JobStatusCode, dict[Job, State | None]]:
        """Return the state of each submitted step record.

        Never answers ERROR, which would end the conductor (executiongraph.py:789).
        """
        ours, plain = _by_kind(joblist)
        states = self._states(ours)
        if plain:
            states |= self._plain_steps.states(plain)
        return (JobStatusCode.OK if states or not joblist else JobStatusCode.NOJOBS), states

    def _states(self, jobs: list[str]) -> dict[Job, State | None]:
        from maestro_celery_plugin.states import MAESTRO_STATES

        try:
            return {job: State[MAESTRO_STATES[self._coordinator.state(job)]] for job in jobs}
        except (EnsembleError, OSError) as error:
            LOGGER.error("The state of the study cannot be told now: %s", error)
            return {}

    def cancel_jobs(self, joblist: list[Job]) -> CancellationRecord:
        """Cancel step records; their running samples are ended."""
        ours, plain = _by_kind(joblist)
        codes: dict[Job, CancelCode] = dict.fromkeys(ours, self._cancel(ours))
        if plain:
            codes |= dict.fromkeys(plain, self._plain_steps.cancel(plain))
        is_done = CancelCode.ERROR not in codes.values()
        record = CancellationRecord(CancelCode.OK if is_done else CancelCode.ERROR, 0 if is_done else 1)
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


def _by_kind(jobs: Sequence[Job]) -> tuple[list[str], list[PlainJob]]:
    """Return the jobs of the workers' step records, and those of plain steps."""
    ours = [job for job in jobs if isinstance(job, str)]
    return ours, [job for job in jobs if not isinstance(job, str)]


@contextmanager
def _only_conductor() -> Iterator[None]:
    """End this conductor when another one has the study: it leaves everything alone."""
    try:
        yield
    except StudyError as error:
        raise SystemExit(f"error: {error}") from error
