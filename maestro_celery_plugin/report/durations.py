"""The durations of samples: of the last attempt at each sample that has ended by itself.

A table and a report need all of them; other views need those of failed samples and the longest ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.ledger.sample_states import SampleStates

__all__ = ["END", "Durations", "NotableDurations"]

# Samples that are compared at once.
_BLOCK = 1 << 20
_HAS_DURATION = kind_mask(Kind.ENDED, Kind.GAVE_UP)
# The number of the longest durations of samples that finished that are kept.
_LONGEST = 1000
END = np.dtype([("sample", "<i8"), ("epoch", "<u4"), ("code", "<i4"), ("us", "<f4")])


class Durations:
    """The durations of the samples of one step record.

    Args:
        count: Number of samples.

    Attributes:
        us: The duration of each sample in microseconds; 0 for a sample without an end.
    """

    def __init__(self, count: int) -> None:
        self.us: np.ndarray[Any, Any] = np.zeros(count, np.float32)

    def grow(self, count: int) -> None:
        """Add samples up to a number of samples."""
        self.us = np.concatenate([self.us, np.zeros(count - len(self.us), np.float32)])

    def apply(self, states: SampleStates, entries: Entries) -> None:
        """Apply entries that `states` has already applied."""
        ends = entries[_HAS_DURATION[entries["kind"]] & (entries["start"] < len(self.us))]
        if len(ends):
            samples = ends["start"].astype(np.intp)
            is_last = states.is_last(samples, ends["epoch"], ends["code"])
            self.us[samples[is_last]] = ends["stop"][is_last]

    def longest(self, limit: int) -> list[int]:
        """Return the samples with the longest durations, in any order; part by part, which needs little memory."""
        best: np.ndarray[Any, Any] = np.empty(0, np.intp)
        for begin in range(0, len(self.us), _BLOCK):
            best = np.concatenate([best, np.arange(begin, min(begin + _BLOCK, len(self.us)))])
            if len(best) > limit:
                best = best[np.argpartition(self.us[best], len(best) - limit)[len(best) - limit :]]
        return [int(sample) for sample in best if self.us[sample]]


class NotableDurations:
    """The durations of the failed samples of one step record, and the longest ones.

    If a thousand of the longest attempts were not the last ones of their samples, `longest` has fewer than it could.

    Args:
        states: The states of the samples.
        ends: The ends of attempts of which the durations are known.
    """

    def __init__(self, states: SampleStates, ends: np.ndarray[Any, Any] | None = None) -> None:
        self._states = states
        self._ends = np.empty(0, END) if ends is None else ends
        self._most = 0
        self._least_us = 0.0
        self._by_sample: dict[int, float] | None = None
        self._sort_out()

    @property
    def ends(self) -> np.ndarray[Any, Any]:
        """The ends of attempts of which the durations are known."""
        if not self._is_sorted_out:
            self._sort_out()
        return self._ends

    def apply(self, entries: Entries) -> None:
        """Apply entries that the states have already applied."""
        mask = _HAS_DURATION[entries["kind"]] & (entries["start"] < len(self._states))
        mask &= (entries["code"] != 0) | (entries["stop"] > self._least_us)
        self._is_sorted_out = False
        if mask.any():
            new = np.empty(int(mask.sum()), END)
            for field, name in (("sample", "start"), ("epoch", "epoch"), ("code", "code"), ("us", "stop")):
                new[field] = entries[name][mask]
            self._ends = np.concatenate([self._ends, new])
            if len(self._ends) > self._most:
                self._sort_out()

    def _sort_out(self) -> None:
        """Keep the last ends of failed samples, and the longest ones of others."""
        ends = self._ends[self._states.is_last(self._ends["sample"], self._ends["epoch"], self._ends["code"])]
        finished = np.flatnonzero(ends["code"] == 0)
        if len(finished) > _LONGEST:
            at = len(finished) - _LONGEST
            order = np.argpartition(ends["us"][finished], at)
            self._least_us = max(self._least_us, float(ends["us"][finished[order[at]]]))
            ends = np.delete(ends, finished[order[:at]])
        self._ends, self._most = ends, 2 * len(ends) + 8 * _LONGEST
        self._is_sorted_out, self._by_sample = True, None

    def of(self, sample: int) -> float:
        """Return the duration of a failed sample, or of one of the longest, in microseconds; 0 for others."""
        ends = self.ends
        if self._by_sample is None:
            self._by_sample = dict(zip(ends["sample"].tolist(), ends["us"].tolist(), strict=True))
        return self._by_sample.get(sample, 0.0)

    def longest(self, limit: int) -> list[int]:
        """Return the samples with the longest durations, in any order."""
        ends = self.ends
        order = np.argsort(ends["us"], kind="stable")[max(0, len(ends) - limit) :]
        return [int(sample) for sample in ends["sample"][order[ends["us"][order] > 0]]]

    @property
    def longest_us(self) -> float:
        """The longest duration in microseconds; 0 without one."""
        return float(self.ends["us"].max(initial=0.0))
