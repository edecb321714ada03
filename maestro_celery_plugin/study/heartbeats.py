"""Heartbeats: files in the session that show that the conductor and the workers are alive.

session/workers/<name>.json   heartbeat of a worker
session/conductor.json        heartbeat of the conductor, and the allocations with a busy worker
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.files import read_text, write_atomically

__all__ = ["SILENCE_LIMIT_S", "ConductorWatch", "Heartbeat", "Heartbeats"]

# A worker on another host counts as dead when its heartbeat has not changed for this long.
SILENCE_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The state that a worker writes every two seconds.

    Attributes:
        name: Name of the worker, unique in the session.
        group: Its worker group.
        host: Host name of its machine.
        node: Name of its machine in the batch system.
        supervisor: (pid, start time) of the supervisor process.
        process: (pid, start time) of the worker process; (0, 0) before it has started.
        slots: How many samples it runs in parallel.
        beat: A counter; if it does not change any more, the worker is dead.
        state: `starting`, `idle`, `busy`, `draining` or `stopping`.
        allocation: Its allocation, such as ``sim/2``; empty for a worker outside of the study's allocations.
        ends_at: End of the allocation (Unix seconds of the worker's machine); None for no end.
        refused: Number of messages that it has refused because they are unreadable or not of the session.
        refuses: Numbers of the step records whose samples it does not start any more, because the remaining
            time is too short.
    """

    name: str
    group: str
    host: str
    node: str
    supervisor: tuple[int, int]
    process: tuple[int, int]
    slots: int
    beat: int
    state: str
    allocation: str = ""
    ends_at: float | None = None
    refused: int = 0
    refuses: tuple[int, ...] = ()


class Heartbeats:
    """The heartbeats of one session.

    Args:
        directory: Directory of the session.
    """

    def __init__(self, directory: Path) -> None:
        self._workers, self._conductor = directory / "workers", directory / "conductor.json"

    def write(self, heartbeat: Heartbeat) -> None:
        """Store the heartbeat of a worker."""
        write_atomically(self.path_of(heartbeat.name), conversion.to_json(heartbeat), mode=0o600)

    def path_of(self, name: str) -> Path:
        """Return the file with the heartbeat of a worker."""
        return self._workers / f"{name}.json"

    def remove(self, name: str) -> None:
        """Remove the heartbeat of a worker that has ended or died, and the request to stop it."""
        for suffix in ("json", "stop"):
            (self._workers / f"{name}.{suffix}").unlink(missing_ok=True)

    def all(self, prefix: str = "") -> list[Heartbeat]:
        """Return the heartbeats of all workers whose name begins with `prefix`."""
        paths = sorted(path for path in self._workers.glob("*.json") if path.stem.startswith(prefix))
        return [beat for path in paths if (beat := _read(path)) is not None]

    def write_conductor(self, beat: int, working: Iterable[str] | None = None) -> None:
        """Store the heartbeat of the conductor.

        Args:
            beat: A number that differs from that of the last heartbeat.
            working: The allocations with a busy worker; None when the conductor does not know them.
        """
        names = None if working is None else sorted(working)
        text = json.dumps({"beat": beat, "working": names, "pid": os.getpid()})
        write_atomically(self._conductor, text, mode=0o600)

    def read_conductor(self) -> tuple[int, tuple[str, ...] | None]:
        """Return the heartbeat of the conductor (0 without one), and the allocations with a busy worker."""
        try:
            values: dict[str, Any] = json.loads(read_text(self._conductor))
        except (FileNotFoundError, json.JSONDecodeError):
            values = {}
        working = values.get("working")
        return int(values.get("beat", 0)), None if working is None else tuple(working)


def _read(path: Path) -> Heartbeat | None:
    """Return the heartbeat in a file; None if it was removed, or is empty after a crash of its machine."""
    try:
        return conversion.from_json(Heartbeat, read_text(path))
    except (FileNotFoundError, ValueError):
        return None


class ConductorWatch:
    """The conductor as a worker sees it.

    Args:
        heartbeats: The heartbeats of the session.

    Attributes:
        working: The allocations in which the conductor sees a busy worker; None when it does not know them.
    """

    def __init__(self, heartbeats: Heartbeats) -> None:
        self._heartbeats = heartbeats
        self._beat = 0
        self._changed_at = clock.monotonic()
        self.working: tuple[str, ...] | None = None

    def refresh(self) -> None:
        """Read the heartbeat of the conductor."""
        beat, self.working = self._heartbeats.read_conductor()
        if beat != self._beat:
            self._beat, self._changed_at = beat, clock.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the last change of the heartbeat, measured by the clock of this machine."""
        return clock.monotonic() - self._changed_at
