"""The purge: the conductor takes the waiting samples of step records back, and they do not run until a resume.

To delete the messages at the broker would have no effect: the conductor sends the samples of lost messages again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maestro_celery_plugin.errors import StudyError, nearest
from maestro_celery_plugin.report.model import StepStatus
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import command_words
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.conductor_lock import await_start, has_conductor
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.status_csv import FINAL_STATES

__all__ = ["Purge"]

# The number of step records that a message names.
_SHOWN = 5


class Purge:
    """The waiting samples that a purge takes back.

    Args:
        directory: Directory of the study.
        names: Names of steps or step records; all steps when empty.

    Attributes:
        waiting: The number of waiting samples by step record.

    Raises:
        StudyError: the study has no such step, or no conductor.
    """

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        self._plan = plan = StudyPlan.read(directory)
        if not plan.session.exists():
            raise StudyError(f"The study '{plan.root}' was a dry run; it has no samples.")
        await_start(plan)
        reader = StatusReader(directory)
        steps = reader.read().steps
        known = {*plan.settings.steps, *(step.name for step in steps)}
        for name in names:
            if name not in known:
                raise StudyError(f"--step: the study has no step '{name}'; {nearest(name, known)}")
        if not has_conductor(plan):
            raise StudyError(
                f"The study '{plan.root}' has no conductor, so that no samples wait; "
                f"`{command_words('maestro-celery resume', plan.root)}` would run what remains, and "
                f"`{command_words('maestro cancel', plan.root)}` ends what an earlier conductor has left."
            )

        def is_named(step: StepStatus) -> bool:
            return not names or step.name in names or step.step in names

        open_steps = [step for step in steps if step.state not in FINAL_STATES and is_named(step)]
        self.waiting = {step.name: step.samples.pending for step in open_steps if step.samples.pending}

    @property
    def question(self) -> str:
        """What will happen, for a user who must agree."""
        names = ", ".join(list(self.waiting)[:_SHOWN])
        more = f" and {len(self.waiting) - _SHOWN} more step records" if len(self.waiting) > _SHOWN else ""
        count = sum(self.waiting.values())
        samples = "1 waiting sample" if count == 1 else f"{count} waiting samples"
        return (
            f"{samples} of {names}{more} will not run, nor what depends on them; running samples run to their end, and "
            f"other steps go on. `{command_words('maestro-celery resume', self._plan.root)}` runs them after the end "
            "of the study."
        )

    def apply(self) -> None:
        """Request the purge, which the conductor does within seconds.

        Raises:
            OSError: the request cannot be written.
        """
        CancelledSteps(self._plan.purged_steps).add(self.waiting)

    def to_json(self) -> dict[str, Any]:
        """Return the output of `purge --json`; scripts rely on these keys."""
        return {"study": str(self._plan.root), "purged_samples": self.waiting}
