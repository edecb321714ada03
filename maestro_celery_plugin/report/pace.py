"""The pace of a step record: samples per second, from the ends of its last samples.

Only the time counts in which samples ran: not the time between two allocations, or until a study was resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Pace"]

Array = np.ndarray[Any, Any]

# The rate is that of the last minute, or of the last 20 samples when fewer have ended in that minute.
RATE_WINDOW_S = 60.0
RATE_SAMPLES = 20
# The time without a sample between two samples counts up to this; it is what workers need to start the next one.
PAUSE_S = 2.0
_SHORTEST_SPAN_S = 1e-3
# New attempts are sorted when there are this many, or when a rate is needed: a view shows few of thousands of records.
_UNSORTED = 10_000


class Pace:
    """Stores the last attempts of a step record that have ended."""

    def __init__(self) -> None:
        self._ends, self._starts = np.empty(0, np.float64), np.empty(0, np.float64)
        self._writers, self._counted = np.empty(0, np.uint32), np.empty(0, bool)
        self._new: list[tuple[Array, Array, Array, Array]] = []
        self._new_count = 0

    def stored(self) -> dict[str, Array]:
        """Return the attempts as arrays, which `restore` takes."""
        if self._new:
            self._apply_new()
        return {"ends": self._ends, "starts": self._starts, "writers": self._writers, "are_counted": self._counted}

    def restore(self, stored: Mapping[str, Array]) -> None:
        """Take over attempts."""
        self._ends, self._starts = stored["ends"], stored["starts"]
        self._writers, self._counted = stored["writers"], stored["are_counted"]

    def add(self, ends: Array, durations_s: Array, writers: Array, counted: Array) -> None:
        """Store attempts that have ended.

        Args:
            ends: Times of their ends, in seconds.
            durations_s: Their durations.
            writers: Numbers of their writers.
            counted: Mask of those with which a sample has ended; others have requested another one, or were stopped.
        """
        self._new.append((ends, ends - durations_s, writers.astype(np.uint32), counted))
        self._new_count += len(ends)
        if self._new_count >= _UNSORTED:
            self._apply_new()

    def _apply_new(self) -> None:
        """Keep the last attempts of those stored and the new ones, by their ends."""
        parts = zip((self._ends, self._starts, self._writers, self._counted), *self._new, strict=True)
        all_ends, all_starts, all_writers, all_counted = map(np.concatenate, parts)
        self._new, self._new_count = [], 0
        chosen = np.flatnonzero(all_ends >= all_ends.max() - RATE_WINDOW_S)
        if np.count_nonzero(all_counted[chosen]) < RATE_SAMPLES:
            order = np.argsort(all_ends, kind="stable")
            samples = np.flatnonzero(all_counted[order])[-RATE_SAMPLES:]
            first = int(samples[0]) if len(samples) else len(order)
            chosen = order[min(first, len(order) - len(chosen)) :]
        else:  # sort few of many
            chosen = chosen[np.argsort(all_ends[chosen], kind="stable")]
        self._ends, self._counted = all_ends[chosen], all_counted[chosen]
        self._starts, self._writers = all_starts[chosen], all_writers[chosen]

    def rate(self, live: Array | None, running_since: float = np.inf) -> float | None:
        """Return samples per second in the recent past; None before the end of a sample.

        Args:
            live: Mask of the live writers by number. If a live writer has ended a sample, those of dead writers do not
                count, because they are from an earlier allocation or an earlier conductor.
            running_since: The start of the first attempt that still runs.
        """
        if self._new:
            self._apply_new()
        ends, starts, counted = self._ends, self._starts, self._counted
        if live is not None and live.any():
            mask = live[self._writers]
            ends, starts, counted = ends[mask], starts[mask], counted[mask]
        samples = ends[counted]
        if not len(samples):
            return None
        # With many samples, the time begins at the end of the first of them, when others already ran.
        is_window = len(samples) >= RATE_SAMPLES
        begin = float(samples[0] if is_window else min(starts.min(), running_since))
        span_s = float(samples[-1]) - begin - _pauses_s(starts, ends, begin, float(samples[-1]), running_since)
        return (len(samples) - is_window) / max(span_s, _SHORTEST_SPAN_S)


def _pauses_s(starts: Array, ends: Array, begin: float, end: float, running_since: float) -> float:
    """Return the seconds between `begin` and `end` that belong to a longer time without a running sample."""
    order = np.argsort(starts, kind="stable")
    busy_until = np.maximum(np.maximum.accumulate(ends[order]), begin)
    next_starts = np.minimum(np.append(starts[order][1:], end), min(end, running_since))
    gaps = next_starts - busy_until
    return float(gaps[gaps > PAUSE_S].sum())
