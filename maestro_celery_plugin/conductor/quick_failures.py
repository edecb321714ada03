"""Quick failures: the last samples of each worker that could not run or have failed early, from the ledger."""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import COORDINATOR, Entries, Kind
from maestro_celery_plugin.states import ExitCode

__all__ = ["QuickFailures"]

# Exit codes that are no failures.
_OTHER = (ExitCode.SUCCESS, ExitCode.STOP_WORKERS, ExitCode.RESTART, ExitCode.RETRY)
# An attempt that takes longer has probably done its work (`worker/health.py`).
_QUICK_US = 1_000_000
# The number of entries that are kept for each worker.
_KEPT = 10_000


class QuickFailures:
    """The quick failures of each worker since its last other result."""

    def __init__(self) -> None:
        self._runs: dict[str, Entries] = {}

    def apply(self, writer: str, entries: Entries) -> None:
        """Apply new entries of a writer, in their order."""
        kinds = entries["kind"]
        results = entries[(kinds == Kind.ENDED) | (kinds == Kind.REFUSED)]
        if not len(results) or writer == COORDINATOR:
            return
        failed = _are_failures(results)
        others = np.flatnonzero(~failed)
        if len(others):
            run = results[others[-1] + 1 :]
        else:
            run = np.concatenate([self._runs[writer], results]) if writer in self._runs else results
        self._runs[writer] = run[-_KEPT:].copy()

    def of(self, writer: str) -> list[tuple[int, int, int]]:
        """Return (number of the step record, sample, code) of the last failures of a worker in a row, oldest first."""
        run = self._runs.get(writer, ())
        return [(int(entry["record"]), int(entry["start"]), int(entry["code"])) for entry in run]


def _are_failures(results: Entries) -> np.ndarray[Any, Any]:
    quick = (results["stop"] < _QUICK_US) & ~np.isin(results["code"], _OTHER)
    mask: np.ndarray[Any, Any] = (results["kind"] == Kind.REFUSED) | quick
    return mask
