"""The coordinator: submits, watches and cancels the step records of one study, in the conductor.

It has no thread of its own. Maestro's conductor calls it through the adapter and, between two polls,
through `wait`, which takes the place of the conductor's sleep. Its knowledge is the ledger's; the broker
is asked for nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from maestro_celery_plugin.broker import keeper_of, start_private
from maestro_celery_plugin.errors import BrokerError, EnsembleError, StudyError, WorkerError
from maestro_celery_plugin.holdings import Holdings
from maestro_celery_plugin.ledger import COORDINATOR, SUFFIX, Kind, LedgerReader, LedgerWriter
from maestro_celery_plugin.manifest import Manifest
from maestro_celery_plugin.processes import wait_until
from maestro_celery_plugin.progress import Progress
from maestro_celery_plugin.session import Heartbeat, Session
from maestro_celery_plugin.states import Outcome, RecordState
from maestro_celery_plugin.study import StudyPlan
from maestro_celery_plugin.tasks import RangeTask
from maestro_celery_plugin.tracker import MAX_RANGES, Tracker, ranges_of
from maestro_celery_plugin.workers import WorkerGroup, WorkerPool

if TYPE_CHECKING:
    from maestro_celery_plugin.dispatch import Dispatcher

__all__ = ["Coordinator", "active", "conductor_lock", "for_study"]

LOGGER = logging.getLogger(__name__)

# Samples that nobody holds are sent again when a slot has been free and nothing has moved for this long.
QUIET_LIMIT_S = 2.0
LOOK_INTERVAL_S = 0.1
CARE_INTERVAL_S = 0.5
BEAT_INTERVAL_S = 2.0
KEEPER_LIMIT_S = 8.0
# Others look at the conductor's lock for a moment, to see whether it is held.
LOCK_LIMIT_S = 2.0

_TERMINAL = (RecordState.FINISHED, RecordState.FAILED, RecordState.TIMED_OUT, RecordState.CANCELLED)
_COORDINATORS: dict[Path, Coordinator] = {}


def for_study(plan: StudyPlan) -> Coordinator:
    """Return the coordinator of a study in this process; started at the first call."""
    if plan.root not in _COORDINATORS:
        _COORDINATORS[plan.root] = Coordinator(plan)
    return _COORDINATORS[plan.root]


def active() -> list[Coordinator]:
    """Return the coordinators of this process."""
    return list(_COORDINATORS.values())


def conductor_lock(plan: StudyPlan) -> FileLock:
    """Return the lock that the conductor of a study holds while it lives."""
    return FileLock(plan.info / "conductor.lock")


class Coordinator:
    """The coordinator of one study.

    Args:
        plan: The study.

    Raises:
        StudyError: another conductor of this study lives.
        BrokerError: the private broker does not start.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._lock = conductor_lock(plan)
        try:
            self._lock.acquire(timeout=LOCK_LIMIT_S)
        except Timeout as cause:
            raise StudyError(f"Another conductor is running the study '{plan.root}'.") from cause
        self._session = Session(plan.session)
        self._session.revoke_stop()
        self._writer = LedgerWriter(plan.ledger / f"{COORDINATOR}{SUFFIX}")
        self._reader = LedgerReader(plan.ledger)
        self._holdings = Holdings()
        self._trackers: dict[str, Tracker] = {}
        self._by_number: dict[int, Tracker] = {}
        self._jobs: dict[str, Tracker] = {}
        groups = [WorkerGroup(n, g, g.task_queues) for n, g in plan.settings.resources.workers.items() if g.task_queues]
        self._pool = WorkerPool(plan, self._session, groups)
        self._dispatcher: Dispatcher | None = None
        self._generation: str | None = None
        self._stopped_by: str | None = None
        self._beat, self._beat_at, self._care_at, self._round_end = 0, 0.0, 0.0, time.monotonic()
        self._closed = False
        self._load()
        self._start_broker()
        atexit.register(self.close)
        _end_on_sigterm()

    def _load(self) -> None:
        """Take up what an earlier conductor of this study has left."""
        for manifest in Manifest.read_all(self._plan.records):
            self._add(manifest, str(Path(manifest.workspace).relative_to(self._plan.root)))
        self._follow_ledger()
        self._pool.look()
        for writer in self._holdings.writers():
            if writer not in self._pool.alive:
                self._lose(writer)
        for tracker in self._trackers.values():
            self._record_lost(tracker, tracker.progress.unended & ~self._held(tracker))

    def _add(self, manifest: Manifest, relative: str) -> Tracker:
        groups = tuple(g.name for g in self._pool.groups.values() if manifest.task_queue in g.queues)
        tracker = Tracker(manifest, relative, Progress(manifest), groups)
        self._trackers[relative] = self._by_number[manifest.number] = tracker
        return tracker

    # --- Maestro's contract ---

    def next_number(self, relative: str) -> int:
        """Return the number of the step record with this workspace, a new one if there is none yet."""
        tracker = self._trackers.get(relative)
        return tracker.manifest.number if tracker else max(self._by_number, default=0) + 1

    def submit(self, manifest: Manifest, relative: str) -> str:
        """Start, or go on with, a step record; return Maestro's job identifier.

        Raises:
            BrokerError: the broker is away.
        """
        manifest.write(self._plan.records / relative / "manifest.json")
        tracker = self._trackers.get(relative) or self._add(manifest, relative)
        tracker.active, tracker.cancelled = True, self._stopped_by is not None
        tracker.told = RecordState.PENDING
        self._look()
        if not tracker.cancelled:
            self._send(tracker, tracker.unheld(self._held(tracker)))
        job = f"{manifest.name}#{sum(t is tracker for t in self._jobs.values()) + 1}"
        self._jobs[job] = tracker
        return job

    def state(self, job: str) -> RecordState:
        """Return the state of a submitted step record."""
        tracker = self._jobs[job]
        tracker.told = self._state(tracker)
        if tracker.told in _TERMINAL:
            tracker.active = False
        return tracker.told

    def _state(self, tracker: Tracker) -> RecordState:
        return tracker.state(held=any(self._holdings.of_record(tracker.manifest.number)))

    def cancel(self, jobs: list[str]) -> None:
        """Cancel step records: what runs of them is ended within seconds."""
        for job in jobs:
            self._cancel(self._jobs[job])

    def _cancel(self, tracker: Tracker) -> None:
        tracker.cancelled = True
        self._void(tracker)

    def _void(self, tracker: Tracker) -> None:
        """Declare everything of a record void that was sent so far."""
        progress = tracker.progress
        if progress.cancelled_epoch <= progress.epoch:
            self._writer.append(
                Kind.CANCELLED, tracker.manifest.number, progress.epoch + 1, 0, tracker.manifest.samples
            )
            self._follow_ledger()

    # --- time ---

    def wait(self, seconds: float) -> None:
        """Watch over the study for a while; return early when Maestro has something to do.

        Rounds of Maestro cost time in a large study, so at most half of it goes there.
        """
        now = time.monotonic()
        earliest, latest = now + min(now - self._round_end, seconds), now + seconds
        pace_s = LOOK_INTERVAL_S / 2
        while time.monotonic() < latest:
            begin = time.monotonic()
            self._look()
            if self._is_wanted() and time.monotonic() >= earliest:
                break
            pace_s = max(LOOK_INTERVAL_S / 2, 10 * (time.monotonic() - begin))
            time.sleep(min(pace_s, max(0.0, latest - time.monotonic())))
        self._round_end = time.monotonic()

    def _is_wanted(self) -> bool:
        """Whether the conductor has something to do: a record's state is new to it, or the user wants something."""
        if any((self._plan.root / name).exists() for name in (".cancel.lock", ".study.update.lock")):
            return True
        return any(t.active and self._state(t) is not t.told for t in self._trackers.values())

    def _look(self) -> None:
        """Take in what is new, and from time to time look after broker and workers."""
        now = time.monotonic()
        if now - self._beat_at > BEAT_INTERVAL_S:
            self._beat, self._beat_at = self._beat + 1, now
            with contextlib.suppress(OSError):
                self._session.write_conductor_beat(time.time_ns())
        care = now - self._care_at > CARE_INTERVAL_S
        if not care:
            self._follow_ledger()
            self._resend_due()
            return
        self._care_at = now
        try:
            self._care_for_broker()
            self._care_for_workers()
            self._resend_due()
            self._heal()
        except EnsembleError as error:
            LOGGER.error("%s", error)

    def _follow_ledger(self) -> None:
        for writer, entries in self._reader.poll():
            if writer != COORDINATOR:
                self._holdings.apply(writer, entries)
            for number in np.unique(entries["record"]):
                tracker = self._by_number.get(int(number))
                if tracker:
                    self._apply(tracker, entries[entries["record"] == number])

    def _apply(self, tracker: Tracker, entries: Any) -> None:
        tracker.apply(entries)
        if not tracker.active:
            return
        outcomes = tracker.progress.outcome[entries["start"][entries["kind"] == Kind.ENDED]]
        if (outcomes == Outcome.HARD_FAILED).any():
            self._void(tracker)
        if (outcomes == Outcome.STOPPED_STUDY).any():
            self._stop_study(tracker)

    def _stop_study(self, tracker: Tracker) -> None:
        self._stopped_by = tracker.manifest.name
        LOGGER.warning("A sample of '%s' has asked to stop all workers (exit code 105).", tracker.manifest.name)
        for other in self._trackers.values():
            if other.active and not other.progress.is_complete:
                self._cancel(other)

    # --- care ---

    def _care_for_workers(self) -> None:
        holding = self._holdings.writers()
        dead = self._pool.look()
        for beat in dead:
            self._bury(beat)
        self._follow_ledger()
        lost = [writer for writer in holding | {b.name for b in dead} if writer not in self._pool.alive]
        for writer in lost:
            self._lose(writer)
        if lost:
            self._send_all()  # they may have had messages that they had not begun
        for name, group in self._pool.groups.items():
            trackers = [t for t in self._trackers.values() if name in t.groups and self._has_work(t)]
            if trackers:
                self._ensure(group, trackers)

    def _bury(self, beat: Heartbeat) -> None:
        LOGGER.warning("Worker '%s' on %s has died.", beat.name, beat.host)
        self._pool.bury(beat)

    def _has_work(self, tracker: Tracker) -> bool:
        return tracker.active and self._state(tracker) not in _TERMINAL

    def _ensure(self, group: WorkerGroup, trackers: list[Tracker]) -> None:
        try:
            self._pool.ensure(group)
        except WorkerError as error:
            LOGGER.error("%s", error)
            for tracker in trackers:
                tracker.failure = str(error)

    def _lose(self, writer: str) -> None:
        """Record what a dead worker was running as lost."""
        for piece in self._holdings.forget(writer):
            tracker = self._by_number.get(piece.record)
            if tracker is not None:
                mask = np.zeros(tracker.manifest.samples, bool)
                mask[piece.start : piece.stop] = True
                self._record_lost(tracker, mask & tracker.progress.unended)

    def _record_lost(self, tracker: Tracker, mask: np.ndarray[Any, Any]) -> None:
        for sample in np.flatnonzero(mask):
            epoch = int(tracker.progress.started[sample])
            self._writer.append(Kind.LOST, tracker.manifest.number, epoch, int(sample))
        if mask.any():
            self._follow_ledger()

    def _start_broker(self) -> None:
        from maestro_celery_plugin.app import declare, make_app, queue_for
        from maestro_celery_plugin.dispatch import Dispatcher

        broker = self._session.read_broker()
        if broker is None or "keeper" in broker:
            start_private(self._session)
            broker = self._session.read_broker() or {}
        self._generation = broker.get("generation")
        app = make_app(self._session)
        queues = {queue for group in self._pool.groups.values() for queue in group.queues}
        declare(app, [queue_for(self._session, name) for name in queues])
        self._dispatcher = Dispatcher(self._session, app)

    def _care_for_broker(self) -> None:
        """Start a private broker that has died, and send again what it has lost."""
        if self._generation is None:
            return
        broker = self._session.read_broker()
        if broker and broker.get("generation") == self._generation and keeper_of(self._session):
            return
        LOGGER.warning("The private broker has died; what was queued is sent again.")
        self._start_broker()
        self._send_all()

    def _send_all(self) -> None:
        """Send everything again that no worker holds; what is still queued becomes void."""
        for tracker in self._trackers.values():
            if self._has_work(tracker) and not tracker.stops_early:
                self._send(tracker, tracker.unheld(self._held(tracker)))

    def _resend_due(self) -> None:
        for tracker in self._trackers.values():
            if (tracker.waiting or tracker.suspect is not None) and self._has_work(tracker) and not tracker.stops_early:
                due = tracker.due()
                if due.any():
                    self._send(tracker, due)

    def _heal(self) -> None:
        """Send samples again that nobody holds although slots are free: their messages were lost."""
        held_slots = {writer: self._holdings.count(writer) for writer in self._holdings.writers()}
        free = {name: self._pool.free_slots(name, held_slots) for name in self._pool.groups}
        now = time.monotonic()
        for tracker in self._trackers.values():
            if not self._has_work(tracker) or tracker.stops_early or not any(free[g] for g in tracker.groups):
                tracker.quiet_since = None
            elif tracker.quiet_since is None:
                tracker.quiet_since = now
            elif now - tracker.quiet_since > QUIET_LIMIT_S:
                unheld = tracker.unheld(self._held(tracker))
                if unheld.any():
                    LOGGER.info("Sending %d samples of '%s' again.", unheld.sum(), tracker.manifest.name)
                    self._send(tracker, unheld)

    def _held(self, tracker: Tracker) -> np.ndarray[Any, Any]:
        return self._holdings.mask(tracker.manifest.number, tracker.manifest.samples)

    def _send(self, tracker: Tracker, mask: np.ndarray[Any, Any]) -> None:
        """Send samples under a new epoch, which makes void what was sent of them before.

        The ledger has the epoch before the broker has the message: a message too few is healed,
        one too many could run a sample twice.
        """
        if self._dispatcher is None:
            raise BrokerError("There is no broker yet.")
        tracker.quiet_since = None
        ranges = ranges_of(mask, tracker.progress.outcome != Outcome.OPEN)[:MAX_RANGES]
        epoch = tracker.progress.epoch + 1
        for start, stop in ranges:
            self._writer.append(Kind.SENT, tracker.manifest.number, epoch, start, stop)
            task = RangeTask(
                str(self._plan.root), tracker.relative, tracker.manifest.number, start, stop, epoch
            )
            try:
                self._dispatcher.send(task, tracker.manifest.task_queue)
            except Exception as cause:  # whatever the transport raises
                raise BrokerError(f"A message could not be sent: {cause}") from cause
        if ranges:
            self._follow_ledger()

    # --- end ---

    def close(self) -> None:
        """End workers and broker; called when the conductor ends."""
        if self._closed:
            return
        self._closed = True
        _COORDINATORS.pop(self._plan.root, None)
        self._pool.stop()
        self._follow_ledger()
        for writer in self._holdings.writers():
            self._lose(writer)
        self._end_broker()
        self._writer.close()
        self._lock.release()

    def _end_broker(self) -> None:
        if self._dispatcher is not None:
            queues = {queue for group in self._pool.groups.values() for queue in group.queues}
            self._dispatcher.close(queues, delete=self._generation is None)
        keeper = keeper_of(self._session)
        if keeper:
            keeper.signal(signal.SIGTERM)
            wait_until(lambda: not keeper.is_alive, KEEPER_LIMIT_S)


def _end_on_sigterm() -> None:
    """Let SIGTERM end the conductor in an orderly way, so that nothing of it stays behind."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
