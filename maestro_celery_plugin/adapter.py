"""The adapter: Maestro's contract for batch systems (abstracts/interfaces/scriptadapter.py), kept for Celery.

Maestro builds an adapter anew at every poll (executiongraph.py:774), so it holds nothing; what lasts is
the study's coordinator.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestrowf.abstracts.enums import CancelCode, JobStatusCode, State, SubmissionCode
from maestrowf.abstracts.interfaces import ScriptAdapter
from maestrowf.interfaces.script import CancellationRecord, SubmissionRecord

from maestro_celery_plugin.errors import EnsembleError, StudyError

if TYPE_CHECKING:
    from maestro_celery_plugin.coordinator import Coordinator
    from maestro_celery_plugin.manifest import Manifest
    from maestro_celery_plugin.study import StudyPlan

__all__ = ["CeleryScriptAdapter"]

LOGGER = logging.getLogger(__name__)


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
        from maestro_celery_plugin.study import StudyPlan

        return StudyPlan.from_batch(self._batch)

    @property
    def _coordinator(self) -> Coordinator:
        from maestro_celery_plugin.coordinator import for_study

        return for_study(self._plan)

    def _write_script(self, ws_path: str, step: Any) -> tuple[bool, str, str]:
        """Write the scripts of a step record; in a dry run also those of one sample.

        Returns:
            True (it is for the workers), the script and the restart script. The latter is always
            there, because Maestro restarts a step that timed out only if it has one
            (executiongraph.py:819).
        """
        from maestro_celery_plugin.staging import manifest_of, write_example

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
        from maestro_celery_plugin.staging import manifest_of

        try:
            coordinator, plan = self._coordinator, self._plan
            relative = str(Path(cwd).relative_to(plan.root))
            manifest: Manifest = manifest_of(plan, step, cwd, coordinator.number(relative))
            job = coordinator.submit(manifest, relative)
        except StudyError as error:  # another conductor has this study: leave it alone
            raise SystemExit(f"error: {error}") from error
        except (EnsembleError, OSError) as error:
            LOGGER.error("'%s' cannot be submitted: %s", step.real_name, error)
            return SubmissionRecord(SubmissionCode.ERROR, 1)
        return SubmissionRecord(SubmissionCode.OK, 0, job)

    def check_jobs(self, joblist: list[str]) -> tuple[JobStatusCode, dict[str, State]]:
        """Return the state of each submitted step record.

        Never answers ERROR, which would end the conductor (executiongraph.py:789).
        """
        from maestro_celery_plugin.states import MAESTRO_STATES

        if not joblist:
            return JobStatusCode.OK, {}
        try:
            states = {job: State[MAESTRO_STATES[self._coordinator.state(job)]] for job in joblist}
        except (EnsembleError, OSError) as error:
            LOGGER.error("The state of the study cannot be told now: %s", error)
            return JobStatusCode.NOJOBS, {}
        return JobStatusCode.OK, states

    def cancel_jobs(self, joblist: list[str]) -> CancellationRecord:
        """Cancel step records; their running samples are ended."""
        if not joblist:
            return CancellationRecord(CancelCode.OK, 0)
        try:
            self._coordinator.cancel(joblist)
        except (EnsembleError, OSError) as error:
            LOGGER.error("The study cannot be cancelled now: %s", error)
            return CancellationRecord(CancelCode.ERROR, 1)
        record = CancellationRecord(CancelCode.OK, 0)
        for job in joblist:
            record.add_status(job, CancelCode.OK)
        return record
