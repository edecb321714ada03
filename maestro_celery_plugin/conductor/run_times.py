"""When a step record has run, from the ledger: Maestro looks only at its polls, and may find both at one poll."""

from __future__ import annotations

import dataclasses
import math

from maestro_celery_plugin.ledger.entries import Kind, kind_mask

__all__ = ["IS_END", "RunTimes"]

IS_END = kind_mask(Kind.ENDED, Kind.STOPPED, Kind.LOST, Kind.GAVE_UP)
_NEVER = math.inf


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

    def include(self, start: float, end: float) -> None:
        """Include attempts that have begun or ended.

        Args:
            start: The begin of the first one; infinite if none has begun.
            end: The end of the last one; minus infinite if none has ended.
        """
        if start != _NEVER:
            self._start = start if self._start is None else min(start, self._start)
        if end != -_NEVER:
            self._end = end if self._end is None else max(end, self._end)
