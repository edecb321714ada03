"""The lock of a study's conductor, its heartbeat, and its membership in the session.

Maestro's conductor is blocked while it runs a native step itself (localscriptadapter.py:136-139). Therefore the
heartbeat has its own thread, which ends with the process and does not wait for the polls.

Some file systems have locks for each machine alone (sshfs; Lustre with `localflock`; NFS with `local_lock`). So the
heartbeat of a conductor on another machine counts as well, for as long as it is fresh.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from maestro_celery_plugin import clock
from maestro_celery_plugin.config.groups import shared_groups
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import is_locked
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.stopped_workers import request_start

__all__ = [
    "LOCK_LIMIT_S",
    "START_LIMIT_S",
    "ConductorLock",
    "acquire",
    "await_start",
    "file_lock",
    "has_conductor",
    "is_ending",
    "is_starting",
    "take_poll_request",
]

BEAT_INTERVAL_S = 2.0
# `maestro run` returns before its conductor has begun.
START_LIMIT_S = 60.0
# Time for which a command waits for it.
_AWAITED_S = 15.0
# A worker with a short `idle_limit` must see several heartbeats within this limit.
BEATS_PER_IDLE_LIMIT = 4
# Other processes lock the file for a short time to check whether a conductor holds the lock.
LOCK_LIMIT_S = 2.0

_LOCKS: dict[Path, ConductorLock] = {}


def file_lock(plan: StudyPlan) -> FileLock:
    """Return the file lock that the conductor of a study holds while it lives."""
    return FileLock(plan.conductor_lock)


def has_conductor(plan: StudyPlan) -> bool:
    """Tell whether a conductor of a study lives; for some seconds, one may count that was killed on another machine."""
    return is_locked(plan.conductor_lock) or Session(plan.session).conductors.live_elsewhere(plan.id)


def is_ending(plan: StudyPlan) -> bool:
    """Tell whether the conductor of a study that lives has been asked to cancel it."""
    return plan.cancel_request.exists() or Session(plan.session).conductors.read(plan.id).is_ending


def is_starting(plan: StudyPlan) -> bool:
    """Tell whether a launch has just created the study, so that its first conductor may be about to begin."""
    try:
        age_s = clock.now() - (plan.root / "batch.info").stat().st_mtime
        has_begun = Session(plan.session).conductors.read(plan.id).beat != 0
    except OSError:  # the study of another user
        return False
    return plan.session.exists() and not has_begun and age_s < START_LIMIT_S


def await_start(plan: StudyPlan) -> None:
    """Wait for the first conductor of a study that a launch has just created, if it is about to begin."""
    if is_starting(plan):
        conductors = Session(plan.session).conductors
        clock.wait_until(lambda: conductors.read(plan.id).beat != 0, _AWAITED_S, interval_s=0.1)


def acquire(plan: StudyPlan) -> ConductorLock:
    """Return the lock of a study that this process holds; the first call acquires it.

    Raises:
        StudyError: another conductor of this study lives.
    """
    if plan.root not in _LOCKS:
        _LOCKS[plan.root] = ConductorLock(plan)
    return _LOCKS[plan.root]


def take_poll_request() -> bool:
    """Tell whether Maestro must poll again immediately for a study of this process, and reset `must_poll`."""
    news = [lock for lock in _LOCKS.values() if lock.must_poll]
    for lock in news:
        lock.must_poll = False
    return bool(news)


class ConductorLock:
    """Makes this process the conductor of a study, until `release` or the end of the process.

    Args:
        plan: The study.

    Attributes:
        must_poll: Whether a step has ended during a poll of Maestro, so that Maestro must poll again.
        working: The allocations with a busy worker; None until the coordinator sets them. The heartbeat reports them to
            the workers, which otherwise would have to read the heartbeats of all workers.
        others: The other members of the session that lived when this one left.
        needs: The worker groups that the study needs; None until the coordinator sets them. The heartbeat reports them
            to the conductors of other studies that share the workers.

    Raises:
        StudyError: another conductor of this study lives.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self.must_poll = False
        self.others: list[Member] = []
        self._is_ending = False
        self._has_left = False
        self.working: frozenset[str] | None = None
        self.needs: frozenset[str] | None = None
        self._root, self._study = plan.root, plan.id
        self._lock = file_lock(plan)
        try:
            self._lock.acquire(timeout=LOCK_LIMIT_S)
        except Timeout as cause:
            raise _another(plan) from cause
        self._session = Session(plan.session)
        if self._session.conductors.live_elsewhere(plan.id):
            self._lock.release()
            raise _another(plan)
        self._members = Members(plan.session)
        self._enter(plan)
        idle_limits_s = [group.idle_limit for group in plan.settings.resources.workers.values()]
        self._interval_s = min([BEAT_INTERVAL_S, *(limit_s / BEATS_PER_IDLE_LIMIT for limit_s in idle_limits_s)])
        self._ended = threading.Event()
        self._beat()
        threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True).start()
        atexit.register(self.release)

    def _enter(self, plan: StudyPlan) -> None:
        """Become a running member of the session; the only one revokes the requests to stop of an earlier conductor.

        Not later: a user may stop the workers while the first step runs, which may be a native one. Then the request
        must hold when the coordinator begins.

        Raises:
            StudyError: the session is being stopped.
        """
        with self._members.locked():
            if not self._members.living(without=plan.id):
                self._session.revoke_stop()
                self._session.revoke_leave()
                request_start(self._session.path)
            elif self._session.is_closed:
                raise StudyError(
                    f"The session in '{plan.session}' is being stopped; wait for its end, and resume the study with "
                    f"`maestro-celery resume {plan.root}`."
                )
            known = self._members.read(plan.id) or Member(
                id=plan.id, number=self._members.next_number(), root=str(plan.root), started_at=clock.now()
            )
            groups = known.groups or shared_groups(plan.settings)
            self._members.write(known.of_this_process(state=MemberState.RUNNING, ended_at=0.0, groups=groups))

    def announce_end(self) -> None:
        """Tell others at once that the study is being cancelled, so that a resume waits for the end of this process."""
        self._is_ending = True
        self._beat()

    def leave(self) -> list[Member]:
        """Leave the session; return its members that live on. The last member requests the stop of the workers.

        Raises:
            OSError: a file of the session cannot be changed now.
            StudyError: another process does not unlock the list of members.
        """
        if self._has_left:
            return self.others
        with self._members.locked():
            self.others = self._members.living(without=self._study)
            if not self.others:
                self._session.request_stop()
            self._members.change(self._study, state=MemberState.ENDED, ended_at=clock.now())
        self._has_left = True
        return self.others

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._beat()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the conductor
            self._session.conductors.write(
                clock.now_ns(), self.working, study=self._study, needs=self.needs, is_ending=self._is_ending
            )

    def release(self) -> None:
        """Release the lock, so that another process can conduct the study."""
        if not self._ended.is_set():
            self._ended.set()
            _LOCKS.pop(self._root, None)
            with contextlib.suppress(OSError, StudyError):
                self._session.conductors.end(self._study)
                self.leave()
            self._lock.release()


def _another(plan: StudyPlan) -> StudyError:
    return StudyError(
        f"Another conductor runs the study '{plan.root}'; wait for its end, or end it with "
        f"`maestro cancel {plan.root}`."
    )
