"""The members of a session: the study that has begun it, and the studies that its samples and steps have started.

    session/studies/<id>.json   0600  one member; only one process at a time changes it
    session/studies.lock              locked while a member joins or leaves

A session goes on as long as one of its members lives. The member that leaves last ends the workers and the broker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count, Environment, ProcessFields, UnixTime, Word
from maestro_celery_plugin.errors import DamagedFileError, StudyError
from maestro_celery_plugin.files import file_system_now, is_locked, read_json, refresh_directory, write_atomically
from maestro_celery_plugin.machine import is_this_machine, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.conductor_beats import ConductorBeats

__all__ = ["DEPTH_LIMIT", "Member", "Members"]

# The longest chain of studies that start each other, without `--max-depth`.
DEPTH_LIMIT = 100
# A launch on another machine, whose process cannot be seen from here, may take this long.
LAUNCH_LIMIT_S = 300.0
# The host starts a conductor within a second; a request that is older counts as forgotten.
REQUEST_LIMIT_S = 60.0
_LOCK_LIMIT_S = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A study of a session.

    Attributes:
        id: Identity of the study (`StudyPlan.id`).
        number: Its number in the session, from 1.
        parent: Identity of the study that has started it; empty for the first one.
        depth: Number of studies in the chain above it; 0 for the first one.
        root: Directory of the study; empty while its launch has not created it.
        state: Its state.
        process: (pid, start time) of its launch, then of its conductor.
        machine: The machine of this process (`machine.machine_id`).
        started_at: Time of the launch (Unix seconds).
        ended_at: Time of its end (Unix seconds); 0 before.
        started_by: The step record and sample that have started it, as text; empty for the first one.
        specification: Its specification.
        variables: The values of `--vars`.
        groups: Configurations of its worker groups (`GroupConfig`) by name, for studies that would share them.
        conductor: The words of the command that starts its conductor.
        directory: The current directory of its conductor.
        log: The file for the output of its conductor.
        options: Options of `maestro run` by name, which studies that it starts inherit.
        waits_in: The worker group of the sample that waits for its end (`-fg`); empty without one.
        problem: Why the host could not start its conductor; empty otherwise.
        restarts: How often the host of the session has started its conductor again.
    """

    id: str
    number: Count = 0
    parent: str = ""
    depth: Count = 0
    root: Word = ""
    state: MemberState = MemberState.LAUNCHED
    process: ProcessFields = (0, 0)
    machine: str = ""
    started_at: UnixTime = 0.0
    ended_at: UnixTime = 0.0
    started_by: str = ""
    specification: str = ""
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    conductor: tuple[Word, ...] = ()
    directory: Word = "/"
    log: Word = "/dev/null"
    options: dict[str, int] = dataclasses.field(default_factory=dict)
    waits_in: str = ""
    problem: str = ""
    restarts: Count = 0

    @property
    def lock(self) -> Path:
        """The file that the conductor of an ensemble locks while it lives (`conductor_lock.py`)."""
        return Path(self.root, "merlin_info", "conductor.lock")

    def of_this_process(self, **changes: Any) -> Member:
        """Return the member with this process as its process."""
        own = ProcessId.of(os.getpid())
        return dataclasses.replace(self, process=(own.pid, own.start), machine=machine_id(), **changes)


