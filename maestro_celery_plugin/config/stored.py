"""Types of values in the files of a study: they exclude what only a damaged file has, and what no caller expects."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

__all__ = ["Count", "Environment", "FileName", "ProcessFields", "Seconds", "UnixTime", "Word"]

# The integers of NumPy and SQLite have 64 bits.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# A duration, which may be infinite.
Seconds = Annotated[float, Meta(ge=0)]
# A time before the year 5138; later ones may have no local time.
UnixTime = Annotated[float, Meta(ge=0, le=1e11)]
# A text for a path, a command line or an environment, which cannot contain NUL.
Word = Annotated[str, Meta(pattern=r"^[^\0]*$")]
# The variables of an environment by name.
Environment = dict[Annotated[str, Meta(pattern=r"^[^=\0]+$")], Word]
# The name of a file in a directory that the caller chooses.
FileName = Annotated[str, Meta(pattern=r"^[^/\0.][^/\0]*$")]
# (pid, start time); the number 0 is no process, and negative numbers are groups of processes (kill(2)).
ProcessFields = tuple[Annotated[int, Meta(ge=0, le=2**31 - 1)], Count]
