"""The number of busy slots over time, in a fixed number of bins."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["BINS", "BusyTimeline"]

Array = np.ndarray[Any, Any]

# Bins in memory; a timeline covers at least half of them.
BINS = 256
_SHORTEST_BIN_S = 1 / 64


class BusyTimeline:
    """Sums the busy seconds of each step in bins, whose length doubles when an interval does not fit.

    So no interval is left out, and the memory does not depend on the number of intervals.
    """

    def __init__(self) -> None:
        self._begin: float | None = None
        self._bin_s = _SHORTEST_BIN_S
        self._busy: dict[str, Array] = {}

    def add(self, step: str, starts: Array, stops: Array) -> None:
        """Add intervals [start, stop) in which a slot was busy with a step (Unix seconds)."""
        if not len(starts):
            return
        self._cover(float(starts.min()), float(stops.max()))
        at = self._edges
        seconds = np.diff(_elapsed(starts, at) - _elapsed(stops, at))
        self._busy[step] = self._busy.get(step, np.zeros(BINS)) + seconds

    @property
    def _edges(self) -> Array:
        return (self._begin or 0.0) + self._bin_s * np.arange(BINS + 1)

    def _cover(self, first: float, last: float) -> None:
        """Double the length of the bins until the interval [first, last] fits."""
        if self._begin is None:
            self._begin = first
        while first < self._begin:
            self._begin -= BINS * self._bin_s
            self._bin_s *= 2
            self._busy = {step: np.concatenate([np.zeros(BINS // 2), _paired(b)]) for step, b in self._busy.items()}
        while last > self._begin + BINS * self._bin_s:
            self._bin_s *= 2
            self._busy = {step: np.concatenate([_paired(b), np.zeros(BINS // 2)]) for step, b in self._busy.items()}

    def result(self) -> tuple[float, float, dict[str, Array]]:
        """Return the start, the length of a bin, and the mean number of busy slots by step, without empty ends."""
        used = np.flatnonzero(sum(self._busy.values(), np.zeros(BINS)) > 0)
        if self._begin is None or not len(used):
            return 0.0, self._bin_s, {}
        part = slice(int(used[0]), int(used[-1]) + 1)
        busy = {step: seconds[part] / self._bin_s for step, seconds in self._busy.items()}
        return self._begin + part.start * self._bin_s, self._bin_s, busy


def _paired(seconds: Array) -> Array:
    paired: Array = seconds.reshape(-1, 2).sum(axis=1)
    return paired


def _elapsed(times: Array, edges: Array) -> Array:
    """Return for each edge the sum of max(0, edge - time) over the times."""
    offsets = times - edges[0]  # small numbers keep their digits
    places = np.minimum(np.searchsorted(edges, times, side="left"), len(edges))
    counts = np.cumsum(np.bincount(places, minlength=len(edges) + 1)[: len(edges)])
    sums = np.cumsum(np.bincount(places, weights=offsets, minlength=len(edges) + 1)[: len(edges)])
    elapsed: Array = counts * (edges - edges[0]) - sums
    return elapsed
