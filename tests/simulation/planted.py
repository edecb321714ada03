"""Planted faults: each breaks one rule of the product, to prove that the simulation can see it (README.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from maestro_celery_plugin.conductor import dead_workers, publisher, silence, step_record
from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.recall import Recall
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.ledger import attempt_counts
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.worker.heartbeat_limit import HeartbeatLimit
from maestro_celery_plugin.worker.range_messages import RangeMessages
from maestro_celery_plugin.worker.study_context import StudyContext

__all__ = ["PLANTED", "plant"]


def _no_claims() -> None:
    RangeMessages.claim = lambda self, task: True  # type: ignore[method-assign]


def _no_recall() -> None:
    """The coordinator sends samples again, and leaves the earlier messages valid."""

    def take_back(self: Recall, record: Any, mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        free: np.ndarray[Any, Any] = mask & ~self._records.leased(record)
        return free

    Recall.take_back = take_back  # type: ignore[method-assign]


def _no_flush() -> None:
    LedgerWriter.flush = lambda self: None  # type: ignore[method-assign]


def _no_fence() -> None:
    """A worker does not end samples that were cancelled or declared lost, and starts cancelled ones."""
    StudyContext.must_end = lambda self, record, epoch, sample: False  # type: ignore[method-assign]
    StudyContext.is_invalid = lambda self, record, epoch, sample: False  # type: ignore[method-assign]


def _no_lost() -> None:
    StepRecords._write_lost = lambda self, record, mask, external_cause: None  # type: ignore[method-assign, misc]


def _no_invalid() -> None:
    StepRecords.invalidate_attempts = lambda self, record, mask, epoch: None  # type: ignore[method-assign]


def _requests_are_losses() -> None:
    add = attempt_counts.AttemptCounts._add

    def count(self: Any, entries: Any) -> None:
        changed = entries.copy()
        changed["kind"] = attempt_counts._LOST
        changed["code"] = 0
        add(self, changed)

    attempt_counts.AttemptCounts._add = count  # type: ignore[method-assign]


def _no_heartbeat_limit() -> None:
    HeartbeatLimit.is_exceeded = property(lambda self: False)  # type: ignore[method-assign, assignment]


def _short_silence() -> None:
    dead_workers.SILENCE_LIMIT_S = silence.SILENCE_LIMIT_S = 6.0


def _no_restart() -> None:
    """Samples that have run before run `cmd` again."""
    modes = SampleStates.modes

    def without_restart(self: Any) -> Any:
        found = modes(self)
        found[found == RunMode.RESTART] = RunMode.AGAIN
        return found

    SampleStates.modes = without_restart  # type: ignore[method-assign]


def _no_poison_limit() -> None:
    attempt_counts.POISON_LIMIT = 1_000_000


def _no_suspects() -> None:
    step_record.SUSPECT_LOSSES = 1_000_000
    attempt_counts.POISON_LIMIT = 2


def _no_resend() -> None:
    """Messages that were lost are not sent again."""
    from maestro_celery_plugin.conductor import redelivery

    redelivery.RESEND_DELAY_S = math.inf


def _finished_may_change() -> None:
    """The last attempt decides, even after a success."""
    decide = SampleStates._decide

    def change(self: Any, samples: Any) -> None:
        finished = self._finished.copy()
        if len(self._failed):
            later = self._failed >> np.uint64(3) >= self._finished >> np.uint32(1)
            self._finished[later] = 0
        decide(self, samples)
        self._finished = finished

    SampleStates._decide = change  # type: ignore[method-assign]


def _sends_leased() -> None:
    """The coordinator counts the samples of live workers as unassigned."""
    StepRecords.leased = lambda self, record: np.zeros(record.manifest.samples, bool)  # type: ignore[method-assign]


PLANTED: dict[str, Callable[[], None]] = {
    "no claims": _no_claims,
    "no recall": _no_recall,
    "no flush": _no_flush,
    "no fence": _no_fence,
    "no lost": _no_lost,
    "no invalid": _no_invalid,
    "requests are losses": _requests_are_losses,
    "no heartbeat limit": _no_heartbeat_limit,
    "short silence": _short_silence,
    "no restart": _no_restart,
    "no poison limit": _no_poison_limit,
    "no suspects": _no_suspects,
    "no resend": _no_resend,
    "finished may change": _finished_may_change,
    "sends leased": _sends_leased,
}


def plant(name: str) -> None:
    """Break the product of this process."""
    PLANTED[name]()


_ = (publisher, Publisher)
