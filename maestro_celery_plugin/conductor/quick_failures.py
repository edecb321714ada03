"""Quick failures: the last samples of each worker that could not run or have failed early, from the ledger."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, Entries, Kind
from maestro_celery_plugin.states import QUICK_FAILURES, QUICK_S, is_quick_failure

__all__ = ["QuickFailure", "QuickFailures"]

# The number of entries that are kept for each worker.
_KEPT = 10_000


class QuickFailure(NamedTuple):
    """A sample that could not run or has failed early: number of its step record, its index, the code."""

    record: int
    sample: int
    code: int


class QuickFailures:
    """The quick failures of each worker since its last other result, or since it was acquitted.

    Args:
        is_enabled: Whether workers may run on several machines; otherwise no comparison is possible.
    """

    def __init__(self, *, is_enabled: bool = True) -> None:
        self._is_enabled = is_enabled
        self._runs: dict[str, Entries] = {}
        self._limits: dict[str, int] = {}
        self._ended: set[str] = set()

    def apply(self, writer: str, entries: Entries) -> None:
        """Apply new entries of a writer, in their order."""
        if not self._is_enabled or writer == COORDINATOR or writer in self._ended:
            return
        kinds = entries["kind"]
        results = entries[(kinds == Kind.ENDED) | (kinds == Kind.NOT_RUN)]
        if not len(results):
            return
        failed = _are_failures(results)
        others = np.flatnonzero(~failed)
        if len(others):
            run = results[others[-1] + 1 :]
        else:
            run = np.concatenate([self._runs.get(writer, np.empty(0, ENTRY)), results])
        self._runs[writer] = run[-_KEPT:].copy()

    def of(self, writer: str) -> list[QuickFailure]:
        """Return the last failures of a worker in a row, oldest first."""
        run = self._runs.get(writer, ())
        return [QuickFailure(int(entry["record"]), int(entry["start"]), int(entry["code"])) for entry in run]

    def writers(self) -> list[str]:
        """Return the workers with results."""
        return list(self._runs)

    def accused(self) -> list[str]:
        """Return the workers with so many quick failures in a row that their machine may be broken."""
        return [writer for writer, run in self._runs.items() if len(run) >= self._limits.get(writer, QUICK_FAILURES)]

    def concerns(self, record: int) -> bool:
        """Tell whether an accused worker has failed samples of a step record."""
        return any((self._runs[writer]["record"] == record).any() for writer in self.accused())

    def acquit(self, writer: str) -> None:
        """Forget the failures of a worker; it is accused again after twice as many."""
        self._runs.pop(writer, None)
        self._limits[writer] = 2 * self._limits.get(writer, QUICK_FAILURES)

    def convict(self, writer: str) -> None:
        """Forget the failures of a worker that leaves the study, and all that follow."""
        self._runs.pop(writer, None)
        self._ended.add(writer)


def _are_failures(results: Entries) -> np.ndarray[Any, Any]:
    """Return a mask of the samples that could not run, or for which `is_quick_failure` is true (`worker/health.py`)."""
    codes, places = np.unique(results["code"], return_inverse=True)
    has_failed = np.array([is_quick_failure(int(code), 0.0) for code in codes], bool)[places]
    is_quick = results["stop"] < QUICK_S * 1e6  # microseconds
    mask: np.ndarray[Any, Any] = (results["kind"] == Kind.NOT_RUN) | (has_failed & is_quick)
    return mask
