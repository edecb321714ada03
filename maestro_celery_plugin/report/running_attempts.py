"""The attempts at the samples of a step record that have not ended: few, however many samples there are."""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind
from maestro_celery_plugin.ledger.sample_states import SampleStates

__all__ = ["ATTEMPT", "RunningAttempts"]

Array = np.ndarray[Any, Any]

ATTEMPT = np.dtype([("sample", "<i8"), ("epoch", "<u4"), ("writer", "<u4"), ("time", "<f8")])


class RunningAttempts:
    """The last attempts at samples of one step record, if they have not ended.

    Args:
        states: The states of the samples.
        attempts: The attempts that are known already.
    """

    def __init__(self, states: SampleStates, attempts: Array | None = None) -> None:
        self._states = states
        self._attempts = np.empty(0, ATTEMPT) if attempts is None else attempts

    @property
    def attempts(self) -> Array:
        """The attempts, as `ATTEMPT`."""
        return self._attempts

    def apply(self, entries: Entries, writers: Array) -> None:
        """Apply entries that the states have already applied; `writers` has the number of the writer of each entry."""
        begun = (entries["kind"] == Kind.STARTED) & (entries["start"] < len(self._states))
        if not begun.any() and not len(self._attempts):
            return
        new = np.empty(int(begun.sum()), ATTEMPT)
        new["sample"], new["epoch"], new["time"] = (entries[name][begun] for name in ("start", "epoch", "time"))
        new["writer"] = writers[begun]
        attempts = np.concatenate([self._attempts, new])
        # An outcome of another attempt may become invalid later, so it does not matter here.
        is_last = attempts["epoch"] == self._states.started[attempts["sample"]]
        self._attempts = attempts[is_last & (attempts["epoch"] > self._states.ended[attempts["sample"]])]

    def _running(self) -> Array:
        return self._attempts[self._states.running_of(self._attempts["sample"])]

    @property
    def samples(self) -> Array:
        """The samples that run."""
        samples: Array = self._running()["sample"]
        return samples

    @property
    def writers(self) -> Array:
        """The number of the writer of each of `samples`."""
        writers: Array = self._running()["writer"]
        return writers

    def since(self, live: Array) -> float:
        """Return when the first running attempt of a live writer has begun (Unix seconds); infinite without one.

        Args:
            live: Mask of the live writers by number.
        """
        running = self._running()
        return float(running["time"][live[running["writer"]]].min(initial=np.inf))
