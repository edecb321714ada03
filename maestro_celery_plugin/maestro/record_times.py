"""Maestro's step records: their times in ``status.csv``, of samples instead of polls, and whether they may restart."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from maestrowf.utils import round_datetime_seconds

from maestro_celery_plugin.conductor.coordinator import Coordinator

__all__ = ["set_times"]


def set_times(record: Any, coordinators: Iterable[Coordinator]) -> None:
    """Set the times of one of Maestro's step records that workers run.

    A step record that an earlier conductor has finished has its times of then, so it was submitted then, too.

    Args:
        record: Maestro's step record, which has just got a new state.
        coordinators: The coordinators of this process.
    """
    for coordinator in coordinators:
        coordinator.set_restarts(record.jobid[-1], functools.partial(_may_restart, record))
        start, end = (_local(seconds) for seconds in coordinator.run_times(record.jobid[-1]))
        if start is not None:
            record._start_time = start
            record._submit_time = min(start, record._submit_time or start)
        if end is not None and record._end_time is not None:
            record._end_time = max(end, record._start_time or end)


def _may_restart(record: Any) -> bool:
    """Tell whether Maestro restarts a step record at its next time-out (executiongraph.py:205)."""
    return bool(record.restart_limit == 0 or record.restarts < record.restart_limit)


def _local(seconds: float | None) -> datetime | None:
    """Return a time as Maestro stores it."""
    if seconds is None:
        return None
    time: datetime = round_datetime_seconds(datetime.fromtimestamp(seconds))
    return time
