"""A step record in the conductor: the samples that must still run, and the state for Maestro."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.conductor.run_times import RunTimes
from maestro_celery_plugin.ledger.entries import Entries, Kind
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.states import (
    FAULT_MACHINES,
    TRIES_PASSING,
    TRIES_PERMANENT,
    Outcome,
    RecordState,
    is_permanent,
    is_request,
)
from maestro_celery_plugin.study.failures import exceeds_limit
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["MAX_RANGES", "Faults", "StepRecord"]

# A sample that was running when its worker died is a suspect after this many deaths. The suspects of a study run one at
# a time, so that the samples that only ran in parallel with the cause can finish.
SUSPECT_LOSSES = 2
# Maximum number of ranges that are sent at one time; the remaining ranges are sent later.
MAX_RANGES = 1000
# Maximum delay before the next attempt at a sample that could not start.
START_DELAY_LIMIT_S = 60.0
_ENDED, _NOT_RUN = int(Kind.ENDED), int(Kind.NOT_RUN)


@dataclasses.dataclass
class Faults:
    """The faults of machines because of which a sample could not run.

    Attributes:
        epoch: Epoch of the last try.
        code: Code of the last fault (`states.py`).
        count: Number of tries.
        machines: Numbers of the machines.
    """

    epoch: int = 0
    code: int = 0
    count: int = 0
    machines: set[int] = dataclasses.field(default_factory=set)

    def are_final(self, live_machines: int) -> bool:
        """Tell whether no further try makes sense.

        Args:
            live_machines: Number of machines with a worker that could run the sample.
        """
        if not live_machines:  # between two allocations: a machine of the next one may be able to run the sample
            return False
        tries = TRIES_PERMANENT if is_permanent(self.code) else TRIES_PASSING
        return self.count >= tries and len(self.machines) >= min(FAULT_MACHINES, live_machines)


@dataclasses.dataclass
class StepRecord:
    """A step record that Maestro has submitted, to this conductor or to an earlier one.

    Attributes:
        manifest: The manifest of the step record.
        relative: Path of its workspace below that of the study.
        samples: The states of its samples, from the ledger.
        groups: The worker groups that serve its task queue.
        active: Whether Maestro waits for the end of the step record.
        cancelled: Whether it was cancelled.
        cancelled_at: Time of the cancellation (monotonic).
        purged: Whether a user has taken its waiting samples back; those that a worker has claimed run to their end.
        reported_state: The last state that was reported to Maestro.
        delayed: Samples that run again, with the time (monotonic) from which they may start.
        idle_since: Time (monotonic) since which a slot is free and no ledger entry has arrived; None otherwise.
        failure: Reason why no worker can run the step record; None while workers can.
        has_started: Whether a sample has started since Maestro's last submission.
        timed_out: Whether its allocations have ended since Maestro's last submission, with open samples.
        reason: How the allocations ended, or why the step record cannot run or was cancelled.
        withdrawn: Groups whose allocation has ended since Maestro's last submission while other workers continue the
            step record, with this allocation; None for a group that no worker could be started for. No allocation is
            opened for these groups before the next submission, or before the other workers have ended too.
        may_restart: Tells whether Maestro would restart the step record if it timed out.
        suspect: The only suspect that may run now; None without suspects.
        has_turn: Tells whether no other suspect of the study may run now.
        faults: Samples that workers could not run since Maestro's last submission.
        is_on_trial: Tells whether a machine may be the cause of failures, so that these are not final.
        times: When it has run.
        waits: Whether it waits for workers because those of its groups are stopped.
        repeats: Whether it runs again after the attempt that runs now, because samples were added that it depends on.
            So no sample of it starts before Maestro submits it again, not even if the attempt requests another one.
        was_loaded: Whether an earlier conductor has sent its samples, and this one has not yet.
    """

    manifest: Manifest
    relative: str
    samples: SampleStates
    groups: tuple[str, ...] = ()
    active: bool = False
    cancelled: bool = False
    cancelled_at: float | None = None
    purged: bool = False
    reported_state: RecordState = RecordState.PENDING
    delayed: dict[int, float] = dataclasses.field(default_factory=dict)
    idle_since: float | None = None
    failure: str | None = None
    has_started: bool = False
    timed_out: bool = False
    reason: str = ""
    withdrawn: dict[str, Allocation | None] = dataclasses.field(default_factory=dict)
    may_restart: Callable[[], bool] = lambda: False
    suspect: int | None = None
    has_turn: Callable[[], bool] = lambda: True
    faults: dict[int, Faults] = dataclasses.field(default_factory=dict)
    is_on_trial: Callable[[], bool] = lambda: False
    times: RunTimes = dataclasses.field(default_factory=RunTimes)
    waits: bool = False
    repeats: bool = False
    was_loaded: bool = False

    @property
    def number(self) -> int:
        """Number of the step record in messages and in the ledger."""
        return self.manifest.number

    def note(self, entries: Entries, *, has_started: bool) -> None:
        """Note new entries, which were applied to the states of the samples.

        Args:
            entries: Those about samples that have not succeeded.
            has_started: Whether an attempt has started.
        """
        self.idle_since = None
        self.has_started = self.has_started or has_started
        if not len(entries):
            return
        outcomes = self.samples.outcome
        for entry in entries[entries["kind"] == _ENDED]:
            if is_request(int(entry["code"])) and outcomes[entry["start"]] == Outcome.OPEN:
                self._delay(int(entry["start"]), int(entry["code"]))
        for entry in entries[entries["kind"] == _NOT_RUN]:
            if outcomes[entry["start"]] == Outcome.OPEN:
                self._add_fault(entry)

    def _add_fault(self, entry: Any) -> None:
        sample = int(entry["start"])
        faults = self.faults.setdefault(sample, Faults())
        faults.epoch, faults.code, faults.count = int(entry["epoch"]), int(entry["code"]), faults.count + 1
        faults.machines.add(int(entry["stop"]))
        # The delay doubles at each try.
        self.delayed[sample] = clock.monotonic() + min(START_DELAY_LIMIT_S, 2.0 ** (faults.count - 1))

    def _delay(self, sample: int, code: int) -> None:
        delay_s = self.manifest.retry_delay_s
        if code < 0:  # a start that failed, from a worker of release 0.1: the delay doubles at each attempt
            delay_s = max(delay_s, min(START_DELAY_LIMIT_S, 2.0 ** min(6, int(self.samples.requests[sample]))))
        self.delayed[sample] = clock.monotonic() + delay_s

    def due(self, leased: SampleSet | None = None) -> SampleSet:
        """Return the samples that may start now: their delay has passed, or they are the next suspect.

        Args:
            leased: The samples that have a lease; None for none. A sample that has requested another run keeps its
                lease until its slot has run the rest of the range, and cannot be sent before.
        """
        now = clock.monotonic()
        due = [
            sample
            for sample, when in self.delayed.items()
            if when <= now and not (leased is not None and sample in leased)
        ]
        for sample in due:
            del self.delayed[sample]
        before = self.suspect
        outcome = self.samples.outcome
        allowed = SampleSet.of_samples([sample for sample in due if outcome[sample] == Outcome.OPEN])
        allowed -= self._held_back(leased)
        if self.suspect is not None and self.suspect != before and self.suspect not in self.delayed:
            return allowed | SampleSet.of_samples([self.suspect])
        return allowed

    def _held_back(self, leased: SampleSet | None) -> SampleSet:
        """Return all suspects except one, which may run; one that a worker of an earlier conductor has comes first."""
        suspects = self.suspects()
        if self.suspect is None or self.suspect not in suspects:
            held = suspects & leased if leased is not None else SampleSet.of_samples([])
            may_run = held or (suspects and self.has_turn())
            self.suspect = (held or suspects).first if may_run else None
        return suspects if self.suspect is None else suspects - SampleSet.of_samples([self.suspect])

    def suspects(self) -> SampleSet:
        """Return the suspects, which have no outcome."""
        if self.samples.losses.max() < SUSPECT_LOSSES:
            return SampleSet.of_samples([])
        return self.samples.find_lost(SUSPECT_LOSSES)

    def holds_suspect(self, leased: Callable[[], SampleSet]) -> bool:
        """Tell whether a worker has a suspect.

        Args:
            leased: Returns the samples with a lease; most step records do not need it.
        """
        suspects = self.suspects()
        return bool(suspects and suspects & leased())

    def unassigned(self, leased: SampleSet, within: SampleSet | None = None) -> SampleSet:
        """Return the open samples without a lease and without a delay.

        Args:
            leased: The samples with a lease.
            within: Only these samples; None for all.
        """
        delayed = SampleSet.of_samples(list(self.delayed))
        return self.samples.find(Outcome.OPEN, within=within) - leased - delayed - self._held_back(leased)

    def begin(self, *, cancelled: bool) -> None:
        """Record that Maestro has submitted or restarted the step record.

        Args:
            cancelled: Whether it is cancelled immediately, because the study was stopped.
        """
        self.active, self.cancelled, self.reported_state = True, cancelled, RecordState.PENDING
        self.has_started = self.timed_out = self.repeats = False
        if not cancelled:
            self.cancelled_at = None
        self.withdrawn.clear()
        self.faults.clear()
        self.reason = ""
        self.times.submit()

    @property
    def is_undisturbed(self) -> bool:
        """Whether samples are open, and nothing has failed or was cancelled, so that there is work."""
        ends = self.failure is not None or self.cancelled or self.timed_out
        return not ends and self.samples.is_undisturbed

    @property
    def has_failed(self) -> bool:
        """Whether a sample failed hard, or more samples failed than may fail."""
        if not self.samples.failures:  # as most step records of a large study
            return False
        if self.samples.total(Outcome.HARD_FAILED):
            return True
        return exceeds_limit(self.manifest, self.samples) and not self.is_on_trial()

    @property
    def is_cancelled_at_once(self) -> bool:
        """Whether it was cancelled with its running samples."""
        return self.cancelled and self.cancelled_at is not None

    @property
    def stops_early(self) -> bool:
        """Whether no further sample may start: the step record has failed, or was cancelled."""
        return self.cancelled or self.has_failed

    def state(self, *, has_leases: bool) -> RecordState:
        """Return the state of the step record.

        Args:
            has_leases: Whether a live worker has a lease of its samples.
        """
        if self.is_undisturbed:  # as most step records of a large study
            return self._open_state(has_leases=has_leases)
        if self.failure is not None:
            return RecordState.FAILED
        if self.samples.is_complete or (self.stops_early and not has_leases):
            if self.has_failed:
                return RecordState.FAILED
            return RecordState.FINISHED if self.samples.is_complete else RecordState.CANCELLED
        # Maestro would restart one that has failed or was cancelled, and the cancellation would be forgotten.
        if self.timed_out and not self.stops_early:
            return RecordState.TIMED_OUT
        return self._open_state(has_leases=has_leases)

    def _open_state(self, *, has_leases: bool) -> RecordState:
        runs = self.samples.has_started and (has_leases or not self.waits)
        return RecordState.RUNNING if runs else RecordState.PENDING
