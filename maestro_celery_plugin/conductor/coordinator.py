"""The coordinator: submits, watches and cancels the step records of one study, in the conductor.

Maestro's conductor calls it through the adapter and, between two polls, through `wait`, which takes the
place of the conductor's sleep. While Maestro is away for longer, because it runs a plain step itself, a
thread stands in for it. Its knowledge is the ledger's; the broker is asked for nothing.
"""

from __future__ import annotations

import atexit
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Concatenate, ParamSpec, TypeVar

from maestro_celery_plugin.conductor.publisher import Delivery
from maestro_celery_plugin.conductor.scaling import Staffing
from maestro_celery_plugin.conductor.step_record import Tracker
from maestro_celery_plugin.conductor.step_records import TERMINAL, Records
from maestro_celery_plugin.conductor.worker_pool import WorkerGroup
from maestro_celery_plugin.errors import BrokerError, EnsembleError
from maestro_celery_plugin.states import RecordState
from maestro_celery_plugin.study.conductor_lock import conduct
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.session import Session

__all__ = ["Coordinator", "active", "for_study"]

LOGGER = logging.getLogger(__name__)

# Samples that nobody holds are sent again when a slot has been free and nothing has moved for this long.
QUIET_LIMIT_S = 2.0
LOOK_INTERVAL_S = 0.1
LOOK_LIMIT_S = 1.0
CARE_INTERVAL_S = 0.5
# Maestro is away when nobody has looked for this long; `wait` looks more often.
AWAY_S = 1.5

_COORDINATORS: dict[Path, Coordinator] = {}


def for_study(plan: StudyPlan) -> Coordinator:
    """Return the coordinator of a study in this process; started at the first call."""
    if plan.root not in _COORDINATORS:
        _COORDINATORS[plan.root] = Coordinator(plan)
    return _COORDINATORS[plan.root]


def active() -> list[Coordinator]:
    """Return the coordinators of this process."""
    return list(_COORDINATORS.values())


P = ParamSpec("P")
R = TypeVar("R")


