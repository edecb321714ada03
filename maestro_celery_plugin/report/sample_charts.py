"""The charts of samples: durations, ends of attempts, and failures over the sample space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from maestro_celery_plugin.report.chart_parts import (
    FAILED_COLOUR,
    PARTS,
    PERCENT,
    Chart,
    Spec,
    colours_of,
    data,
    made,
    rectangles,
    stacked,
    tips,
)
from maestro_celery_plugin.report.summary import ColumnFailures, Plane, StepSummary
from maestro_celery_plugin.report.terminal import duration_words

__all__ = ["attempts_chart", "column_chart", "durations_chart", "plane_chart"]

_NOT_RUN = ("could not run", "#6B7580")


def durations_chart(step: StepSummary) -> Chart:
    """Return the distribution of the durations of a step."""
    colours = {"finished": PARTS["finished"][1], "failed": FAILED_COLOUR}
    rows = [
        {
            "from": one.start_s,
            "to": one.stop_s,
            "low": low,
            "high": high,
            "end": end,
            "range": f"{duration_words(one.start_s)} to {duration_words(one.stop_s)}",
            "count": str(count),
        }
        for one in step.durations
        for end, count, low, high in stacked(colours, (one.finished, one.failed))
    ]
    axis = alt.Axis(format="~s", labelOverlap=True, labelExpr="datum.label ? datum.label + 's' : ''")
    x = alt.X("from", type="quantitative", title="duration", scale=alt.Scale(type="log", nice=False), axis=axis)
    chart = rectangles(rows, x, "attempts", alt.Axis(tickCount=3, format="~s"))
    tooltip = tips(range="duration", end="attempts that have", count="number")
    used = {row["end"] for row in rows}
    legend = {end: colour for end, colour in colours.items() if end in used}
    return made(chart.encode(color=colours_of("end", colours), tooltip=tooltip), 110, legend)


def attempts_chart(steps: Sequence[StepSummary]) -> Chart:
    """Return how the attempts of steps have ended."""
    ends = {name: PARTS[name] for name in ("finished", "failed", "again", "interrupted", "lost", "running")}
    ends["not_run"] = _NOT_RUN
    rows = [
        {
            "step": step.name,
            "end": ends[name][0],
            "order": list(ends).index(name),
            "share": count / sum(step.attempts.values()),
            "count": f"{count} of {sum(step.attempts.values())}",
        }
        for step in steps
        for name, count in step.attempts.items()
        if count
    ]
    used = {row["end"] for row in rows}
    colours = {words: colour for words, colour in ends.values() if words in used}
    chart = (
        alt.Chart(data(rows))
        .mark_bar()
        .encode(
            x=alt.X("share", type="quantitative", title="share of attempts", **PERCENT),
            y=alt.Y("step", type="nominal", title=None, sort=None),
            color=colours_of("end", colours),
            order=alt.Order("order", type="quantitative"),
            tooltip=tips(step="step", end="attempts", count="number"),
        )
    )
    return made(chart, 26 * len(steps) + 10, colours)


def column_chart(column: ColumnFailures) -> Chart:
    """Return the share of failed samples by the values of a column."""
    axis, tooltip = alt.Axis(format="%", tickCount=4), tips(range=column.label, count="failed")
    if column.bins:
        rows = [
            {
                "from": one.start,
                "to": one.stop,
                "low": 0,
                **_share(_range(one.start, one.stop), one.samples, one.failed),
            }
            for one in column.bins
            if one.samples
        ]
        x_axis = alt.Axis(labelOverlap=True, labelFlush=True, tickCount=5)
        x = alt.X("from", type="quantitative", title=column.label, scale=_scale(is_log=column.is_log), axis=x_axis)
        chart = rectangles(rows, x, "failed", axis).encode(tooltip=tooltip, color=alt.value(FAILED_COLOUR))
    else:
        rows = [_share(one.value, one.samples, one.failed) for one in column.categories]
        x_axis = alt.Axis(labelAngle=-35 if max(len(row["range"]) for row in rows) > 3 else 0, labelLimit=90)
        chart = alt.Chart(data(rows)).mark_bar(color=FAILED_COLOUR)
        chart = chart.encode(
            x=alt.X("range", type="nominal", title=column.label, sort=None, axis=x_axis),
            y=alt.Y("high", type="quantitative", title="failed", axis=axis),
            tooltip=tooltip,
        )
    return made(chart, 150)


def _scale(*, is_log: bool) -> Any:
    """Return a scale from the smallest to the largest value."""
    return alt.Scale(type="log", nice=False) if is_log else alt.Scale(zero=False, nice=False)


def _range(start: float, stop: float) -> str:
    return f"{start:.5g} to {stop:.5g}"


def _share(words: str, samples: int, failed: int) -> Spec:
    return {"range": words, "high": failed / samples if samples else 0.0, "count": f"{failed} of {samples} samples"}


def plane_chart(plane: Plane) -> Chart:
    """Return the share of failed samples over two columns."""
    rows = [
        {
            "x": plane.x_edges[i],
            "x2": plane.x_edges[i + 1],
            "y": plane.y_edges[j],
            "y2": plane.y_edges[j + 1],
            "xs": _range(plane.x_edges[i], plane.x_edges[i + 1]),
            "ys": _range(plane.y_edges[j], plane.y_edges[j + 1]),
            **_share("", samples, failed),
        }
        for i, j, samples, failed in plane.cells
    ]
    legend = alt.Legend(format="%", title="failed", orient="right", gradientLength=200)
    chart = alt.Chart(data(rows)).mark_rect()
    chart = chart.encode(
        x=alt.X(
            "x",
            type="quantitative",
            title=plane.x,
            scale=_scale(is_log=plane.logs[0]),
            axis=alt.Axis(labelOverlap=True),
        ),
        x2="x2",
        y=alt.Y(
            "y",
            type="quantitative",
            title=plane.y,
            scale=_scale(is_log=plane.logs[1]),
            axis=alt.Axis(labelOverlap=True),
        ),
        y2="y2",
        color=alt.Color("high", type="quantitative", scale=alt.Scale(scheme="viridis", domainMin=0), legend=legend),
        tooltip=tips(xs=plane.x, ys=plane.y, count="failed"),
    )
    return made(chart, 320)
