"""flux.job.list: the states of jobs."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

from flux import job

_ABBREVIATIONS = {
    "SCHED": "S", "RUN": "R", "CLEANUP": "C", "COMPLETED": "CD", "FAILED": "F", "CANCELED": "CA", "TIMEOUT": "TO",
}  # fmt: skip


class JobList:
    """A list of jobs, by their identifiers."""

    def __init__(self, handle: Any, ids: Sequence[job.JobID] = ()) -> None:
        handle.check()
        self._ids = ids
        self.errors: list[str] = []

    def jobs(self) -> list[Any]:
        """Return the listed jobs; `errors` contains a message for each other job."""
        found = []
        for identifier in self._ids:
            one = job.cluster.read(int(identifier))
            if one is None:
                self.errors.append(f"JobID {identifier.f58} unknown")
            else:
                abbreviation = _ABBREVIATIONS[job.status_of(one)]
                found.append(types.SimpleNamespace(id=job.JobID(one.number), status_abbrev=abbreviation))
        return found
