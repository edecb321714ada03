"""The conductorship of a study: the lock that its conductor holds, and the heartbeat by which workers know of it.

Maestro's conductor is away for as long as a step takes that it runs itself (localscriptadapter.py:136-139).
So the heartbeat has a thread of its own: it ends with the process, and does not wait for the polls.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.study.layout import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["LOCK_LIMIT_S", "Conductorship", "conduct", "conductor_lock", "take_news"]

BEAT_INTERVAL_S = 2.0
# Workers look for a change: one that leaves after a short `idle_limit` has to see several within it.
BEATS_PER_IDLE_LIMIT = 4
# Others look at the conductor's lock for a moment, to see whether it is held.
LOCK_LIMIT_S = 2.0

_HELD: dict[Path, Conductorship] = {}


def conductor_lock(plan: StudyPlan) -> FileLock:
    """Return the lock that the conductor of a study holds while it lives."""
    return FileLock(plan.info / "conductor.lock")


def conduct(plan: StudyPlan) -> Conductorship:
    """Return this process's conductorship of a study; taken at the first call.

    Raises:
        StudyError: another conductor of this study lives.
    """
    if plan.root not in _HELD:
        _HELD[plan.root] = Conductorship(plan)
    return _HELD[plan.root]


def take_news() -> bool:
    """Tell whether Maestro shall look again at once, for any study of this process; say so once."""
    news = [held for held in _HELD.values() if held.has_news]
    for held in news:
        held.has_news = False
    return bool(news)


class Conductorship:
    """This process is the conductor of a study until `end`, or until it dies.

    Args:
        plan: The study.

    Attributes:
        has_news: Whether something has ended while Maestro was looking, so that it shall look again.
        working: The allocations of which a worker has something to do; None while nobody looks. The heartbeat tells
            the workers, each of which would else have to read the heartbeats of all others.

    Raises:
        StudyError: another conductor of this study lives.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self.has_news = False
        self.working: frozenset[str] | None = None
        self._root = plan.root
        self._lock = conductor_lock(plan)
        try:
            self._lock.acquire(timeout=LOCK_LIMIT_S)
        except Timeout as cause:
            raise StudyError(f"Another conductor is running the study '{plan.root}'.") from cause
        self._session = Session(plan.session)
        idle_limits_s = [group.idle_limit for group in plan.settings.resources.workers.values()]
        self._interval_s = min([BEAT_INTERVAL_S, *(limit_s / BEATS_PER_IDLE_LIMIT for limit_s in idle_limits_s)])
        self._ended = threading.Event()
        self._beat()
        threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True).start()
        atexit.register(self.end)

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._beat()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the conductor
            self._session.write_conductor_beat(time.time_ns(), self.working)

    def end(self) -> None:
        """Let others conduct the study."""
        if not self._ended.is_set():
            self._ended.set()
            _HELD.pop(self._root, None)
            self._lock.release()
