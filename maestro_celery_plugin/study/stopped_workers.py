"""The request of a user or a sample to stop workers: a file that the conductor follows until the study is resumed.

    session/workers_stopped   {"groups": ["sim"] or null for all, "reason": text, "time": Unix seconds, "now": false}

Samples that have not run wait. Workers that a user starts later with `maestro-celery workers` are not concerned.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection
from pathlib import Path

from filelock import FileLock

from maestro_celery_plugin import clock
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_json, write_atomically

__all__ = ["StoppedGroups", "read_stopped", "request_start", "request_worker_stop", "stopped_version"]

_FILE = "workers_stopped"
_LOCK_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoppedGroups:
    """The worker groups whose workers are stopped.

    Attributes:
        groups: Names of the groups; None for all.
        reason: Why, as a sentence for the user: who has stopped them.
        time: Time of the last request (Unix seconds).
        now: Whether running samples end as well, and run again later.
    """

    groups: tuple[str, ...] | None
    reason: str = ""
    time: float = 0.0
    now: bool = False

    def include(self, group: str) -> bool:
        """Tell whether the workers of a group are stopped."""
        return self.groups is None or group in self.groups

    @property
    def sentence(self) -> str:
        """Which workers are stopped, and why."""
        groups = "all groups" if self.groups is None else f"group {', '.join(map(repr, self.groups))}"
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
    """Return which workers are stopped; None if no request exists, or if a crash has emptied the file.

    Args:
        session: Directory of the session.

    Raises:
        OSError: the file cannot be read now.
    """
    try:
        return conversion.from_dict(StoppedGroups, read_json(session / _FILE))
    except (FileNotFoundError, DamagedFileError, ValueError):
        return None


def stopped_version(session: Path) -> tuple[int, int] | None:
    """Return what changes with each request; None without a request.

    Raises:
        OSError: the file cannot be read now.
    """
    try:
        status = (session / _FILE).stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def request_worker_stop(
    session: Path, groups: Collection[str] | None, reason: str, *, now: bool = False
) -> StoppedGroups:
    """Request that the workers of these groups, and those of earlier requests, stop; return the whole request.

    Args:
        session: Directory of the session.
        groups: Names of worker groups; None for all.
        reason: Why, as a sentence for the user.
        now: Whether running samples end as well.

    Raises:
        OSError: the request cannot be written.
        Timeout: another process changes the request, and does not finish.
    """
    with FileLock(session / f"{_FILE}.lock").acquire(timeout=_LOCK_LIMIT_S):
        earlier = read_stopped(session)
        before = () if earlier is None else earlier.groups
        names = None if groups is None or before is None else tuple(sorted({*before, *groups}))
        request = StoppedGroups(groups=names, reason=reason, time=clock.now(), now=now)
        write_atomically(session / _FILE, json.dumps(dataclasses.asdict(request)), mode=0o600)
    return request


def request_start(session: Path) -> None:
    """Remove the request, so that the conductor starts workers again.

    Raises:
        OSError: the request cannot be removed.
    """
    (session / _FILE).unlink(missing_ok=True)
