"""Quick failures: the last samples of each worker that could not run or have failed early, from the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, Entries, Kind
from maestro_celery_plugin.states import QUICK_FAILURES, QUICK_S, is_quick_failure
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["QuickFailure", "QuickFailures"]

# The number of entries that are kept for each worker.
_KEPT = 10_000
_NO_RUN = np.empty(0, ENTRY)
# Kinds by short names: to look up a member of an enumeration takes as long as to compare a short array.
_ENDED, _NOT_RUN = int(Kind.ENDED), int(Kind.NOT_RUN)


class QuickFailure(NamedTuple):
    """A sample that could not run or has failed early: number of its step record, its index, the code, its epoch."""

    record: int
    sample: int
    code: int
    epoch: int


class QuickFailures:
    """The quick failures of each worker since its last other result, or since it was acquitted.

    While no other machine can run the samples, no comparison is possible: the worker is released. Its failures are
    kept, but do not delay the end of a step record any more. A worker that leaves because of its machine is convicted.

    Args:
        is_enabled: Whether workers may run on several machines; otherwise no comparison is possible.
    """

    def __init__(self, *, is_enabled: bool = True) -> None:
        self._is_enabled = is_enabled
        # Only workers whose last result is a quick failure: few, or none.
        self._runs: dict[str, Entries] = {}
        self._limits: dict[str, int] = {}
        self._released: set[str] = set()
        self._convicted: set[str] = set()
        # The step records of `open_records`; None after a change of any of the above.
        self._open: frozenset[int] | None = None

    def apply(self, writer: str, entries: Entries) -> None:
        """Apply new entries of a writer, in their order."""
        self.apply_all([writer], [len(entries)], entries)

    def apply_all(self, writers: Sequence[str], counts: Sequence[int], entries: Entries) -> None:
        """Apply new entries of several writers.

        Args:
            writers: The writers.
            counts: The number of entries of each of them.
            entries: The entries, in the order of the writers; those of one writer are in their order.
        """
        if not self._is_enabled:
            return
        kinds = entries["kind"]
        could_not_run = kinds == _NOT_RUN
        is_result = (kinds == _ENDED) | could_not_run
        if not is_result.any():
            return
        # A worker without failures, as most of them, has nothing to keep.
        has_failed = could_not_run | (is_result & (entries["code"] != 0))
        known = self._runs.keys() | self._released
        if not (known or has_failed.any()):
            return
        stops = np.cumsum(counts)
        failing = set(np.searchsorted(stops, np.flatnonzero(has_failed), side="right").tolist())
        for place, (writer, count, stop) in enumerate(zip(writers, counts, stops.tolist(), strict=True)):
            if writer != COORDINATOR and (place in failing or writer in known):
                part = slice(stop - count, stop)
                self._apply(writer, entries[part][is_result[part]])

    def _apply(self, writer: str, results: Entries) -> None:
        if not len(results):
            return
        self._open = None
        failed = _are_failures(results)
        others = np.flatnonzero(~failed)
        if len(others):
            run = results[others[-1] + 1 :]
            self._released.discard(writer)
        else:
            run = np.concatenate([self._runs.get(writer, _NO_RUN), results])
        if len(run):
            self._runs[writer] = run[-_KEPT:].copy()
        else:
            self._runs.pop(writer, None)

    def of(self, writer: str) -> list[QuickFailure]:
        """Return the last failures of a worker in a row, oldest first."""
        run = self._runs.get(writer, _NO_RUN)
        columns = (run[field].tolist() for field in ("record", "start", "code", "epoch"))
        return [QuickFailure(*values) for values in zip(*columns, strict=True)]

    def records_of(self, writer: str) -> list[int]:
        """Return the numbers of the step records of these failures."""
        run = self._runs.get(writer)
        return [] if run is None else np.unique(run["record"]).tolist()

    def last_epoch(self, writer: str, record: int, sample: int) -> int:
        """Return the epoch under which a worker has last failed a sample; 0 if the sample is not among its failures."""
        run = self._runs.get(writer, _NO_RUN)
        epochs = run["epoch"][(run["record"] == record) & (run["start"] == sample)]
        return int(epochs.max()) if len(epochs) else 0

    def accused(self) -> list[str]:
        """Return the workers with so many quick failures in a row that their machine may be broken."""
        return [
            writer
            for writer, run in self._runs.items()
            if len(run) >= self._limits.get(writer, QUICK_FAILURES) and not self.is_convicted(writer)
        ]

    def concerns(self, record: int) -> bool:
        """Tell whether it is open whether failed samples of a step record run again on another machine."""
        return record in self.open_records()

    def open_records(self) -> frozenset[int]:
        """Return the numbers of the step records whose failed samples may run again on another machine."""
        if self._open is None:
            undecided = [writer for writer in self.accused() if writer not in self._released]
            writers = (*undecided, *self.convicted())
            self._open = frozenset(number for writer in writers for number in self.records_of(writer))
        return self._open

    def acquit(self, writer: str) -> None:
        """Forget the failures of a worker; it is accused again after twice as many."""
        self._open = None
        self._runs.pop(writer, None)
        self._released.discard(writer)
        self._limits[writer] = 2 * self._limits.get(writer, QUICK_FAILURES)

    def postpone(self, writer: str) -> None:
        """Keep the failures of a worker about which nothing was found out; it is accused again after twice as many."""
        self._open = None
        limit = 2 * len(self._runs.get(writer, ()))
        if limit > _KEPT:
            self.acquit(writer)
        else:
            self._limits[writer] = limit

    def release(self, writer: str) -> None:
        """Let a worker continue while no comparison is possible; its failures are kept."""
        self._open = None
        self._released.add(writer)

    def is_released(self, writer: str) -> bool:
        """Tell whether a worker continues, because no comparison is possible."""
        return writer in self._released

    def try_again(self, writer: str) -> None:
        """End the release of a worker: now a comparison is possible."""
        self._open = None
        self._released.discard(writer)

    def convict(self, worker: str) -> None:
        """Accuse no process of a worker any more, because the worker leaves the study."""
        self._open = None
        self._convicted.add(worker)

    def is_convicted(self, writer: str) -> bool:
        """Tell whether a worker, or the worker of a process of its pool, leaves the study."""
        return worker_of(writer) in self._convicted

    def convicted(self) -> list[str]:
        """Return the convicted workers with failures that `forget` has not removed."""
        return [writer for writer in self._runs if self.is_convicted(writer)] if self._convicted else []

    def forget(self, writer: str, records: Iterable[int]) -> None:
        """Forget the failures of a worker in some step records."""
        self._open = None
        run = self._runs.pop(writer)
        rest = run[~np.isin(run["record"], list(records))]
        if len(rest):
            self._runs[writer] = rest


def _are_failures(results: Entries) -> np.ndarray[Any, Any]:
    """Return a mask of the samples that could not run, or for which `is_quick_failure` is true (`worker/health.py`)."""
    codes, places = np.unique(results["code"], return_inverse=True)
    has_failed = np.array([is_quick_failure(int(code), 0.0) for code in codes], bool)[places]
    is_quick = results["stop"] < QUICK_S * 1e6  # microseconds
    mask: np.ndarray[Any, Any] = (results["kind"] == _NOT_RUN) | (has_failed & is_quick)
    return mask
