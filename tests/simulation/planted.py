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
from maestro_celery_plugin.ledger import attempt_rules
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.worker.fences import Fences
from maestro_celery_plugin.worker.heartbeat_limit import HeartbeatLimit
from maestro_celery_plugin.worker.range_messages import RangeMessages

__all__ = ["PLANTED", "plant"]


def _no_claims() -> None:
    RangeMessages.claim = lambda self, task: True  # type: ignore[method-assign]


def _no_recall() -> None:
    """The coordinator sends samples again, and leaves the earlier messages valid."""

    def take_back(self: Recall, record: Any, samples: SampleSet) -> SampleSet:
        return samples - self._records.leased(record)

    Recall.take_back = take_back  # type: ignore[method-assign]


def _no_flush() -> None:
    LedgerWriter.flush = lambda self: None  # type: ignore[method-assign]


def _no_fence() -> None:
    """A worker does not end samples that were cancelled or declared lost, and starts cancelled ones."""
    Fences.must_end = lambda self, record, epoch, sample: False  # type: ignore[method-assign]
    Fences.is_invalid = lambda self, record, epoch, sample: False  # type: ignore[method-assign]


def _no_lost() -> None:
    StepRecords._write_lost = lambda self, record, samples, external_cause: None  # type: ignore[method-assign, misc]


def _no_invalid() -> None:
    StepRecords.invalidate_attempts = lambda self, record, samples, epoch: None  # type: ignore[method-assign]


def _requests_are_losses() -> None:
    add = attempt_rules.add_counts

    def count(states: Any, at: Any, counted: Any) -> None:
        changed = counted.copy()
        changed["kind"] = Kind.LOST
        add(states, at, changed)

    attempt_rules.add_counts = count


def _no_heartbeat_limit() -> None:
    HeartbeatLimit.is_exceeded = property(lambda self: False)  # type: ignore[method-assign, assignment]


def _short_silence() -> None:
    dead_workers.SILENCE_LIMIT_S = silence.SILENCE_LIMIT_S = 6.0


def _no_restart() -> None:
    """Samples that have run before run `cmd` again."""
    modes = attempt_rules.modes

    def without_restart(states: Any) -> Any:
        found = modes(states)
        found[found == RunMode.RESTART] = RunMode.AGAIN
        return found

    attempt_rules.modes = without_restart


def _no_poison_limit() -> None:
    attempt_rules.POISON_LIMIT = 1_000_000


def _no_suspects() -> None:
    step_record.SUSPECT_LOSSES = 1_000_000
    attempt_rules.POISON_LIMIT = 2


def _no_resend() -> None:
    """Messages that were lost are not sent again."""
    from maestro_celery_plugin.conductor import redelivery

    redelivery.RESEND_DELAY_S = math.inf


def _finished_may_change() -> None:
    """The last attempt decides, even after a success."""
    outcomes = attempt_rules.outcomes

    def change(states: Any, max_retries: int) -> Any:
        states = states.copy()
        states["finished"][states["failed"] >> np.uint64(3) >= states["finished"] >> np.uint32(1)] = 0
        return outcomes(states, max_retries)

    attempt_rules.outcomes = change


def _sends_leased() -> None:
    """The coordinator counts the samples of live workers as unassigned."""
    StepRecords.leased = lambda self, record: SampleSet.of_samples([])  # type: ignore[method-assign]


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
