"""The parts of charts: a chart with its legend, and what the charts have in common.

Text, axes and grid have the colour `currentColor` of the page, so that they follow a dark scheme and the printer. The
colours of data are those of Okabe and Ito, and viridis, which people with any colour vision tell apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import altair as alt

__all__ = [
    "FAILED_COLOUR",
    "PARTS",
    "PERCENT",
    "STEP_COLOURS",
    "Chart",
    "Spec",
    "colours_of",
    "data",
    "made",
    "rectangles",
    "scale",
    "stacked",
    "time_axis",
    "tips",
]

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
    "other_studies": ("samples of other studies", "#332288"),
    "waiting": ("waiting for samples", "#6B7580"),
    "starting": ("before the first sample", "#8F98A1"),
    "ending": ("after the last sample", "#B2B9C0"),
    "unused": ("not used", "#D3D7DB"),
}
STEP_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
FAILED_COLOUR = "#D55E00"
PERCENT = {"axis": alt.Axis(format="%", labelOverlap=True), "scale": alt.Scale(domain=[0, 1])}
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
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12},
    "view": {"stroke": None},
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        spec: The specification of Vega-Lite with its data.
        legend: The colours by name, which the page shows: a legend of Vega does not wrap on a narrow page.
    """

    spec: Spec
    legend: dict[str, str] = dataclasses.field(default_factory=dict)


def made(chart: Any, height: float, legend: dict[str, str] | None = None, *, zoom: bool = False) -> Chart:
    """Return a chart that is as wide as the page.

    Args:
        chart: The chart of Altair.
        height: The height of its plot in pixels.
        legend: The colours by name.
        zoom: Whether the time axis can be zoomed: Ctrl and the wheel, because the wheel alone scrolls the page.
    """
    if zoom:
        wheel = "wheel![event.ctrlKey || event.metaKey]"
        chart = chart.add_params(alt.selection_interval(bind="scales", encodings=["x"], zoom=wheel))
    spec: Spec = chart.properties(width="container", height=height).to_dict()
    fit = {"config": _CONFIG, "autosize": {"type": "fit-x", "contains": "padding"}}
    return Chart(spec | fit, legend or {})


def data(rows: Iterable[Spec]) -> Any:
    """Return rows as the data of a chart."""
    return alt.Data(values=list(rows))


def time_axis(field: str) -> Any:
    """Return the encoding of Unix milliseconds in a field as the horizontal axis."""
    axis = alt.Axis(labelOverlap=True, tickCount={"expr": "max(2, width / 110)"}, labelFlush=True)
    return alt.X(field, type="temporal", title=None, axis=axis)


def colours_of(field: str, colours: dict[str, str]) -> Any:
    """Return the encoding of names in a field as colours."""
    return alt.Color(field, type="nominal", scale=scale(colours), legend=None)


def scale(colours: dict[str, str]) -> Any:
    """Return the scale of colours by name."""
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def stacked(names: Iterable[str], parts: Iterable[float]) -> Iterator[tuple[str, float, float, float]]:
    """Yield (name, part, lower edge, upper edge) of a stack, without empty parts."""
    high = 0.0
    for name, part in zip(names, parts, strict=True):
        low, high = high, high + part
        if part:
            yield name, part, low, high


def rectangles(rows: list[Spec], x: Any, title: str, axis: Any) -> Any:
    """Return a chart of rectangles: from `from` to `to`, and from `low` to `high`."""
    y = alt.Y("low", type="quantitative", title=title, axis=axis, scale=alt.Scale(domainMin=0))
    return alt.Chart(data(rows)).mark_rect().encode(x=x, x2="to", y=y, y2="high")


def tips(**titles: str) -> list[Any]:
    """Return the tooltip: the titles of fields by name."""
    return [alt.Tooltip(name, type="nominal", title=title) for name, title in titles.items()]
