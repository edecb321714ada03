"""The charts of the report: which ones a study has, and what they show of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from maestro_celery_plugin.report.chart_parts import Chart
from maestro_celery_plugin.report.sample_charts import attempts_chart, column_chart, durations_chart, plane_chart
from maestro_celery_plugin.report.slot_charts import allocations_chart, nodes_chart, slot_time_chart, timeline_chart
from maestro_celery_plugin.report.summary import AllocationSummary, ColumnFailures, StepSummary, StudySummary

__all__ = ["Charts", "allocations_shown", "columns_shown", "steps_shown"]

# What fits on a page; the tables and `--json` have the rest.
_STEPS, _ALLOCATIONS, _COLUMNS, _NODES = 12, 40, 12, 2000


@dataclasses.dataclass(frozen=True)
class Charts:
    """The charts of a study; None where there is nothing to show.

    Attributes:
        timeline: Busy slots over time, by step.
        allocations: The phases of allocations over time.
        slot_time: Where the time of slots went, in all and by allocation.
        durations: The distribution of durations of each step.
        attempts: How attempts have ended, by step.
        columns: Failures by the values of each column.
        plane: Failures over two columns.
        nodes: The machines.
    """

    timeline: Chart | None
    allocations: Chart | None
    slot_time: Chart | None
    durations: tuple[Chart, ...]
    attempts: Chart | None
    columns: tuple[Chart, ...]
    plane: Chart | None
    nodes: Chart | None

    @classmethod
    def of(cls, summary: StudySummary) -> Charts:
        """Return the charts of a study."""
        worked = [step for step in summary.steps if any(step.attempts.values())]
        return cls(
            timeline=timeline_chart(summary.timeline) if summary.timeline else None,
            allocations=allocations_chart(allocations_shown(summary.allocations), summary.made_at),
            slot_time=slot_time_chart(summary.slot_time, allocations_shown(summary.allocations)),
            durations=tuple(durations_chart(step) for step in steps_shown(summary.steps)),
            attempts=attempts_chart(worked[: 3 * _STEPS]) if worked else None,
            columns=tuple(column_chart(column) for column in columns_shown(summary.columns)),
            plane=plane_chart(summary.plane) if summary.plane else None,
            nodes=nodes_chart(summary.nodes[:_NODES]) if summary.nodes else None,
        )


def steps_shown(steps: Iterable[StepSummary]) -> list[StepSummary]:
    """Return the steps whose durations are shown: those with most attempts, in their order."""
    worked = [step for step in steps if step.durations]
    most = sorted(worked, key=lambda step: -sum(step.attempts.values()))[:_STEPS]
    return [step for step in worked if step in most]


def allocations_shown(allocations: Sequence[AllocationSummary]) -> list[AllocationSummary]:
    """Return the allocations that are shown: those with most slot time, in their order."""
    most = sorted(allocations, key=lambda one: -one.slot_time.total)[:_ALLOCATIONS]
    return [one for one in allocations if one in most]


def columns_shown(columns: Sequence[ColumnFailures]) -> Sequence[ColumnFailures]:
    """Return the columns and parameters that are shown: those that separate failed samples best."""
    return columns[:_COLUMNS]
