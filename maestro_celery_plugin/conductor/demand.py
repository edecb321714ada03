"""The demand for workers: which task queues step records will use that Maestro has not ended yet."""

from __future__ import annotations

import time
from collections.abc import Collection

from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.status_csv import LAST_STATES, read_rows

__all__ = ["Demand"]

# Maestro writes its states at each poll; there is no use in reading them more often than this.
_INTERVAL_S = 2.0


class Demand:
    """What is still to come of a study, from Maestro's ``status.csv``.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._queues: frozenset[str] = frozenset()
        self._read_at = float("-inf")

    def for_queues(self, queues: Collection[str]) -> bool:
        """Tell whether a step record that has not ended uses one of these task queues."""
        now = time.monotonic()
        if now - self._read_at > _INTERVAL_S:
            self._read_at = now
            self._queues = self._read()
        return not self._queues.isdisjoint(queues)

    def _read(self) -> frozenset[str]:
        rows = read_rows(self._plan.root)
        # Maestro strips from a step's name what is no good in a path; then all task queues count.
        steps = self._plan.settings.steps
        names = {row.step for row in rows if row.state not in LAST_STATES}
        known = {name: facts.queues for name, facts in steps.items()}
        if not rows or not names <= set(known):
            return frozenset(queue for queues in known.values() for queue in queues)
        return frozenset(queue for name in names for queue in known[name])
