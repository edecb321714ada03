"""The charts of the report, made with Altair: each is a specification of Vega-Lite with its data.

Text, axes and grid have the colour `currentColor` of the page, so that they follow a dark scheme and the printer. The
colours of data are those of Okabe and Ito, and viridis, which people with any colour vision tell apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import altair as alt

from maestro_celery_plugin.report.summary import (
    AllocationSummary,
    ColumnFailures,
    NodeSummary,
    Plane,
    SlotTime,
    StepSummary,
    StudySummary,
    Timeline,
)
from maestro_celery_plugin.report.terminal import duration_words

__all__ = ["OTHERS", "PARTS", "Charts", "allocations_shown", "columns_shown", "steps_shown"]

Spec = dict[str, Any]

# The parts of slot time: what each is called, and its colour.
PARTS = {
    "finished": ("finished", "#009E73"),
    "failed": ("failed", "#D55E00"),
    "again": ("asked to run again", "#E69F00"),
    "interrupted": ("interrupted", "#CC79A7"),
    "lost": ("lost with the worker", "#F0E442"),
    "running": ("running", "#56B4E9"),
    "overhead": ("between samples of a message", "#0072B2"),
    "waiting": ("waiting for samples", "#6B7580"),
    "starting": ("before the first sample", "#8F98A1"),
    "ending": ("after the last sample", "#B2B9C0"),
    "unused": ("never used", "#D3D7DB"),
}
_NOT_RUN = ("could not run", "#6B7580")
_PHASES = {
    "in the queue": "#D3D7DB",
    "workers start": "#E69F00",
    "at work": "#009E73",
    "drains: no slot takes more": "#56B4E9",
    "idle until its end": "#8F98A1",
}
_STEP_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
OTHERS = "all other steps"
_OTHERS_COLOUR = "#8F98A1"
_FAILED_COLOUR = "#D55E00"
_PERCENT = {"axis": alt.Axis(format="%", labelOverlap=True), "scale": alt.Scale(domain=[0, 1])}
# From the smallest to the largest value.
_TIGHT = alt.Scale(zero=False, nice=False)
# What fits on a page; the tables and `--json` have the rest.
_STEPS, _ALLOCATIONS, _COLUMNS, _NODES = 12, 40, 12, 2000
_AXIS = {
    **{f"{part}Color": "currentColor" for part in ("label", "title", "grid", "domain", "tick")},
    "gridOpacity": 0.12,
    "domainOpacity": 0.4,
    "tickOpacity": 0.4,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelLimit": 180,
}
_CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": _AXIS,
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "orient": "bottom",
        "labelFontSize": 12,
        "labelLimit": 240,
        "title": None,
        "symbolType": "square",
    },
    "view": {"stroke": None},
}


@dataclasses.dataclass(frozen=True)
class Charts:
    """The charts of a study, as specifications of Vega-Lite; None where there is nothing to show.

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

    timeline: Spec | None
    allocations: Spec | None
    slot_time: Spec | None
    durations: tuple[Spec, ...]
    attempts: Spec | None
    columns: tuple[Spec, ...]
    plane: Spec | None
    nodes: Spec | None

    @classmethod
    def of(cls, summary: StudySummary) -> Charts:
        """Return the charts of a study."""
        worked = [step for step in summary.steps if any(step.attempts.values())]
        return cls(
            timeline=_timeline(summary.timeline) if summary.timeline else None,
            allocations=_allocations(allocations_shown(summary.allocations), summary.made_at),
            slot_time=_slot_time(summary.slot_time, allocations_shown(summary.allocations)),
            durations=tuple(_durations(step) for step in steps_shown(summary.steps)),
            attempts=_attempts(worked[: 3 * _STEPS]) if worked else None,
            columns=tuple(_column(column) for column in columns_shown(summary.columns)),
            plane=_plane(summary.plane) if summary.plane else None,
            nodes=_nodes(summary.nodes[:_NODES]) if summary.nodes else None,
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


def _spec(chart: Any, height: float, *, zoom: bool = False) -> Spec:
    """Return a chart as a specification, as wide as the page; Ctrl and the wheel zoom, so that the page scrolls."""
    if zoom:
        wheel = "wheel![event.ctrlKey || event.metaKey]"
        chart = chart.add_params(alt.selection_interval(bind="scales", encodings=["x"], zoom=wheel))
    made: Spec = chart.properties(width="container", height=height).to_dict()
    return made | {"config": _CONFIG, "autosize": {"type": "fit-x", "contains": "padding"}}


def _data(rows: Iterable[Spec]) -> Any:
    return alt.Data(values=list(rows))


def _time(field: str, title: str | None = None) -> Any:
    axis = alt.Axis(labelOverlap=True, tickCount={"expr": "max(2, width / 110)"}, labelFlush=True)
    return alt.X(field, type="temporal", title=title, axis=axis)


def _colours(field: str, colours: dict[str, str], columns: int = 4) -> Any:
    scale = _scale(colours)
    expr = {"expr": f"max(1, min({columns}, floor(width / 210)))"}
    return alt.Color(field, type="nominal", scale=scale, legend=alt.Legend(columns=expr))


def _scale(colours: dict[str, str]) -> Any:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def _stacked(names: Iterable[str], parts: Iterable[float]) -> Iterator[tuple[str, float, float, float]]:
    """Yield (name, part, lower edge, upper edge) of a stack, without empty parts."""
    high = 0.0
    for name, part in zip(names, parts, strict=True):
        low, high = high, high + part
        if part:
            yield name, part, low, high


def _rectangles(rows: list[Spec], x: Any, title: str, axis: Any) -> Any:
    """Return a chart of rectangles: from `from` to `to`, and from `low` to `high`."""
    y = alt.Y("low", type="quantitative", title=title, axis=axis, scale=alt.Scale(domainMin=0))
    return alt.Chart(_data(rows)).mark_rect().encode(x=x, x2="to", y=y, y2="high")


def _tips(**titles: str) -> list[Any]:
    return [alt.Tooltip(name, type="nominal", title=title) for name, title in titles.items()]


# --- what ran and when ---


def _timeline(timeline: Timeline) -> Spec:
    totals = {step: sum(busy) for step, busy in timeline.busy.items()}
    order = sorted(totals, key=lambda step: -totals[step])
    named = order[: len(_STEP_COLOURS)]
    colours = dict(zip(named, _STEP_COLOURS, strict=False))
    series = {step: timeline.busy[step] for step in named}
    if len(order) > len(named):
        colours[OTHERS] = _OTHERS_COLOUR
        series[OTHERS] = tuple(map(sum, zip(*(timeline.busy[step] for step in order[len(named) :]), strict=True)))
    rows = []
    for place, slots in enumerate(zip(*series.values(), strict=True)):
        start = timeline.began_at + place * timeline.bin_s
        for step, part, low, high in _stacked(series, slots):
            row = {"from": 1000 * start, "to": 1000 * (start + timeline.bin_s), "low": low, "high": high, "step": step}
            rows.append(row | {"words": f"{part:.3g}", "length": duration_words(timeline.bin_s)})
    stroke = alt.Stroke("step", type="nominal", scale=_scale(colours), legend=None)
    tips = _tips(step="step", words="busy slots")
    tips += [alt.Tooltip("from", type="temporal", format="%F %T", title="from"), *_tips(length="in")]
    chart = _rectangles(rows, _time("from"), "busy slots", alt.Axis(tickMinStep=1))
    chart = chart.mark_rect(strokeWidth=0.4).encode(color=_colours("step", colours), stroke=stroke, tooltip=tips)
    return _spec(chart, 260, zoom=True)


def _phases(one: AllocationSummary, now: float) -> Iterator[tuple[str, float, float]]:
    """Yield (phase, start, end) of an allocation."""
    end = one.ended_at or now
    work, drain, last = one.first_work_at, one.draining_at, one.last_work_at
    if one.submitted_at:
        yield "in the queue", one.submitted_at, one.began_at or end
    if one.began_at is None:
        return
    if work is None or drain is None or last is None:
        yield "idle until its end", one.began_at, end
        return
    last = max(last, end) if one.slot_time.running else last
    yield "workers start", one.began_at, work
    yield "at work", work, drain
    yield "drains: no slot takes more", drain, last
    yield "idle until its end", last, end


def _allocations(allocations: Sequence[AllocationSummary], now: float) -> Spec | None:
    rows = [
        {
            "allocation": one.label,
            "phase": phase,
            "from": 1000 * start,
            "to": 1000 * stop,
            "length": duration_words(stop - start),
            "state": one.state.lower().replace("_", " "),
            "slots": str(one.slots),
        }
        for one in allocations
        for phase, start, stop in _phases(one, now)
        if stop > start
    ]
    if not rows:
        return None
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            x=_time("from"),
            x2="to",
            y=alt.Y("allocation", type="nominal", title=None, sort=None),
            color=_colours("phase", _PHASES, 5),
            tooltip=_tips(allocation="allocation", phase="phase", length="for", state="state", slots="slots"),
        )
    )
    return _spec(chart, 26 * len({row["allocation"] for row in rows}) + 10, zoom=True)


