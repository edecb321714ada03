"""The usage of allocations: the slot time of finished attempts and of interrupted attempts."""

from __future__ import annotations

from collections import defaultdict

from maestro_celery_plugin.config.groups import allocation_name
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.ledger.entries import Entries, Kind
from maestro_celery_plugin.study.worker_identity import stem_of, worker_of

__all__ = ["AllocationUsage"]


class AllocationUsage:
    """Sums the time of attempts in each allocation, from the ledger.

    Args:
        settings: The settings of the study, for the names of worker groups.
    """

    def __init__(self, settings: EnsembleSettings) -> None:
        groups = settings.resources.workers.items()
        self._names = {stem_of(name): allocation_name(name, group) for name, group in groups}
        self._ended_s: dict[str, float] = defaultdict(float)
        self._interrupted_s: dict[str, float] = defaultdict(float)

    def add(self, writer: str, entries: Entries) -> None:
        """Apply new entries of a worker: ``sim-2-1`` is a worker of the group `sim` in its second allocation."""
        stem, _, number = worker_of(writer).rpartition("-")[0].rpartition("-")
        if stem in self._names and number.isdigit():
            label = f"{self._names[stem]}/{number}"
            self._ended_s[label] += _seconds(entries, Kind.ENDED)
            self._interrupted_s[label] += _seconds(entries, Kind.STOPPED)

    def stored(self) -> list[dict[str, float]]:
        """Return the sums, which `restore` takes."""
        return [dict(self._ended_s), dict(self._interrupted_s)]

    def restore(self, stored: list[dict[str, float]]) -> None:
        """Take over sums."""
        ended_s, interrupted_s = stored
        self._ended_s.update(ended_s)
        self._interrupted_s.update(interrupted_s)

    def ended_s(self, label: str) -> float:
        """Return the seconds of attempts that have ended by themselves, summed over the slots of an allocation."""
        return self._ended_s[label]

    def interrupted_s(self, label: str) -> float:
        """Return the seconds of attempts that a worker has interrupted, summed over the slots of an allocation."""
        return self._interrupted_s[label]


def _seconds(entries: Entries, kind: Kind) -> float:
    return int(entries["stop"][entries["kind"] == kind].sum()) / 1e6
