"""Failures over the sample space: which values of the samples, and of the parameters, go with failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.report.summary import Bin, Category, ColumnFailures, Plane

__all__ = ["by_category", "by_number", "category_counts", "failure_plane"]

Array = np.ndarray[Any, Any]

BINS, PLANE_BINS, CATEGORIES = 32, 24, 20


def by_number(label: str, values: Array, samples: Array, failed: Array) -> ColumnFailures:
    """Count samples and failures by the numbers in a column.

    Args:
        label: The column label.
        values: The value of each row; NaN for one that is not a number.
        samples: How many samples with this row have an outcome: one for each step record.
        failed: How many of these have failed.
    """
    edges, is_log = _edges(values[np.isfinite(values)], BINS)
    all_counts, failed_counts = (_counts(values, edges, weights) for weights in (samples, failed))
    bins = tuple(
        Bin(start=float(start), stop=float(stop), samples=int(count), failed=int(bad))
        for start, stop, count, bad in zip(edges, edges[1:], all_counts, failed_counts, strict=False)
    )
    return ColumnFailures(
        label=label,
        bins=bins,
        sentence=_range_sentence(label, values, samples, failed),
        weight=_separation(all_counts, failed_counts),
        is_log=is_log,
    )


def by_category(label: str, counts: Mapping[str, tuple[int, int]]) -> ColumnFailures:
    """Return failures by the values of a column of text, or of a parameter.

    Args:
        label: The column label, or the name of the parameter.
        counts: By value, the number of samples with an outcome, and how many of these have failed.
    """
    order = sorted(counts, key=lambda value: (-counts[value][1], -counts[value][0], value))
    shown = sorted(order[:CATEGORIES], key=_natural) if len(order) <= CATEGORIES else order[:CATEGORIES]
    totals = np.array([counts[value] for value in order]).reshape(-1, 2)
    bad = [value for value in order if counts[value][1]]
    failed = int(totals[:, 1].sum())
    sentence = ""
    if failed and len(bad) <= 3 < len(order):
        sentence = f"All {failed} failed samples have {label} = {' or '.join(bad)}."
    return ColumnFailures(
        label=label,
        categories=tuple(Category(value=v, samples=counts[v][0], failed=counts[v][1]) for v in shown),
        others=len(order) - len(shown),
        sentence=sentence,
        weight=_separation(totals[:, 0], totals[:, 1]),
    )


def failure_plane(x: tuple[str, Array], y: tuple[str, Array], samples: Array, failed: Array) -> Plane:
    """Count samples and failures over two columns; each is (label, value of each row)."""
    found = [_edges(values[np.isfinite(values)], PLANE_BINS) for _, values in (x, y)]
    edges = [edge for edge, _ in found]
    both = np.isfinite(x[1]) & np.isfinite(y[1])
    places = [_places(values[both], edge) for (_, values), edge in zip((x, y), edges, strict=True)]
    width = len(edges[1]) - 1
    flat = places[0] * width + places[1]
    size = (len(edges[0]) - 1) * width
    counts, bad = (np.bincount(flat, weights=w[both], minlength=size).astype(int) for w in (samples, failed))
    cells = tuple((int(i) // width, int(i) % width, int(counts[i]), int(bad[i])) for i in np.flatnonzero(counts))
    return Plane(
        x=x[0],
        y=y[0],
        x_edges=tuple(edges[0].tolist()),
        y_edges=tuple(edges[1].tolist()),
        cells=cells,
        logs=(found[0][1], found[1][1]),
    )


def category_counts(values: Sequence[str], samples: Array, failed: Array) -> dict[str, tuple[int, int]]:
    """Count samples with an outcome and failed samples by value."""
    every: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for value, count, fails in zip(values, samples.tolist(), failed.tolist(), strict=True):
        every[value] += count
        bad[value] += fails
    return {value: (every[value], bad[value]) for value in every}


def _edges(values: Array, bins: int) -> tuple[Array, bool]:
    """Return the edges of bins, and whether they have equal widths on a logarithmic scale.

    They have if the values are positive and cover three factors of ten, with a tenth of them in the lower half of the
    logarithms: then they were probably drawn so.
    """
    if not len(values):
        return np.array([0.0, 1.0]), False
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low, np.nextafter(low, np.inf) if low == 0 else low + abs(low) * 1e-6]), False
    if len(values) < 4 * bins or len(np.unique(values[:10000])) <= bins:
        bins = max(1, min(bins, len(np.unique(values))))
    if low > 0 and high / low >= 1000 and (values < np.sqrt(low * high)).mean() > 0.1:
        edges = np.geomspace(low, high, bins + 1)
        edges[0], edges[-1] = low, high
        return edges, True
    return np.linspace(low, high, bins + 1), False


def _places(values: Array, edges: Array) -> Array:
    places: Array = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return places


def _counts(values: Array, edges: Array, weights: Array) -> Array:
    finite = np.isfinite(values)
    counts: Array = np.bincount(
        _places(values[finite], edges), weights=weights[finite], minlength=len(edges) - 1
    ).astype(int)
    return counts


def _separation(samples: Array, failed: Array) -> float:
    """Return how much failed samples and others differ in distribution: half the sum of differences, 0 to 1."""
    others = samples - failed
    if not failed.sum() or not others.sum():
        return 0.0
    return float(np.abs(failed / failed.sum() - others / others.sum()).sum() / 2)


def _range_sentence(label: str, values: Array, samples: Array, failed: Array) -> str:
    """Return the range of the failed samples, if few other samples are in it."""
    bad = values[(failed > 0) & np.isfinite(values)]
    others = np.isfinite(values) & (samples > failed)
    if len(bad) < 2 or not others.any():
        return ""
    low, high = float(bad.min()), float(bad.max())
    within = int(((values >= low) & (values <= high) & others).sum())
    if within > others.sum() / 2:
        return ""
    ordered = values[others]
    words = f"between {low:.6g} and {high:.6g}"
    if not (ordered > high).any():
        words = f"≥ {low:.6g}"
    elif not (ordered < low).any():
        words = f"≤ {high:.6g}"
    rest = f"{within} of {int(others.sum())} other samples have, too" if within else "no other sample has"
    return f"All {int(failed.sum())} failed samples have {label} {words}; {rest}."


def _natural(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
