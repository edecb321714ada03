"""The manifest builder: it creates the manifest of a step record from a Maestro step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.priority import level_of
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.step_entry import STEP_KEY, step_settings
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.config.walltime import seconds_of
from maestro_celery_plugin.errors import AllocationError, SpecificationError
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.samples.token_values import study_values
from maestro_celery_plugin.spec.launcher import batch_type_of, launches, needs_of, shell_of, with_launcher
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["build_manifest"]


def build_manifest(plan: StudyPlan, step: Any, workspace: str, added: int = 0) -> Manifest:
    """Return the manifest of a step record.

    Args:
        plan: The study.
        step: Maestro's `StudyStep`, with the values of variables and parameters inserted.
        workspace: Maestro's workspace of the step record.
        added: Number of samples that were added since the launch.

    Returns:
        The manifest with the number 0; the coordinator numbers step records.

    Raises:
        SpecificationError: a sample cannot be launched with the resources of the step.
    """
    entry, settings = step.run[STEP_KEY], step_settings(step.run)
    sampled, samples = bool(entry["sampled"]), plan.rows + added
    scripts = _Scripts(plan, step, samples)
    return Manifest(
        number=0,
        name=step.real_name,
        step=entry["step"],
        workspace=workspace,
        script=step.name.replace("/", "_"),
        cmd=scripts.text("cmd"),
        restart=scripts.text("restart"),
        shell=scripts.shell,
        sampled=sampled,
        samples=samples if sampled else 1,
        launched=plan.rows if sampled else 1,
        planned=plan.hierarchy if sampled else 1,
        labels=list(plan.column_labels) if sampled else [],
        table=str(plan.table) if sampled else None,
        index_cache=str(plan.info),
        level_max_dirs=plan.level_max_dirs,
        task_queue=settings.task_queue,
        priority=_priority(step),
        max_retries=settings.max_retries,
        retry_delay_s=settings.retry_delay,
        finished_marker=plan.settings.finished_markers,
        max_failures=_max_failures(settings.max_failures, samples if sampled else 1),
        time_request_s=_time_request(step, settings.time_request),
        signal=settings.signal,
        needs=scripts.needs,
        launches=scripts.launch,
        study_id=plan.id,
    )


def _max_failures(limit: int | str | None, samples: int) -> int | None:
    """Return how many samples may fail: ``5%`` of 30 samples is 1."""
    if isinstance(limit, str):
        return int(samples * Fraction(limit.removesuffix("%")) / 100)
    return limit


def _priority(step: Any) -> int:
    """Return the level of the messages of a step record.

    Raises:
        SpecificationError: the priority is invalid.
    """
    try:
        return level_of(step.run.get("priority"))
    except ValueError as cause:
        raise SpecificationError(f"study.{step.name}.run.priority: {cause}.") from cause


def _time_request(step: Any, text: str | int | None) -> int | None:
    """Return the requested time of a sample in seconds.

    Raises:
        SpecificationError: the text is not a time.
    """
    try:
        return None if text is None else seconds_of(text)
    except ValueError as cause:
        raise SpecificationError(f"study.{step.name}.run.time_request: {cause}.") from cause


class _Scripts:
    """The scripts of a step record, and the resources of a sample that runs them."""

    def __init__(self, plan: StudyPlan, step: Any, samples: int) -> None:
        self._plan, self._run = plan, step.run
        self._paths = SamplePaths(samples, plan.level_max_dirs, plan.hierarchy)
        settings = step_settings(step.run)
        self._type = batch_type_of(plan.settings, settings)
        self.shell = shell_of(plan.settings, settings)

    @property
    def launch(self) -> bool:
        """Whether the scripts start parallel programs with a launcher."""
        return self._type != LOCAL and any(launches(self._run[key]) for key in ("cmd", "restart"))

    @property
    def needs(self) -> StepNeeds:
        """Resources of one sample; the default for a local group, whose resources are not counted."""
        with self._errors_at("run"):
            return needs_of(self._run) if self._type != LOCAL else StepNeeds()

    def text(self, key: str) -> str:
        """Return `cmd` or `restart` with the launcher and the values of all tokens that do not depend on the sample."""
        plan = self._plan
        with self._errors_at(f"run.{key}"):
            text = with_launcher(self._run[key], self._type, self._run, self.shell)
        values = study_values(str(plan.root), plan.timestamp, plan.column_labels, self._paths, text)
        return substitute(text, {**values, **plan.specification_files})

    @contextlib.contextmanager
    def _errors_at(self, where: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, AllocationError) as cause:
            raise SpecificationError(f"study.{self._run[STEP_KEY]['step']}.{where}: {cause}") from cause
