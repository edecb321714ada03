"""The coordinator: it submits, watches and cancels the step records of one study in Maestro's conductor.

Maestro's conductor calls it through the adapter and, between two polls, through `wait`, which replaces the sleep of the
conductor. While Maestro runs a native step itself, a thread calls the coordinator instead. The coordinator reads the
ledger; it does not query the broker.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.added_samples import AddedSamples, Taking
from maestro_celery_plugin.conductor.error_log import try_each
from maestro_celery_plugin.conductor.exit_signals import end_on_signals
from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.redelivery import Redelivery
from maestro_celery_plugin.conductor.scaling import Scaling
from maestro_celery_plugin.conductor.step_cancellation import StepCancellation
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.conductor.step_records import TERMINAL, StepRecords
from maestro_celery_plugin.config.groups import serving_groups
from maestro_celery_plugin.errors import BrokerError, EnsembleError
from maestro_celery_plugin.files import share_clock
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.states import Outcome, RecordState
from maestro_celery_plugin.study import conductor_lock
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["Coordinator", "active", "for_study", "known_additions"]

LOGGER = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 0.1
REFRESH_LIMIT_S = 1.0
MAINTENANCE_INTERVAL_S = 0.5
# The longest pause before workers are started and replaced again.
MAINTENANCE_LIMIT_S = 3.0
# Interval between two looks at the states of step records without new entries.
LOOK_AT_ALL_INTERVAL_S = 1.0
# The substitute thread calls `_refresh` if Maestro has not called the coordinator for this long.
AWAY_S = 1.5

_COORDINATORS: dict[Path, Coordinator] = {}


def for_study(plan: StudyPlan) -> Coordinator:
    """Return the coordinator of a study in this process; the first call starts it."""
    if plan.root not in _COORDINATORS:
        _COORDINATORS[plan.root] = Coordinator(plan)
    return _COORDINATORS[plan.root]


def active() -> list[Coordinator]:
    """Return the coordinators of this process."""
    return list(_COORDINATORS.values())


def known_additions(plan: StudyPlan) -> int:
    """Return the number of added samples that a step record has which Maestro submits now."""
    coordinator = _COORDINATORS.get(plan.root)
    return coordinator.total_samples - plan.rows if coordinator else 0


P = ParamSpec("P")
R = TypeVar("R")


def _exclusive(method: Callable[Concatenate[Coordinator, P], R]) -> Callable[Concatenate[Coordinator, P], R]:
    """Allow one thread at a time to use a coordinator: Maestro's thread or the substitute thread."""

    @functools.wraps(method)
    def call(self: Coordinator, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._access:
            return method(self, *args, **kwargs)

    return call


def pause_s(duration_s: float) -> float:
    """Return the seconds between two checks of the broker and the workers.

    Checks of a large study use at most a tenth of the time. A check may also take long because this process was stopped
    for some time; therefore the pause has a limit.

    Args:
        duration_s: Seconds that the last check took.
    """
    return min(max(MAINTENANCE_INTERVAL_S, 9 * duration_s), MAINTENANCE_LIMIT_S)


class Coordinator:
    """The coordinator of one study.

    Args:
        plan: The study.

    Attributes:
        watchers: Functions that are called whenever the coordinator has looked at its workers, and before its end.

    Raises:
        StudyError: another conductor of this study lives.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._lock = conductor_lock.acquire(plan)
        self._session = Session(plan.session)
        share_clock(plan.session)
        groups = serving_groups(plan.settings)
        self._records = StepRecords(plan, groups)
        self._scaling = Scaling(plan, self._session, self._records, groups)
        task_queues = {queue for group in groups.values() for queue in group.task_queues}
        self._publisher = Publisher(
            plan, self._session, self._records, task_queues, self._scaling.is_dead, self._scaling.end_worker
        )
        self._redelivery = Redelivery(self._records, self._publisher, self._scaling)
        self._step_cancellation = StepCancellation(plan, self._records, self._publisher.withdraw)
        self._added = AddedSamples(plan, self._records, self._publisher.send, self._publisher.withdraw)
        self._jobs: dict[str, StepRecord] = {}
        self.watchers: list[Callable[[], object]] = []
        self._submissions: Counter[int] = Counter()
        self._looked_at_all, self._poll_is_due = 0.0, False
        self._maintain_at = 0.0
        # The end of the last wait, and the seconds of submissions since then.
        self._poll_end, self._submit_s = clock.monotonic(), 0.0
        self._closed = False
        self._access = threading.RLock()
        self._refreshed_at, self._refresh_interval_s = float("-inf"), REFRESH_INTERVAL_S
        threading.Thread(target=self._run_substitute, name="substitute", daemon=True).start()
        atexit.register(self.close)
        end_on_signals()

    # --- Maestro's contract ---

    @_exclusive
    def submit(self, manifest: Manifest) -> str:
        """Start or continue a step record; return Maestro's job identifier."""
        begin = clock.monotonic()
        if self._plan.cancel_request.exists():
            return self._submit_cancelled(manifest)
        record = self._records.register(manifest)
        if clock.monotonic() - self._refreshed_at > self._refresh_interval_s:  # not at each of many submissions
            try_each(functools.partial(self._scaling.start_workers, record))  # while the private broker starts
            self._refresh()
        had_reason = bool(record.reason)
        record.begin(cancelled=False)
        if had_reason:
            self._records.store_reasons()
        try_each(functools.partial(self._step_cancellation.apply_to_submitted, record))
        try:
            record.waits = self._scaling.waits(record)
            if not record.waits:  # otherwise when a user has started a worker, or has resumed the study
                self._publisher.send(record, record.unassigned(self._records.leased(record)))
        except BrokerError as error:  # the samples are sent when the broker answers again
            LOGGER.error("%s", error)
        self._submissions[record.number] += 1
        job = f"{manifest.name}#{self._submissions[record.number]}"
        self._jobs[job] = record
        # The first check, which imports Celery, takes long; the new samples need their workers soon.
        self._maintain_at = min(self._maintain_at, clock.monotonic() + MAINTENANCE_INTERVAL_S)
        self._submit_s += clock.monotonic() - begin
        return job

    def _submit_cancelled(self, manifest: Manifest) -> str:
        """Cancel the study while Maestro submits step records: it looks at the request after it has submitted all.

        The step record is not stored, so that a conductor that resumes the study submits it like a new one. One of
        which workers of an earlier conductor have samples ends when these have ended; its messages become invalid.
        """
        has_lease = self._records.leases.has
        running = (r for r in self._records if r.active or has_lease(r.number) or self._records.waiting(r))
        self._cancel([record for record in running if not record.samples.is_complete])
        held = (record for record in self._records if has_lease(record.number) and record.cancelled)
        record = next((one for one in held if one.manifest.name == manifest.name), None)
        if record is None:
            record = StepRecord(manifest, "", SampleStates(manifest.samples, 0))
        job, reason = f"{manifest.name}#cancelled", record.reason
        record.begin(cancelled=True)
        record.reason = reason
        self._jobs[job] = record
        return job

    @_exclusive
    def state(self, job: str) -> RecordState:
        """Return the state of a submitted step record."""
        record = self._jobs[job]
        record.reported_state = self._records.state(record)
        if record.reported_state in TERMINAL:
            record.active = False
        return record.reported_state

    @_exclusive
    def run_times(self, job: Any) -> tuple[float | None, float | None]:
        """Return when a submitted step record began and ended to run (Unix seconds); None where this is not known."""
        record = self._jobs.get(job)
        if record is None:
            return None, None
        return record.times.times(has_ended=record.samples.is_complete or record.has_failed)

    @_exclusive
    def set_restarts(self, job: Any, may_restart: Callable[[], bool]) -> None:
        """Let a submitted step record know whether Maestro would restart it if it timed out."""
        record = self._jobs.get(job)
        if record is not None:
            record.may_restart = may_restart

    @_exclusive
    def cancel(self, jobs: list[str]) -> None:
        """Cancel step records, which are those of the whole study; their running samples end within seconds."""
        self._lock.announce_end()
        self._cancel({id(record): record for record in (self._jobs[job] for job in jobs)}.values())

    def _cancel(self, records: Iterable[StepRecord]) -> None:
        open_records = [record for record in records if not record.cancelled]
        if open_records:
            self._records.cancel(*open_records, reason="`maestro cancel` has cancelled it.")

    # --- samples that were added ---

    @property
    def plan(self) -> StudyPlan:
        """The study."""
        return self._plan

    @_exclusive
    def outdated(self) -> dict[str, Manifest]:
        """Return the manifests of the step records that have fewer samples than the study, by name."""
        return self._added.outdated()

    @property
    def total_samples(self) -> int:
        """The number of samples of the study at the last call of `outdated`."""
        return self._added.total

    @_exclusive
    def running(self, names: Iterable[str]) -> set[str]:
        """Return those of these step records of which a worker has a sample."""
        return self._added.running(names)

    @_exclusive
    def repeat(self, names: Iterable[str]) -> None:
        """Let step records run again when the attempt has ended that runs now."""
        self._added.repeat(names)

    @_exclusive
    def run_again(self, names: list[str]) -> None:
        """Let step records run again that Maestro will submit again; those that depend on others come first."""
        self._added.run_again(names)

    @_exclusive
    def take(self, taking: Taking) -> None:
        """Let step records have the samples that were added."""
        self._added.take(taking)

    @property
    @_exclusive
    def failed_samples(self) -> int:
        """The number of failed samples of all step records."""
        return sum(record.samples.counts().failed for record in self._records)

    @property
    @_exclusive
    def ended_samples(self) -> int:
        """The number of samples of all step records that have an outcome."""
        return sum(len(record.samples) - record.samples.total(Outcome.OPEN) for record in self._records)

    @_exclusive
    def failed_records(self) -> list[str]:
        """Return the names of the step records with a failed sample, unless a machine may be the cause."""
        undecided = self._records.quick_failures.open_records()
        return [r.manifest.name for r in self._records if r.samples.failures and r.number not in undecided]

    @_exclusive
    def further_allocations(self) -> list[str]:
        """Return the labels of the allocations that this conductor has submitted after an earlier one has ended."""
        return self._scaling.further_allocations

    # --- time ---

    def wait(self, seconds: float) -> None:
        """Watch the study for some seconds; return early when Maestro must poll.

        At each poll, Maestro stores the whole study, which takes seconds for thousands of step records. Polls use at
        most a fifth of the time while there is work; without work, only a poll can give more, or end the study.
        """
        now = clock.monotonic()
        poll_s = now - self._poll_end - self._submit_s
        earliest, latest = now + min(4 * poll_s, seconds), now + seconds
        while clock.monotonic() < latest:
            self._refresh()
            if self._must_poll() and (clock.monotonic() >= earliest or not self._has_work()):
                break
            clock.sleep(min(self._refresh_interval_s, max(0.0, latest - clock.monotonic())))
        self.begin_poll()

    def begin_poll(self) -> None:
        """Note that Maestro polls now."""
        self._poll_end, self._submit_s, self._poll_is_due = clock.monotonic(), 0.0, False

    @_exclusive
    def _must_poll(self) -> bool:
        """Whether Maestro must poll: a step record has a new state, or a user requests an update or a cancellation."""
        try_each(self._look_for_news)  # an error of the file system would end Maestro's conductor
        return self._poll_is_due

    def _look_for_news(self) -> None:
        self._poll_is_due = self._poll_is_due or self._has_news()

    @_exclusive
    def _has_work(self) -> bool:
        """Whether a submitted step record has not ended, or this cannot be told because of an error."""
        try:
            return bool(self._records.with_work())
        except (EnsembleError, OSError) as error:  # such as a full disk; Maestro's conductor would end
            LOGGER.error("%s", error)
            return True

    def _has_news(self) -> bool:
        if self._plan.cancel_request.exists() or self._plan.update_request.exists():
            return True
        if self._step_cancellation.has_news or self._added.has_news:
            self._step_cancellation.has_news = self._added.has_news = False
            return True
        if self._added.has_ended_attempt:
            return True
        now, records = clock.monotonic(), self._records.changed()
        if now - self._looked_at_all > LOOK_AT_ALL_INTERVAL_S:  # states also depend on allocations and workers
            self._looked_at_all, records = now, list(self._records)
        return any(r.active and self._records.state(r) is not r.reported_state for r in records)

    def _run_substitute(self) -> None:
        """Call `_refresh` while Maestro does not call the coordinator, so that samples are sent and workers start."""
        while not self._closed:
            clock.sleep(MAINTENANCE_INTERVAL_S)
            with self._access:
                if not self._closed and clock.monotonic() - self._refreshed_at > AWAY_S:
                    self._refresh()

    @_exclusive
    def _refresh(self) -> None:
        """Apply new entries of the ledger; at intervals, check the broker and the workers."""
        now = self._refreshed_at = clock.monotonic()
        if now > self._maintain_at:
            self._maintain_at = now + MAINTENANCE_INTERVAL_S
            # Separately, so that workers and allocations are checked even if the broker does not answer.
            before = (self._step_cancellation.apply, self._added.look, self._publisher.take_back_suspects)
            send = self._publisher.maintain
            resend = self._redelivery.resend_if_slots_stay_free
            try_each(*before, send, self._maintain_workers, resend, *self.watchers)
            end = clock.monotonic()
            self._maintain_at = end + pause_s(end - now)
        try_each(lambda: self._records.follow(skip=self._scaling.ended_workers))
        if self._records.stop_request:
            try_each(self._stop_workers)  # before Maestro submits what depends on the sample
        try_each(self._redelivery.send_due)
        try_each(self._records.flush)
        pause = min(REFRESH_LIMIT_S, 10 * (clock.monotonic() - now), self._redelivery.next_due_s)
        self._refresh_interval_s = max(REFRESH_INTERVAL_S, pause)

    def _maintain_workers(self) -> None:
        try:
            self._scaling.maintain()
        finally:
            self._lock.working, self._lock.needs = self._scaling.working_allocations, self._scaling.needs
        try_each(self._resend_to_continuing, self._publisher.resend_lost)

    def _resend_to_continuing(self) -> None:
        """Send the samples without a message of step records whose workers take samples again."""
        if self._scaling.continues:
            self._publisher.resend_without_message()
            self._scaling.continues = False

    def _stop_workers(self) -> None:
        self._scaling.stop_workers()
        self._resend_to_continuing()

    # --- end ---

    @_exclusive
    def close(self) -> None:
        """End workers and broker at the end of the conductor."""
        if self._closed:
            return
        self._closed = True
        try_each(*self.watchers)
        _COORDINATORS.pop(self._plan.root, None)
        others = self._scaling.relatives.living
        with contextlib.suppress(OSError, EnsembleError):  # for example a full disk
            others = self._lock.leave()
        if others:  # their workers would take the messages that are left
            try_each(lambda: self._records.invalidate(*self._records.with_work()))
        try_each(lambda: self._scaling.end(others))
        # The next conductor may begin before a worker on another machine has seen the request to end.
        try_each(lambda: self._records.close(self._scaling.distant_workers))
        try_each(lambda: self._publisher.close(others))
        try_each(self._lock.release)
        gc.freeze()  # otherwise the interpreter looks for garbage among all step records before it ends
