"""The free slots of the live workers at one moment, by worker group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.ledger.leases import Leases
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.worker_identity import worker_of

__all__ = ["FreeSlots"]


class FreeSlots:
    """The free slots of the live workers; they are counted once, for all step records.

    Args:
        beats: The heartbeats of the live workers.
        leases: The leases of the workers.
        study: Identity of the study of the step records.
    """

    def __init__(self, beats: Iterable[Heartbeat], leases: Leases, study: str) -> None:
        self._of_group: Counter[str] = Counter()
        # Slots of workers whose remaining time is too short for the samples of a step record.
        self._without_time: Counter[tuple[str, int]] = Counter()
        beats = list(beats)
        # The main process of a worker notices this for the processes of its pool.
        disconnected = {beat.name for beat in beats if beat.state is WorkerState.DISCONNECTED}
        for beat in beats:
            if beat.state not in (WorkerState.IDLE, WorkerState.BUSY) or worker_of(beat.name) in disconnected:
                continue
            free = max(0, beat.slots - leases.count(beat.name))
            self._of_group[beat.group] += free
            for owner, number in beat.out_of_time:
                if owner == study:
                    self._without_time[beat.group, number] += free
        self._has_any = any(self._of_group.values())

    def accept(self, record: StepRecord) -> bool:
        """Tell whether a free slot accepts samples of a step record."""
        return self._has_any and any(
            self._of_group[group] > self._without_time[group, record.number] for group in record.groups
        )