# --- slots ---


def _slot_time(total: SlotTime, allocations: Sequence[AllocationSummary]) -> Spec | None:
    if not total.total:
        return None
    bars = [("all slots", total)]
    if len(allocations) > 1:
        bars += [(one.label, one.slot_time) for one in allocations if one.slot_time.total]
    rows = [
        {
            "bar": label,
            "part": PARTS[name][0],
            "order": place,
            "share": seconds / slot_time.total,
            "percent": f"{100 * seconds / slot_time.total:.3g} %",
            "length": duration_words(seconds),
        }
        for label, slot_time in bars
        for place, (name, seconds) in enumerate(slot_time.parts().items())
        if seconds
    ]
    used = {row["part"] for row in rows}
    colours = {name: colour for name, colour in PARTS.values() if name in used}
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            x=alt.X("share", type="quantitative", title="share of slot time", **_PERCENT),
            y=alt.Y("bar", type="nominal", title=None, sort=None),
            color=_colours("part", colours),
            order=alt.Order("order", type="quantitative"),
            tooltip=_tips(bar="", part="part", percent="share", length="slot time"),
        )
    )
    return _spec(chart, 26 * len({row["bar"] for row in rows}) + 10)


def _nodes(nodes: Sequence[NodeSummary]) -> Spec | None:
    rows = [
        {
            "node": node.name,
            "slowness": node.slowness or 1.0,
            "failed": (node.failed + node.not_run + node.lost) / max(1, node.attempts + node.not_run + node.lost),
            "kind": "stands out" if node.remarks else "like the others",
            "label": node.name if node.remarks else "",
            "why": "; ".join(node.remarks) or "-",
            "attempts": f"{node.attempts}, {node.failed} failed, {node.not_run} could not run, {node.lost} lost",
        }
        for node in nodes
    ]
    x_title = "duration of samples, relative to all machines"
    x_scale, y_scale = alt.Scale(zero=False, padding=30), alt.Scale(domainMin=0, padding=12)
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("slowness", type="quantitative", title=x_title, scale=x_scale, axis=alt.Axis(tickCount=8)),
        y=alt.Y("failed", type="quantitative", title="without success", axis=alt.Axis(format="%"), scale=y_scale),
    )
    colours = {"like the others": "#0072B2", "stands out": _FAILED_COLOUR}
    shapes = alt.Scale(domain=list(colours), range=["circle", "diamond"])
    points = base.mark_point(size=90, filled=True, opacity=0.8).encode(
        color=_colours("kind", colours),
        shape=alt.Shape("kind", type="nominal", scale=shapes),
        tooltip=_tips(node="machine", attempts="attempts", why="why"),
    )
    labels = base.mark_text(dy=-12, color="currentColor").encode(text=alt.Text("label", type="nominal"))
    return _spec(alt.layer(points, labels), 260)


