"""Where the time of the slots of an allocation went."""

from __future__ import annotations

from collections.abc import Sequence

from maestro_celery_plugin.report.aggregation import WriterTotals
from maestro_celery_plugin.report.slot_use import ENDS
from maestro_celery_plugin.report.summary import SlotTime

__all__ = ["slot_time"]


def slot_time(
    writers: Sequence[WriterTotals], slots: int, began_at: float, ended_at: float, elsewhere: float = 0.0
) -> SlotTime:
    """Divide the time of all slots between the start and the end of an allocation.

    The parts add up to `slots` times the time of the allocation: two slots for 100 s are 200 s, in which samples
    ran for 150 s, for example. Clocks differ, and the end of a lost attempt is only known later: if the parts would
    be longer than the time, the lost attempts are shortened, then the time is extended.

    Args:
        writers: Its workers, and the processes of their pools.
        slots: The number of its slots.
        began_at: When it began (Unix seconds).
        ended_at: When it ended, or now.
        elsewhere: Seconds in which slots had samples of other studies; slots may have had samples of several studies
            at a time in the eyes of their clocks, so it takes the place of idle time only.
    """
    ran = {end: sum(float(writer.seconds[place]) for writer in writers) for place, end in enumerate(ENDS)}
    del ran["not_run"]  # these take no time of their own
    uses = [writer.use for writer in writers]
    overhead = sum(max(0.0, use.held_s - float(use.seconds.sum())) for use in uses)
    waiting = sum(max(0.0, use.span_s - use.held_s) for use in uses)
    rest = slots * max(0.0, ended_at - began_at) - sum(ran.values()) - overhead - waiting
    if rest < 0:
        cut = min(ran["lost"], -rest)
        ran["lost"] -= cut
        rest = 0.0
    firsts = sorted(first for use in uses for first in use.first.values())[:slots]
    lasts = sorted((last for use in uses for last in use.last.values()), reverse=True)[:slots]
    starting = min(rest, sum(max(0.0, first - began_at) for first in firsts))
    is_over = ran["running"] == 0
    ending = min(rest - starting, sum(max(0.0, ended_at - last) for last in lasts)) if is_over else 0.0
    idle = {"waiting": waiting, "ending": ending, "starting": starting, "unused": max(0.0, rest - starting - ending)}
    other_studies = min(elsewhere, sum(idle.values()))
    left = other_studies
    for name, seconds in idle.items():
        idle[name] = max(0.0, seconds - left)
        left = max(0.0, left - seconds)
    return SlotTime(**ran, **idle, overhead=overhead, other_studies=other_studies)
