"""The remaining work of a study: which task queues unfinished step records use.

While a step has not ended, a study with `max_samples` may get more samples, so that its sampled steps count as well.
"""

from __future__ import annotations

from collections.abc import Collection

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.additions import AdditionFile
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.status_csv import FINAL_STATES, read_rows

__all__ = ["RemainingWork"]

# Minimum interval between two reads of the states, which Maestro writes at each poll.
_INTERVAL_S = 2.0


class RemainingWork:
    """The remaining work of a study: the task queues of unfinished step records, from Maestro's ``status.csv``.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan, self._added = plan, AdditionFile(plan)
        self._queues: frozenset[str] = frozenset()
        self._read_at = float("-inf")

    def uses_any_of(self, queues: Collection[str]) -> bool:
        """Tell whether a step record that has not ended uses one of these task queues."""
        now = clock.monotonic()
        if now - self._read_at > _INTERVAL_S:
            self._read_at = now
            self._queues = self._read()
        return not self._queues.isdisjoint(queues)

    def _read(self) -> frozenset[str]:
        rows = read_rows(self._plan.root)
        # Maestro removes characters that are invalid in a path from the name of a step. If a name is not found for this
        # reason, all task queues count.
        steps = self._plan.settings.steps
        names = {row.step for row in rows if row.state not in FINAL_STATES}
        if names and self._may_grow():  # the next samples do not have to wait for another allocation
            names |= {name for name, step in steps.items() if step.sampled}
        queues_of = {name: step.queues for name, step in steps.items()}
        if not rows or not names <= set(queues_of):
            return frozenset(queue for queues in queues_of.values() for queue in queues)
        return frozenset(queue for name in names for queue in queues_of[name])

    def _may_grow(self) -> bool:
        """Whether samples may be added, as far as the specification says."""
        samples = self._plan.settings.samples
        return samples is not None and samples.max_samples is not None and self._added.total() < samples.max_samples