# --- samples ---


def _durations(step: StepSummary) -> Spec:
    colours = {"finished": PARTS["finished"][1], "failed": _FAILED_COLOUR}
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
        for end, count, low, high in _stacked(colours, (one.finished, one.failed))
    ]
    axis = alt.Axis(format="~s", labelOverlap=True, labelExpr="datum.label + 's'")
    x = alt.X("from", type="quantitative", title="duration", scale=alt.Scale(type="log", nice=False), axis=axis)
    chart = _rectangles(rows, x, "attempts", alt.Axis(tickCount=3, format="~s"))
    tips = _tips(range="duration", end="attempts that have", count="number")
    return _spec(chart.encode(color=_colours("end", colours), tooltip=tips), 110)


def _attempts(steps: Sequence[StepSummary]) -> Spec:
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
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            x=alt.X("share", type="quantitative", title="share of attempts", **_PERCENT),
            y=alt.Y("step", type="nominal", title=None, sort=None),
            color=_colours("end", {words: colour for words, colour in ends.values() if words in used}),
            order=alt.Order("order", type="quantitative"),
            tooltip=_tips(step="step", end="attempts", count="number"),
        )
    )
    return _spec(chart, 26 * len(steps) + 10)


def _column(column: ColumnFailures) -> Spec:
    axis, tips = alt.Axis(format="%", tickCount=4), _tips(range=column.label, count="failed")
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
        x = alt.X("from", type="quantitative", title=column.label, scale=_TIGHT, axis=x_axis)
        chart = _rectangles(rows, x, "failed", axis).encode(tooltip=tips, color=alt.value(_FAILED_COLOUR))
    else:
        rows = [_share(one.value, one.samples, one.failed) for one in column.categories]
        x_axis = alt.Axis(labelAngle=-35 if max(len(row["range"]) for row in rows) > 3 else 0, labelLimit=90)
        chart = alt.Chart(_data(rows)).mark_bar(color=_FAILED_COLOUR)
        chart = chart.encode(
            x=alt.X("range", type="nominal", title=column.label, sort=None, axis=x_axis),
            y=alt.Y("high", type="quantitative", title="failed", axis=axis),
            tooltip=tips,
        )
    return _spec(chart, 150)


def _range(start: float, stop: float) -> str:
    return f"{start:.5g} to {stop:.5g}"


def _share(words: str, samples: int, failed: int) -> Spec:
    return {"range": words, "high": failed / samples if samples else 0.0, "count": f"{failed} of {samples} samples"}


def _plane(plane: Plane) -> Spec:
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
    chart = alt.Chart(_data(rows)).mark_rect()
    chart = chart.encode(
        x=alt.X("x", type="quantitative", title=plane.x, scale=_TIGHT, axis=alt.Axis(labelOverlap=True)),
        x2="x2",
        y=alt.Y("y", type="quantitative", title=plane.y, scale=_TIGHT),
        y2="y2",
        color=alt.Color("high", type="quantitative", scale=alt.Scale(scheme="viridis", domainMin=0), legend=legend),
        tooltip=_tips(xs=plane.x, ys=plane.y, count="failed"),
    )
    return _spec(chart, 320)
