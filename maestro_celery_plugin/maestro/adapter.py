"""The adapter: Maestro's interface for batch systems (abstracts/interfaces/scriptadapter.py), implemented with Celery.

Maestro creates an adapter at every poll (executiongraph.py:774), so an adapter has no state; the coordinator of
the study has the state. Maestro loads this module for every command, so the implementation is in `study_adapter.py`,
which the first call imports.
"""

from __future__ import annotations

import functools
from typing import Any

from maestrowf.abstracts.interfaces import ScriptAdapter

__all__ = ["CeleryScriptAdapter"]


class CeleryScriptAdapter(ScriptAdapter):  # type: ignore[misc]
    """Runs the step records of a study on Celery workers."""

    key = "celery"

    def __init__(self, **batch: Any) -> None:
        super().__init__(shell=batch.get("shell", "/bin/bash"))
        self._batch = batch

    @property
    def extension(self) -> str:
        """The extension of script files."""
        return ".sh"

    @functools.cached_property
    def _study(self) -> Any:
        from maestro_celery_plugin.maestro.after_import import STEP_RECORD_MODULE, apply_deferred
        from maestro_celery_plugin.maestro.study_adapter import StudyAdapter

        apply_deferred(STEP_RECORD_MODULE)  # the process `conductor` has no command line of Maestro
        return StudyAdapter(self._batch)

    def _write_script(self, ws_path: str, step: Any) -> tuple[bool, str, str | None]:
        scripts: tuple[bool, str, str | None] = self._study.write_script(ws_path, step)
        return scripts

    def submit(
        self, step: Any, path: str, cwd: str, job_map: dict[str, str] | None = None, env: dict[str, str] | None = None
    ) -> Any:
        """Submit a step record, or continue it after a restart."""
        return self._study.submit(step, path, cwd, job_map=job_map, env=env)

    def check_jobs(self, joblist: list[Any]) -> Any:
        """Return the state of each submitted step record."""
        return self._study.check_jobs(joblist)

    def cancel_jobs(self, joblist: list[Any]) -> Any:
        """Cancel step records and their running samples."""
        return self._study.cancel_jobs(joblist)
