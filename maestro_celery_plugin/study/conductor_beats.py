"""The heartbeats of the conductors of a session, for its workers and for each other.

session/conductors/<id>.json    the conductor of a study: the allocations with a busy worker, and the worker groups that
                                the study needs
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count
from maestro_celery_plugin.files import file_system_now, read_text, refresh_directory, write_atomically
from maestro_celery_plugin.machine import is_this_machine, machine_id

__all__ = ["CONDUCTOR_LIMIT_S", "ConductorBeat", "ConductorBeats", "ConductorWatch"]

# A conductor on another host, whose lock this host cannot see, counts as dead when its heartbeat is older than this.
CONDUCTOR_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConductorBeat:
    """The heartbeat of a conductor, or of all conductors of a session.

    Attributes:
        beat: A number that changes; 0 without a heartbeat.
        working: The allocations with a busy worker; None when a conductor does not know them.
        machine: Identity of its machine (`machine.machine_id`); empty when unknown, or for several machines.
        needs: The worker groups with work, or with work in the future; None when the conductor does not know them.
        is_ending: Whether the study is being cancelled.
    """

    beat: Count = 0
    working: tuple[str, ...] | None = None
    machine: str = ""
    needs: tuple[str, ...] | None = None
    is_ending: bool = False


class ConductorBeats:
    """The heartbeats of the conductors of one session.

    Args:
        directory: Directory of the session.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "conductors"

    def write(
        self,
        beat: int,
        working: Iterable[str] | None = None,
        *,
        study: str = "0",
        needs: Iterable[str] | None = None,
        is_ending: bool = False,
    ) -> None:
        """Store the heartbeat of the conductor of a study.

        Args:
            beat: A number that differs from that of the last heartbeat.
            working: The allocations with a busy worker; None when the conductor does not know them.
            study: Identity of the study.
            needs: The worker groups that the study needs; None when the conductor does not know them.
            is_ending: Whether the study is being cancelled.
        """
        values = {
            "beat": beat,
            "working": None if working is None else sorted(working),
            "pid": os.getpid(),
            "machine": machine_id(),
            "needs": None if needs is None else sorted(needs),
            "is_ending": is_ending,
        }
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._store(study, values)

    def end(self, study: str) -> None:
        """Store that a conductor, which has ended or died, lives on no machine and needs no workers.

        Raises:
            OSError: the heartbeat cannot be written.
        """
        beat = self.read(study).beat
        if beat:
            self._store(study, {"beat": beat, "working": [], "pid": os.getpid(), "machine": "", "needs": []})

    def _store(self, study: str, values: dict[str, Any]) -> None:
        write_atomically(self._path(study), json.dumps(values), mode=0o600, durable=False)

    def refresh(self) -> None:
        """See the heartbeats of conductors that have begun on other nodes a moment ago (NFS caches the names of files).

        Raises:
            OSError: the directory cannot be changed.
        """
        refresh_directory(self._directory)

    def live_elsewhere(self, *studies: str) -> bool:
        """Tell whether a conductor of these studies on another machine has written its heartbeat a moment ago.

        This machine may not see its lock: on some file systems, each machine has locks of its own.
        """
        return any(self._lives_elsewhere(study) for study in studies)

    def _lives_elsewhere(self, study: str) -> bool:
        with contextlib.suppress(OSError):
            if not is_this_machine(self.read(study).machine):
                written_at = self._path(study).stat().st_mtime
                return file_system_now(self._directory) - written_at < CONDUCTOR_LIMIT_S
        return False

    def studies(self) -> list[str]:
        """Return the studies with a heartbeat of a conductor."""
        try:
            files = os.listdir(self._directory)  # noqa: PTH208 (the names only)
        except OSError:
            return []
        return [name.removesuffix(".json") for name in files if name.endswith(".json")]

    def _path(self, study: str) -> Path:
        return self._directory / f"{study}.json"

    def read(self, study: str) -> ConductorBeat:
        """Return the heartbeat of a conductor; an empty one if there is none, or if a crash has damaged it."""
        try:
            return conversion.from_json(ConductorBeat, read_text(self._path(study)))
        except (FileNotFoundError, ValueError):
            return ConductorBeat()

    def read_all(self) -> ConductorBeat:
        """Return the heartbeats of all conductors as one, which changes when one of them changes."""
        beats = [beat for beat in map(self.read, self.studies()) if beat.beat]
        if len(beats) == 1:
            return beats[0]
        machines = {beat.machine for beat in beats} - {""}
        return ConductorBeat(
            beat=sum(beat.beat for beat in beats),
            working=_union(beat.working for beat in beats) if beats else None,
            machine=machines.pop() if len(machines) == 1 else "",
            needs=_union(beat.needs for beat in beats) if beats else None,
        )


def _union(parts: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Return all names of several parts; None if one of them is unknown."""
    known: set[str] = set()
    for part in parts:
        if part is None:
            return None
        known.update(part)
    return tuple(sorted(known))


class ConductorWatch:
    """The conductors of its session as a worker sees them.

    Args:
        beats: The heartbeats of the conductors.

    Attributes:
        working: The allocations in which a conductor sees a busy worker; None when this is not known.
        is_here: Whether the conductors run on this machine, where they can see which processes live.
    """

    def __init__(self, beats: ConductorBeats) -> None:
        self._beats = beats
        self._beat = 0
        self._changed_at = clock.monotonic()
        self.working: tuple[str, ...] | None = None
        self.is_here = False

    def refresh(self) -> None:
        """Read the heartbeats of the conductors."""
        conductor = self._beats.read_all()
        self.working = conductor.working
        if conductor.beat not in (0, self._beat):  # 0 while the directory cannot be read, which is no sign of life
            self._beat, self._changed_at = conductor.beat, clock.monotonic()
            self.is_here = bool(conductor.machine) and is_this_machine(conductor.machine)

    @property
    def silent_s(self) -> float:
        """Seconds since the last change of a heartbeat, measured by the clock of this machine."""
        return clock.monotonic() - self._changed_at
