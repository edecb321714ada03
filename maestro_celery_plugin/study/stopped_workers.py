"""The requests of users and samples to stop workers: a file that the conductor follows until the study is resumed.

    session/workers_stopped   {"requests": [{"groups": ["sim"] or null for all, "reason": text, "time": Unix seconds,
                              "now": false, "workers": ["sim-1"]}]}

Samples that have not run wait. Workers that a user starts later with `maestro-celery workers` are not concerned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from filelock import FileLock

from maestro_celery_plugin import clock
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import UnixTime
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_json, refresh_directory, write_atomically
from maestro_celery_plugin.study.file_version import version_of
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import claimed_names

__all__ = ["StoppedGroups", "WorkerStop", "read_stopped", "request_start", "request_worker_stop", "stopped_version"]

_FILE = "workers_stopped"
_LOCK_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerStop:
    """One request to stop workers.

    Attributes:
        groups: Names of worker groups; None for all.
        reason: Why, as a sentence for the user: who has stopped them.
        time: Time of the request (Unix seconds).
        now: Whether running samples end as well, and run again later.
        workers: Names of all workers that had started before the request, or were about to start.
    """

    groups: tuple[str, ...] | None
    reason: str = ""
    time: UnixTime = 0.0
    now: bool = False
    workers: frozenset[str] = frozenset()

    def include(self, group: str) -> bool:
        """Tell whether the workers of a group are stopped."""
        return self.groups is None or group in self.groups

    def replaces(self, earlier: WorkerStop) -> bool:
        """Tell whether an earlier request asks for nothing more than this one."""
        has_all = self.groups is None or (earlier.groups is not None and set(earlier.groups) <= set(self.groups))
        return has_all and (self.now or not earlier.now)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoppedGroups:
    """The worker groups whose workers are stopped, by one or more requests.

    Attributes:
        requests: The requests, at least one; the last one comes last.
    """

    requests: tuple[WorkerStop, ...]

    @property
    def groups(self) -> tuple[str, ...] | None:
        """Names of the groups; None for all."""
        names: set[str] = set()
        for request in self.requests:
            if request.groups is None:
                return None
            names.update(request.groups)
        return tuple(sorted(names))

    @property
    def reason(self) -> str:
        """Why, as a sentence for the user: who has made the last request."""
        return self.requests[-1].reason

    def include(self, group: str) -> bool:
        """Tell whether the workers of a group are stopped."""
        return any(request.include(group) for request in self.requests)

    def end_now(self, group: str) -> bool:
        """Tell whether running samples of a group end as well."""
        return any(request.now and request.include(group) for request in self.requests)

    def to_json(self) -> dict[str, Any]:
        """Return the stopped groups in the output of `status --json`; scripts rely on these keys."""
        last = self.requests[-1]
        return {
            "groups": None if self.groups is None else list(self.groups),
            "reason": self.reason,
            "time": last.time,
            "now": last.now,
        }

    @property
    def sentence(self) -> str:
        """Which workers are stopped, and why."""
        names = self.groups
        word = "group" if names is not None and len(names) == 1 else "groups"
        groups = "all groups" if names is None else f"{word} {', '.join(map(repr, names))}"
        return f"The workers of {groups} are stopped. {self.reason}"

    def advice(self, study: Path) -> str:
        """Return why the workers are stopped, and what starts them again.

        Args:
            study: Directory of the study.
        """
        root = shlex.quote(str(study))
        return (
            f"{self.reason} The study waits: `maestro-celery resume {root}` starts its workers again, "
            f"`maestro-celery workers {root}` starts workers on the machine where you type it."
        )


def read_stopped(session: Path) -> StoppedGroups | None:
    """Return which workers are stopped; None without a request, or if a crash has emptied the file.

    Args:
        session: Directory of the session.

    Raises:
        OSError: the file cannot be read now.
    """
    try:
        stopped = conversion.from_dict(StoppedGroups, read_json(session / _FILE))
    except (FileNotFoundError, DamagedFileError, ValueError):
        return None
    return stopped if stopped.requests else None


def stopped_version(session: Path) -> tuple[int, int] | None:
    """Return what changes with each request; None without a request.

    Raises:
        OSError: the file cannot be read now.
    """
    return version_of(session / _FILE)


def request_worker_stop(
    session: Path, groups: Collection[str] | None, reason: str, *, now: bool = False
) -> StoppedGroups:
    """Request that the workers of these groups stop; return all requests that are in force.

    Args:
        session: Directory of the session.
        groups: Names of worker groups; None for all.
        reason: Why, as a sentence for the user.
        now: Whether running samples end as well.

    Raises:
        OSError: the request cannot be written.
        Timeout: another process changes the requests, and does not finish.
    """
    with FileLock(session / f"{_FILE}.lock").acquire(timeout=_LOCK_LIMIT_S):
        request = WorkerStop(
            groups=None if groups is None else tuple(sorted(groups)),
            reason=reason,
            time=clock.now(),
            now=now,
            workers=claimed_names(Session(session)),
        )
        stopped = read_stopped(session)
        earlier = () if stopped is None else stopped.requests
        stopped = StoppedGroups(requests=(*(one for one in earlier if not request.replaces(one)), request))
        write_atomically(session / _FILE, conversion.to_json(stopped), mode=0o600)
    return stopped


def request_start(session: Path) -> None:
    """Remove all requests, so that the conductor starts workers again.

    Raises:
        OSError: the requests cannot be removed.
        Timeout: another process changes the requests, and does not finish.
    """
    with contextlib.suppress(OSError):  # NFS also caches that a file does not exist
        refresh_directory(session)
    if (session / _FILE).exists():
        with FileLock(session / f"{_FILE}.lock").acquire(timeout=_LOCK_LIMIT_S):
            (session / _FILE).unlink(missing_ok=True)
