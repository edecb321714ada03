"""The durations of samples: of the last attempt at each sample that has ended by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.ledger.sample_states import SampleStates

__all__ = ["Durations"]

# Samples that are compared at once.
_BLOCK = 1 << 20
_HAS_DURATION = kind_mask(Kind.ENDED, Kind.GAVE_UP)


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
