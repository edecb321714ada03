"""When a step record has run, from the ledger: Maestro looks only at its polls, and may find both at one poll."""

from __future__ import annotations

import dataclasses

from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask

__all__ = ["RunTimes"]

_IS_END = kind_mask(Kind.ENDED, Kind.STOPPED, Kind.LOST, Kind.GAVE_UP)


@dataclasses.dataclass
class RunTimes:
    """The begin of the first attempt and the end of the last one, in Unix seconds of the shared clock.

    Those since Maestro's first submission in this conductor count; without any, those of earlier conductors.
    """

    _start: float | None = None
    _end: float | None = None
    _earlier: tuple[float | None, float | None] | None = None

    def submit(self) -> None:
        """Record that Maestro has submitted the step record."""
        if self._earlier is None:
            self._earlier, self._start, self._end = (self._start, self._end), None, None

    def times(self, *, has_ended: bool) -> tuple[float | None, float | None]:
        """Return the begin and the end; None for what is not known.

        Args:
            has_ended: Whether the step record has ended. Before that, it has no end, and may still begin anew.
        """
        if not has_ended:
            return self._start, None
        start, end = self._earlier or (None, None)
        return start if self._start is None else self._start, end if self._end is None else self._end

    def apply(self, entries: Entries) -> None:
        """Apply new entries of the step record."""
        kinds, times = entries["kind"], entries["time"]
        starts, ends = times[kinds == Kind.STARTED], times[_IS_END[kinds]]
        if len(starts):
            start = float(starts.min())
            self._start = start if self._start is None else min(start, self._start)
        if len(ends):
            end = float(ends.max())
            self._end = end if self._end is None else max(end, self._end)
