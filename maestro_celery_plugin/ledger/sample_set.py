"""A set of samples of a step record, as ranges: a hundred million samples that wait are one range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["SampleSet"]

Array = np.ndarray[Any, Any]

_END = 1 << 62


class SampleSet:
    """Samples as ranges [start, stop) in ascending order, with a gap between any two.

    Args:
        starts: The starts of the ranges.
        stops: Their stops.
    """

    def __init__(self, starts: Array, stops: Array) -> None:
        self._starts, self._stops = starts, stops

    @classmethod
    def of_range(cls, start: int, stop: int) -> SampleSet:
        """Return the samples [start, stop)."""
        return cls.of_ranges([(start, stop)])

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[int, int]]) -> SampleSet:
        """Return the samples of any ranges; they end at 2**62, also if a file claims more."""
        edges = np.array([(min(start, _END), min(stop, _END)) for start, stop in ranges], np.int64).reshape(-1, 2)
        return cls.of_edges(edges[:, 0], edges[:, 1])

    @classmethod
    def of_edges(cls, starts: Array, stops: Array) -> SampleSet:
        """Return the samples of any ranges [start, stop), from one array of each; they end at 2**62."""
        starts, stops = np.minimum(starts, _END).astype(np.int64), np.minimum(stops, _END).astype(np.int64)
        has_any = starts < stops
        starts, stops = starts[has_any], stops[has_any]
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], np.maximum.accumulate(stops[order])
        is_first = np.append(True, starts[1:] > stops[:-1]) if len(starts) else np.zeros(0, bool)
        return cls(starts[is_first], stops[np.append(is_first[1:], True)] if len(starts) else stops)

    @classmethod
    def of_samples(cls, samples: Any) -> SampleSet:
        """Return a set of these samples."""
        samples = np.unique(np.asarray(samples, np.int64))
        is_first = np.diff(samples, prepend=-2) > 1
        return cls(samples[is_first], samples[np.append(is_first[1:], True)] + 1 if len(samples) else samples)

    @classmethod
    def of_mask(cls, mask: Array, first: int = 0) -> SampleSet:
        """Return the samples in a mask, whose first element stands for the sample `first`."""
        edges = first + np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
        return cls(edges[::2], edges[1::2])

    @classmethod
    def joined(cls, sets: Sequence[SampleSet]) -> SampleSet:
        """Return the samples of at least one set."""
        return cls.of_edges(np.concatenate([one._starts for one in sets]), np.concatenate([one._stops for one in sets]))

    # --- questions ---

    def __bool__(self) -> bool:
        return len(self._starts) > 0

    def __contains__(self, sample: int) -> bool:
        return self.meets(sample, sample + 1)

    def __repr__(self) -> str:
        return f"SampleSet({self.ranges()})"

    @property
    def count(self) -> int:
        """The number of samples."""
        return int((self._stops - self._starts).sum())

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges in ascending order."""
        return list(zip(self._starts.tolist(), self._stops.tolist(), strict=True))

    @property
    def first(self) -> int:
        """The first sample."""
        return int(self._starts[0])

    @property
    def last(self) -> int:
        """The last sample."""
        return int(self._stops[-1]) - 1

    def meets(self, start: int, stop: int) -> bool:
        """Tell whether a sample of [start, stop) is in the set."""
        at = int(np.searchsorted(self._stops, start, side="right"))
        return at < len(self._starts) and int(self._starts[at]) < stop and start < stop

    def meeting(self, starts: Array, stops: Array) -> Array:
        """Return a mask of the ranges [start, stop), from one array of each, that have a sample of the set."""
        starts, stops = np.minimum(starts, _END).astype(np.int64), np.minimum(stops, _END).astype(np.int64)
        at = np.searchsorted(self._stops, starts, side="right")
        firsts = np.append(self._starts, _END)[at]
        mask: Array = (firsts < stops) & (starts < stops)
        return mask

    def samples(self) -> Array:
        """Return the samples in ascending order."""
        lengths = self._stops - self._starts
        before = np.cumsum(lengths) - lengths
        samples: Array = np.arange(self.count) + np.repeat(self._starts - before, lengths)
        return samples

    # --- other sets ---

    def __and__(self, other: SampleSet) -> SampleSet:
        few, many = (self, other) if len(self._starts) < len(other._starts) else (other, self)
        return few._combined(many._near(few), np.logical_and)

    def __or__(self, other: SampleSet) -> SampleSet:
        return self._combined(other, np.logical_or)

    def __sub__(self, other: SampleSet) -> SampleSet:
        return self._combined(other._near(self), np.greater)  # in this set, and not in the other one

    def _near(self, few: SampleSet) -> SampleSet:
        """Return this set without the ranges that meet no sample of another one, which may be much smaller."""
        first = np.searchsorted(self._stops, few._starts, side="right")
        last = np.searchsorted(self._starts, few._stops, side="left")
        # Neighbours may have a range of this set in common.
        first[1:] = np.maximum(first[1:], last[:-1])
        counts = np.maximum(last - first, 0)
        if 2 * counts.sum() > len(self._starts):
            return self
        places = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return SampleSet(self._starts[places], self._stops[places])

    def _combined(self, other: SampleSet, rule: Any) -> SampleSet:
        # `numpy.unique` takes several times as long for many edges.
        edges = np.sort(np.concatenate([self._starts, self._stops, other._starts, other._stops]))
        edges = edges[np.append(True, edges[1:] != edges[:-1])] if len(edges) else edges
        inside: Array = rule(self._covers(edges), other._covers(edges))
        before = np.append(False, inside[:-1]) if len(inside) else inside
        return SampleSet(edges[inside & ~before], edges[~inside & before])

    def _covers(self, samples: Array) -> Array:
        """Return a mask of those of these samples that are in the set."""
        begun = np.searchsorted(self._starts, samples, side="right")
        mask: Array = begun > np.searchsorted(self._stops, samples, side="right")
        return mask

    def bridged(self, others: SampleSet) -> list[tuple[int, int]]:
        """Return ranges that cover the set, joined where all samples between two of its ranges are in `others`."""
        covered = self | others
        first = np.searchsorted(self._starts, covered._starts)
        last = np.searchsorted(self._stops, covered._stops, side="right") - 1
        has_any = first <= last
        starts, stops = self._starts[first[has_any]], self._stops[last[has_any]]
        return list(zip(starts.tolist(), stops.tolist(), strict=True))
