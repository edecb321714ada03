"""Priorities of steps: Maestro's words, or a number from 0 to 1, as levels of messages."""

from __future__ import annotations

__all__ = ["HIGHEST_LEVEL", "MEDIUM_LEVEL", "level_of"]

# Levels are from 0 to HIGHEST_LEVEL, of which the highest starts first. Brokers have ten priorities; the one above
# these levels is for samples that run again.
HIGHEST_LEVEL, MEDIUM_LEVEL = 8, 4
_WORDS = {"minimal": 0, "low": 2, "medium": MEDIUM_LEVEL, "high": 6, "expedited": HIGHEST_LEVEL}


def level_of(priority: str | float | None) -> int:
    """Return the level of a step's `priority`; MEDIUM_LEVEL without one.

    Worked example: 0.25 is round(0.25 · 8) = 2, as ``LOW``.

    Raises:
        ValueError: a step of the workers cannot have this priority.
    """
    if priority is None or priority == "":
        return MEDIUM_LEVEL
    word = str(priority).strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    if word == "held":
        raise ValueError("found 'HELD', but workers hold no step; use 'MINIMAL'")
    try:
        number = float(priority)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"found '{priority}'; a number from 0 to 1, or one of {', '.join(map(str.upper, _WORDS))}")
    return int(number * HIGHEST_LEVEL + 0.5)