def _exclusive(method: Callable[Concatenate[Coordinator, P], R]) -> Callable[Concatenate[Coordinator, P], R]:
    """Let one thread at a time into a coordinator: Maestro's, or the one that stands in for it."""

    @functools.wraps(method)
    def call(self: Coordinator, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._access:
            return method(self, *args, **kwargs)

    return call


class Coordinator:
    """The coordinator of one study.

    Args:
        plan: The study.

    Raises:
        StudyError: another conductor of this study lives.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._conductorship = conduct(plan)
        self._session = Session(plan.session)
        self._session.revoke_stop()
        settings = plan.settings.resources.workers
        groups = [WorkerGroup(name, group, group.task_queues) for name, group in settings.items() if group.task_queues]
        self._records = Records(plan, groups)
        self._staffing = Staffing(plan, self._session, self._records, groups)
        task_queues = {queue for group in groups for queue in group.queues}
        self._delivery = Delivery(plan, self._session, self._records, task_queues)
        self._jobs: dict[str, Tracker] = {}
        self._care_at = 0.0
        self._round_end = time.monotonic()
        self._closed = False
        self._access = threading.RLock()
        self._looked_at = time.monotonic()
        threading.Thread(target=self._stand_in, name="stand-in", daemon=True).start()
        atexit.register(self.close)
        _end_on_signals()

    # --- Maestro's contract ---

    def number(self, relative: str) -> int:
        """Return the number of the step record with this workspace, a new one if there is none yet."""
        return self._records.number(relative)

    @_exclusive
    def submit(self, manifest: Manifest, relative: str) -> str:
        """Start, or go on with, a step record; return Maestro's job identifier."""
        tracker = self._records.enter(manifest, relative)
        self._look()
        before = tracker.reason
        tracker.begin(cancelled=self._records.stopped_by is not None)
        tracker.reason = self._records.stopped_by or ""
        if tracker.reason != before:
            self._records.store_reasons()
        if not tracker.cancelled:
            try:
                self._delivery.send(tracker, tracker.unheld(self._records.held(tracker)))
            except BrokerError as error:  # it is sent when the broker is there again
                LOGGER.error("%s", error)
        job = f"{manifest.name}#{sum(t is tracker for t in self._jobs.values()) + 1}"
        self._jobs[job] = tracker
        return job

    @_exclusive
    def state(self, job: str) -> RecordState:
        """Return the state of a submitted step record."""
        tracker = self._jobs[job]
        tracker.told = self._records.state(tracker)
        if tracker.told in TERMINAL:
            tracker.active = False
        return tracker.told

    @_exclusive
    def cancel(self, jobs: list[str]) -> None:
        """Cancel step records: what runs of them is ended within seconds."""
        trackers = {id(tracker): tracker for tracker in (self._jobs[job] for job in jobs)}
        self._records.cancel(*trackers.values(), reason="It was cancelled by `maestro cancel`.")

    # --- time ---

    def wait(self, seconds: float) -> None:
        """Watch over the study for a while; return early when Maestro has something to do.

        Rounds of Maestro cost time in a large study, so at most half of it goes there.
        """
        now = time.monotonic()
        earliest, latest = now + min(now - self._round_end, seconds), now + seconds
        while time.monotonic() < latest:
            begin = time.monotonic()
            self._look()
            if self._is_wanted() and time.monotonic() >= earliest:
                break
            pace_s = min(LOOK_LIMIT_S, max(LOOK_INTERVAL_S, 10 * (time.monotonic() - begin)))
            time.sleep(min(pace_s, max(0.0, latest - time.monotonic())))
        self._round_end = time.monotonic()

    @_exclusive
    def _is_wanted(self) -> bool:
        """Whether the conductor has something to do: a record's state is new to it, or the user wants something."""
        if self._plan.cancel_note.exists() or self._plan.update_note.exists():
            return True
        return any(t.active and self._records.state(t) is not t.told for t in self._records)

    def _stand_in(self) -> None:
        """Look while Maestro is away, so that samples are sent and workers are there meanwhile."""
        while not self._closed:
            time.sleep(CARE_INTERVAL_S)
            with self._access:
                if not self._closed and time.monotonic() - self._looked_at > AWAY_S:
                    self._look()

    @_exclusive
    def _look(self) -> None:
        """Take in what is new, and from time to time look after broker and workers."""
        now = self._looked_at = time.monotonic()
        if now > self._care_at:
            self._care_at = now + CARE_INTERVAL_S
            # Each for itself: workers and allocations are looked after also while the broker is away.
            for care in (self._delivery.care, self._care_for_workers, self._heal):
                _try(care)
            self._care_at = max(self._care_at, now + 10 * (time.monotonic() - now))
        _try(lambda: self._records.follow(but=self._staffing.gone))
        _try(self._send_due)
        _try(self._records.flush)

    def _care_for_workers(self) -> None:
        try:
            has_lost = self._staffing.care()
        finally:
            self._conductorship.working = self._staffing.working_allocations
        if has_lost:
            self._delivery.send_all()  # workers that died may have had messages that they had not begun

    # --- care ---

    def _send_due(self) -> None:
        """Send samples that have waited for their retry, or whose turn it is."""
        for tracker in self._records:
            if (tracker.waiting or tracker.suspect is not None) and tracker.active and not tracker.stops_early:
                due = tracker.due()
                if due.any():
                    self._delivery.send(tracker, due)

    def _heal(self) -> None:
        """Send samples again that nobody holds although slots are free: their messages were lost."""
        holdings = self._records.holdings
        held_slots = {writer: holdings.count(writer) for writer in holdings.writers()}
        now, quiet = time.monotonic(), []
        for tracker in self._records.with_work():
            if tracker.stops_early or not self._staffing.has_room_for(tracker, held_slots):
                tracker.quiet_since = None
            elif tracker.quiet_since is None:
                tracker.quiet_since = now
            elif now - tracker.quiet_since > QUIET_LIMIT_S:
                quiet.append(tracker)
        if quiet:
            self._records.follow()  # also what workers have written that are gone
        for tracker in quiet:
            unheld = tracker.unheld(self._records.held(tracker))
            if unheld.any():
                LOGGER.info("Sending %d samples of '%s' again.", unheld.sum(), tracker.manifest.name)
                self._delivery.send(tracker, unheld)

    # --- end ---

    @_exclusive
    def close(self) -> None:
        """End workers and broker; called when the conductor ends."""
        if self._closed:
            return
        self._closed = True
        _COORDINATORS.pop(self._plan.root, None)
        self._staffing.end()
        self._records.close()
        self._delivery.close()
        self._conductorship.end()


def _try(step: Callable[[], None]) -> None:
    """Take a step; what stops it is logged, and tried again at the next look."""
    try:
        step()
    except (EnsembleError, OSError) as error:
        LOGGER.error("%s", error)


def _end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the conductor in an orderly way, so that nothing of it stays behind."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
