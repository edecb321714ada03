"""The charts of slots: what ran and when, allocations, where the slot time went, and machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt

from maestro_celery_plugin.report.chart_parts import (
    FAILED_COLOUR,
    PARTS,
    PERCENT,
    STEP_COLOURS,
    Chart,
    colours_of,
    data,
    made,
    rectangles,
    scale,
    stacked,
    time_axis,
    tips,
)
from maestro_celery_plugin.report.summary import AllocationSummary, NodeSummary, SlotTime, Timeline
from maestro_celery_plugin.report.terminal import duration_words

__all__ = ["OTHERS", "allocations_chart", "nodes_chart", "slot_time_chart", "timeline_chart"]

_PHASES = {
    "in the queue": "#D3D7DB",
    "workers start": "#E69F00",
    "at work": "#009E73",
    "drains: slots run out of samples": "#56B4E9",
    "idle until its end": "#8F98A1",
}
OTHERS = "all other steps"
_OTHERS_COLOUR = "#8F98A1"
# Machines with their names in the chart; more names would cover each other.
_NAMED = 8

# --- what ran and when ---


def timeline_chart(timeline: Timeline) -> Chart:
    """Return the number of busy slots over time, by step."""
    totals = {step: sum(busy) for step, busy in timeline.busy.items()}
    order = sorted(totals, key=lambda step: -totals[step])
    named = order[: len(STEP_COLOURS)]
    colours = dict(zip(named, STEP_COLOURS, strict=False))
    series = {step: timeline.busy[step] for step in named}
    if len(order) > len(named):
        colours[OTHERS] = _OTHERS_COLOUR
        series[OTHERS] = tuple(map(sum, zip(*(timeline.busy[step] for step in order[len(named) :]), strict=True)))
    rows = []
    for place, slots in enumerate(zip(*series.values(), strict=True)):
        start = timeline.began_at + place * timeline.bin_s
        for step, part, low, high in stacked(series, slots):
            row = {"from": 1000 * start, "to": 1000 * (start + timeline.bin_s), "low": low, "high": high, "step": step}
            rows.append(row | {"words": f"{part:.3g}", "length": duration_words(timeline.bin_s)})
    stroke = alt.Stroke("step", type="nominal", scale=scale(colours), legend=None)
    when = alt.Tooltip("from", type="temporal", format="%F %T", title="from")
    tooltip = [*tips(step="step", words="busy slots"), when, *tips(length="in")]
    chart = rectangles(rows, time_axis("from"), "busy slots", alt.Axis(format="~r"))
    chart = chart.mark_rect(strokeWidth=0.8).encode(color=colours_of("step", colours), stroke=stroke, tooltip=tooltip)
    return made(chart, 260, colours, zoom=True)


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
    if one.slot_time.running:
        drain = last = end
    yield "workers start", one.began_at, work
    yield "at work", work, drain
    yield "drains: slots run out of samples", drain, last
    yield "idle until its end", last, end


def allocations_chart(allocations: Sequence[AllocationSummary], now: float) -> Chart | None:
    """Return the phases of allocations; None if none has begun or waits."""
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
        alt.Chart(data(rows))
        .mark_bar()
        .encode(
            x=time_axis("from"),
            x2="to",
            y=alt.Y("allocation", type="nominal", title=None, sort=None),
            color=colours_of("phase", _PHASES),
            tooltip=tips(allocation="allocation", phase="phase", length="for", state="state", slots="slots"),
        )
    )
    used = {row["phase"] for row in rows}
    legend = {phase: colour for phase, colour in _PHASES.items() if phase in used}
    return made(chart, 26 * len({row["allocation"] for row in rows}) + 10, legend, zoom=True)


# --- slots ---


def slot_time_chart(total: SlotTime, allocations: Sequence[AllocationSummary]) -> Chart | None:
    """Return where the slot time went, of all slots and by allocation; None without any."""
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
        alt.Chart(data(rows))
        .mark_bar()
        .encode(
            x=alt.X("share", type="quantitative", title="share of slot time", **PERCENT),
            y=alt.Y("bar", type="nominal", title=None, sort=None),
            color=colours_of("part", colours),
            order=alt.Order("order", type="quantitative"),
            tooltip=tips(bar="", part="part", percent="share", length="slot time"),
        )
    )
    return made(chart, 26 * len({row["bar"] for row in rows}) + 10, colours)


def nodes_chart(nodes: Sequence[NodeSummary]) -> Chart:
    """Return the machines by the durations and the failures of their attempts."""
    rows = [
        {
            "node": node.name,
            "slowness": 1.0 if node.slowness is None else node.slowness,
            "failed": (node.failed + node.not_run + node.lost) / max(1, node.attempts + node.not_run + node.lost),
            "kind": "stands out" if node.remarks else "like the others",
            "label": node.name if node.remarks and place < _NAMED else "",
            "why": "; ".join(node.remarks) or "-",
            "attempts": f"{node.attempts}, {node.failed} failed, {node.not_run} could not run, {node.lost} lost",
        }
        for place, node in enumerate(nodes)
    ]
    x_title = "duration of samples, relative to all machines"
    seen = [float(row["slowness"]) for row in rows]
    x_scale = alt.Scale(domain=[min(0.9, *seen), max(1.1, *seen)], nice=True, padding=30)
    y_scale = alt.Scale(domain=[0, max(0.05, *(float(row["failed"]) for row in rows))], nice=True)
    base = alt.Chart(data(rows)).encode(
        x=alt.X("slowness", type="quantitative", title=x_title, scale=x_scale, axis=alt.Axis(tickCount=8)),
        y=alt.Y("failed", type="quantitative", title="without success", axis=alt.Axis(format="%"), scale=y_scale),
    )
    colours = {"like the others": "#0072B2", "stands out": FAILED_COLOUR}
    shapes = alt.Scale(domain=list(colours), range=["circle", "diamond"])
    points = base.mark_point(size=90, filled=True, opacity=0.8, clip=False).encode(
        color=colours_of("kind", colours),
        shape=alt.Shape("kind", type="nominal", scale=shapes, legend=None),
        tooltip=tips(node="machine", attempts="attempts", why="why"),
    )
    labels = base.mark_text(dy=-12, color="currentColor").encode(text=alt.Text("label", type="nominal"))
    used = {row["kind"] for row in rows}
    legend = {kind: colour for kind, colour in colours.items() if kind in used}
    return made(alt.layer(points, labels), 260, legend)