class Members:
    """The members of one session.

    Args:
        session: Directory of the session.
    """

    def __init__(self, session: Path) -> None:
        self._session, self._directory = session, session / "studies"
        self._conductors = ConductorBeats(session)
        self._version: tuple[int, int] | None = None
        self._cache: dict[str, tuple[tuple[int, int], Member]] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from joining and leaving; meanwhile, this node sees those that have joined on other nodes.

        Raises:
            OSError: a directory of the session cannot be changed now.
            StudyError: another process does not finish.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(self._session / "studies.lock")
        try:
            lock.acquire(timeout=_LOCK_LIMIT_S)
        except Timeout as cause:
            raise StudyError(
                f"The list of studies in '{self._session}' has been locked for {_LOCK_LIMIT_S:.0f} s; try again, and "
                "end the process that holds the lock if it does not answer."
            ) from cause
        try:
            self._refresh()
            yield
        finally:
            lock.release()

    def _refresh(self) -> None:
        """See each member, and the heartbeat of its conductor: one that is missed would lose its workers."""
        refresh_directory(self._directory)
        self._conductors.refresh()

    def path_of(self, study_id: str) -> Path:
        """Return the file of a member."""
        return self._directory / f"{study_id}.json"

    def write(self, member: Member) -> None:
        """Store a member."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        write_atomically(self.path_of(member.id), conversion.to_json(member), mode=0o600)

    def read(self, study_id: str) -> Member | None:
        """Return a member; None if there is no such member, or if a crash has damaged its file."""
        try:
            member = conversion.from_dict(Member, read_json(self.path_of(study_id)))
        except (FileNotFoundError, DamagedFileError, ValueError):
            return None
        return member if member.id == study_id else None

    def change(self, study_id: str, **values: Any) -> Member | None:
        """Change values of a member, if it exists; return it."""
        member = self.read(study_id)
        if member is not None:
            member = dataclasses.replace(member, **values)
            self.write(member)
        return member

    def remove(self, study_id: str) -> None:
        """Remove a member whose launch has failed."""
        for path in (self.path_of(study_id), self.environment_of(study_id)):
            path.unlink(missing_ok=True)

    def have_changed(self) -> bool:
        """Tell whether a member has been stored or removed since the last call, as this node sees the directory."""
        try:
            status = self._directory.stat()
        except FileNotFoundError:
            return False
        before, self._version = self._version, (status.st_mtime_ns, status.st_ino)
        return before != self._version

    def all(self) -> list[Member]:
        """Return all members, in the order in which they have joined; only changed files are read again."""
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 (the names only)
        except FileNotFoundError:
            return []
        found = [self._cached(name.removesuffix(".json")) for name in names if _is_member(name)]
        return sorted((member for member in found if member is not None), key=lambda member: member.number)

    def _cached(self, study_id: str) -> Member | None:
        try:
            status = self.path_of(study_id).stat()
        except FileNotFoundError:
            return None
        version = status.st_mtime_ns, status.st_ino
        known = self._cache.get(study_id)
        if known is not None and known[0] == version:
            return known[1]
        member = self.read(study_id)
        if member is not None:
            self._cache[study_id] = version, member
        return member

    def living(self, *, without: str = "") -> list[Member]:
        """Return the members that live: they run, or are about to.

        Args:
            without: Identity of a member that is left out.
        """
        return [member for member in self.all() if member.id != without and self.is_alive(member)]

    def is_alive(self, member: Member) -> bool:
        """Tell whether a member runs, or is about to run."""
        if member.state is MemberState.ENDED:
            return False
        if member.state is MemberState.REQUESTED:
            return self._age_s(member) < REQUEST_LIMIT_S
        if member.state is MemberState.RUNNING and (_has_lock(member) or self._conductors.live_elsewhere(member.id)):
            return True
        if is_this_machine(member.machine):  # a conductor needs some time until it holds the lock
            return ProcessId(*member.process).is_alive
        if member.state is MemberState.LAUNCHED:
            return self._age_s(member) < LAUNCH_LIMIT_S
        is_ensemble = member.lock.parent.is_dir()
        return not is_ensemble or self._age_s(member) < REQUEST_LIMIT_S

    def _age_s(self, member: Member) -> float:
        try:
            return file_system_now(self._directory) - self.path_of(member.id).stat().st_mtime
        except OSError:
            return 0.0

    def next_number(self) -> int:
        """Return the number of the next member."""
        return 1 + max((member.number for member in self.all()), default=0)

    # --- the environment of a member ---

    def environment_of(self, study_id: str) -> Path:
        """Return the file with the variables of `--env-file` of a member, which may have secrets."""
        return self._directory / f"{study_id}.environment.json"

    def write_environment(self, study_id: str, variables: Mapping[str, str]) -> None:
        """Store the variables of `--env-file` of a member."""
        if variables:
            write_atomically(self.environment_of(study_id), json.dumps(dict(variables)), mode=0o600)

    def read_environment(self, study_id: str) -> dict[str, str]:
        """Return the variables of `--env-file` of a member.

        Raises:
            DamagedFileError: the file is damaged.
        """
        path = self.environment_of(study_id)
        try:
            return conversion.from_dict(Environment, read_json(path))
        except FileNotFoundError:
            return {}
        except ValueError as cause:
            raise DamagedFileError.at(path, "it must have the variables of --env-file as JSON") from cause


def _is_member(name: str) -> bool:
    return name.endswith(".json") and name.count(".") == 1


def _has_lock(member: Member) -> bool:
    """Tell whether a conductor has the lock of a member; the directory of one must not hide the others."""
    try:
        return is_locked(member.lock)
    except OSError:
        return False
