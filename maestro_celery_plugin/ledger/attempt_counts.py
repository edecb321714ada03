"""How often the samples of a step record were lost with their worker, or have requested another run."""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind
from maestro_celery_plugin.states import POISON_LIMIT

__all__ = ["AttemptCounts", "advance"]

# As plain numbers (`sample_states.py`).
_ENDED, _LOST = int(Kind.ENDED), int(Kind.LOST)


def advance(epochs: np.ndarray[Any, Any], entries: Entries, mask: np.ndarray[Any, Any]) -> None:
    """Raise the epochs of samples to those of the entries in a mask."""
    np.maximum.at(epochs, entries["start"][mask].astype(np.intp), entries["epoch"][mask])


class AttemptCounts:
    """The losses and the requests of the samples of one step record.

    Most step records have none. So the arrays exist only after the first one: a study may have ten million samples.

    Args:
        count: Number of samples.

    Attributes:
        has_losses: Whether a sample was lost since it began, or since it was marked to run again.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._losses: np.ndarray[Any, Any] | None = None
        self._requests: np.ndarray[Any, Any] | None = None
        # The epoch up to which losses and requests do not count, and the entries to count again when it changes.
        self._rerun_epoch: np.ndarray[Any, Any] | None = None
        self._entries: list[Entries] = []
        self.has_losses = False

    def grow(self, count: int) -> None:
        """Add samples up to a number of samples."""
        more, self._count = count - self._count, count
        for name in ("_losses", "_requests", "_rerun_epoch"):
            counted = getattr(self, name)
            if counted is not None:
                setattr(self, name, np.concatenate([counted, np.zeros(more, np.uint32)]))

    @property
    def losses(self) -> np.ndarray[Any, Any]:
        """How often each sample ran when its worker was lost."""
        return self._zeros() if self._losses is None else self._losses

    @property
    def requests(self) -> np.ndarray[Any, Any]:
        """How often each sample has requested another run."""
        return self._zeros() if self._requests is None else self._requests

    def _zeros(self) -> np.ndarray[Any, Any]:
        return np.zeros(self._count, np.uint32)

    def add(self, entries: Entries) -> None:
        """Count entries about lost attempts and about attempts that have requested another run."""
        self._entries.append(entries)
        self._add(entries)

    def _add(self, entries: Entries) -> None:
        if self._rerun_epoch is not None:
            entries = entries[entries["epoch"] > self._rerun_epoch[entries["start"]]]
        lost = (entries["kind"] == _LOST) & (entries["code"] == 0)
        requested = entries["kind"] == _ENDED
        if lost.any():
            self._losses, self.has_losses = self.losses, True
            np.add.at(self._losses, entries["start"][lost], 1)
        if requested.any():
            self._requests = self.requests
            np.add.at(self._requests, entries["start"][requested], 1)

    @property
    def marked(self) -> np.ndarray[Any, Any]:
        """A mask of the samples that were marked to run again, at any time."""
        return self._zeros() > 0 if self._rerun_epoch is None else self._rerun_epoch > 0

    def begin_again(self, entries: Entries) -> None:
        """Forget what was counted of samples up to the epochs of these entries, under which they run again."""
        if self._rerun_epoch is None:
            self._rerun_epoch = self._zeros()
        advance(self._rerun_epoch, entries, np.ones(len(entries), bool))
        self._losses = self._requests = None
        self.has_losses = False
        for counted in self._entries:
            self._add(counted)

    def exhausted(self, samples: np.ndarray[Any, Any], max_retries: int) -> np.ndarray[Any, Any]:
        """Return a mask of those of these samples that were lost or have requested another run too often."""
        mask = np.zeros(len(samples), bool)
        if self._losses is not None:
            mask |= self._losses[samples] >= POISON_LIMIT
        if self._requests is not None:
            mask |= self._requests[samples] > max_retries
        return mask
