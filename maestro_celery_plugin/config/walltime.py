"""Walltimes: conversion of the text of a user to seconds, and of seconds to text."""

from __future__ import annotations

import re

__all__ = ["clock_text", "seconds_of"]

_FORM = re.compile(r"(?:(?P<days>\d+)[-:](?=\d+:\d+:\d+$))?(?:(?:(?P<hours>\d+):)?(?P<minutes>\d+):)?(?P<seconds>\d+)")


def seconds_of(walltime: str | int) -> int:
    """Return a walltime in seconds.

    A number is in seconds; YAML 1.1 reads an unquoted ``10:30:00`` as such a number (base 60). Text is
    ``SS``, ``MM:SS``, ``HH:MM:SS``, ``D:HH:MM:SS`` as in Merlin (utils.py:1017), or Slurm's ``D-HH:MM:SS``.
    Worked example: ``1:30:00`` is 1 · 3600 + 30 · 60 = 5400 s.

    Raises:
        ValueError: the text has none of these forms, or the time is zero.
    """
    found = _FORM.fullmatch(str(walltime).strip())
    if found is None:
        raise ValueError(f"found '{walltime}'; HH:MM:SS or a number of seconds is needed")
    days, hours, minutes, seconds = (int(found[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total <= 0:
        raise ValueError(f"found '{walltime}'; a time above zero is needed")
    return total


def clock_text(seconds: int) -> str:
    """Return seconds as ``HH:MM:SS``; the hours may exceed 24."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
