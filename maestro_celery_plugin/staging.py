"""Staging: a Maestro step becomes the manifest of a step record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maestro_celery_plugin.manifest import Manifest
from maestro_celery_plugin.runner import Runner
from maestro_celery_plugin.sample_paths import SamplePaths
from maestro_celery_plugin.samples import open_table
from maestro_celery_plugin.steps import STEP_KEY, step_settings
from maestro_celery_plugin.study import StudyPlan
from maestro_celery_plugin.tokens import launcher_removed, study_values, substitute
from maestro_celery_plugin.walltime import seconds_of

__all__ = ["manifest_of", "write_example"]


def manifest_of(plan: StudyPlan, step: Any, workspace: str, number: int) -> Manifest:
    """Return the manifest of a step record.

    Args:
        plan: The study.
        step: Maestro's `StudyStep`, with variables and parameters put in.
        workspace: The step record's Maestro workspace.
        number: The step record's number.
    """
    entry, settings = step.run[STEP_KEY], step_settings(step.run)
    samples = plan.settings.samples
    sampled = bool(entry["sampled"])
    return Manifest(
        number=number,
        name=step.real_name,
        step=entry["step"],
        workspace=workspace,
        script=step.name.replace("/", "_"),
        cmd=_command(plan, step.run["cmd"]),
        restart=_command(plan, step.run["restart"]),
        shell=settings.shell or plan.settings.batch.shell,
        sampled=sampled,
        samples=plan.rows if sampled else 1,
        labels=list(samples.column_labels) if samples and sampled else [],
        table=str(plan.table) if sampled else None,
        index_cache=str(plan.info),
        level_max_dirs=plan.level_max_dirs,
        task_queue=settings.task_queue,
        max_retries=settings.max_retries,
        retry_delay_s=settings.retry_delay,
        time_request_s=None if settings.time_request is None else seconds_of(settings.time_request),
        signal=settings.signal,
    )


def _command(plan: StudyPlan, text: str) -> str:
    """Put in the tokens that are the same for every sample; on this machine there is nothing to launch with."""
    paths = SamplePaths(plan.rows, plan.level_max_dirs)
    return substitute(launcher_removed(text), study_values(str(plan.root), plan.timestamp, paths, text))


def write_example(manifest: Manifest) -> None:
    """Write the script of a record's first sample, for a look at it in a dry run."""
    table = open_table(Path(str(manifest.table)), manifest.labels, Path(manifest.index_cache))
    runner = Runner(manifest, table.row)
    Path(runner.directory(0)).mkdir(parents=True, exist_ok=True)
    runner.write_script(0, again=False)
