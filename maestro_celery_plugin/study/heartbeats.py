"""Heartbeats: files in the session that show that the workers are alive (`conductor_beats.py`: the conductors).

session/workers/<name>.json     heartbeat of a worker
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count, ProcessFields, UnixTime
from maestro_celery_plugin.files import file_system_now, read_text, refresh_directory, write_atomically
from maestro_celery_plugin.machine import is_this_machine
from maestro_celery_plugin.states import WorkerState

__all__ = ["SILENCE_LIMIT_S", "Heartbeat", "Heartbeats"]

# A worker on another host counts as dead when its heartbeat has not changed for this long.
SILENCE_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The state that a worker writes every two seconds.

    Attributes:
        name: Name of the worker, unique in the session.
        group: Its worker group.
        host: Host name of its machine, for messages.
        node: Name of its machine in the batch system.
        supervisor: (pid, start time) of the supervisor process.
        process: (pid, start time) of the worker process.
        slots: How many samples it runs in parallel.
        beat: A counter; if it does not change any more, the worker is dead.
        state: Its state.
        allocation: Its allocation, such as ``sim/2``; empty for a worker outside of the study's allocations.
        ends_at: End of the allocation (Unix seconds of the worker's machine); None for no end.
        refused_messages: Number of messages that it has refused because they are unreadable or not of the session.
        out_of_time: (study, number of the step record) whose samples it does not start any more, because the
            remaining time is too short.
        machine: Identity of its machine (`machine.machine_id`); empty in a heartbeat of release 0.1.
        started_at: Start of the worker (Unix seconds of its machine), for users; None in a heartbeat of release 0.1.
    """

    name: str
    group: str
    host: str
    node: str
    supervisor: ProcessFields
    process: ProcessFields
    slots: Count
    beat: int
    state: WorkerState
    allocation: str = ""
    ends_at: UnixTime | None = None
    refused_messages: Count = 0
    out_of_time: tuple[tuple[str, int], ...] = ()
    machine: str = ""
    started_at: UnixTime | None = None

    @property
    def place(self) -> tuple[str, str]:
        """The machine of the worker; workers on one machine have equal places."""
        return self.machine, self.host

    @property
    def is_here(self) -> bool:
        """Whether the worker runs on this machine, so that its process numbers can be checked."""
        return is_this_machine(self.machine, self.host)

    @property
    def is_in_numbered_allocation(self) -> bool:
        """Whether the conductor has opened its allocation: one in which a user starts workers has no number."""
        return bool(self.allocation.partition("/")[2])


class Heartbeats:
    """The heartbeats of one session.

    Args:
        directory: Directory of the session.
    """

    def __init__(self, directory: Path) -> None:
        self._workers = directory / "workers"

    def write(self, heartbeat: Heartbeat) -> None:
        """Store the heartbeat of a worker; if the disk is full, overwrite the last one, which needs no space.

        Raises:
            OSError: the heartbeat cannot be written.
        """
        path, text = self.path_of(heartbeat.name), conversion.to_json(heartbeat)
        try:
            write_atomically(path, text, mode=0o600, durable=False)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
                raise
            with path.open("r+b") as file:
                file.write(text.encode())
                file.truncate()

    def path_of(self, name: str) -> Path:
        """Return the file with the heartbeat of a worker."""
        return self._workers / f"{name}.json"

    def remove(self, name: str) -> None:
        """Remove the heartbeat of a worker that has ended or died, the requests to it, and its acquittal."""
        for suffix in ("json", "stop", "leave", "acquitted"):
            (self._workers / f"{name}.{suffix}").unlink(missing_ok=True)

    def acquit(self, name: str) -> None:
        """Tell a held worker that it may continue."""
        (self._workers / f"{name}.acquitted").touch()

    def take_acquittal(self, name: str) -> bool:
        """Tell whether a held worker may continue, and remove the answer."""
        path = self._workers / f"{name}.acquitted"
        if not path.exists():
            return False
        path.unlink(missing_ok=True)
        return True

    def refresh(self) -> None:
        """Let `all` include workers that have begun on other nodes a moment ago (NFS caches the names of files)."""
        refresh_directory(self._workers)

    def all(self, prefix: str = "") -> list[Heartbeat]:
        """Return the heartbeats of all workers whose name begins with `prefix`, without those that cannot be read now.

        Raises:
            OSError: the directory cannot be read.
        """
        return self.read(prefix)[0]

    def read(self, prefix: str = "") -> tuple[list[Heartbeat], dict[str, OSError]]:
        """Return the heartbeats of all workers whose name begins with `prefix`, and the errors of the unreadable ones.

        A worker whose heartbeat cannot be read now may be alive, in any state.

        Raises:
            OSError: the directory cannot be read.
        """
        beats: list[Heartbeat] = []
        unreadable: dict[str, OSError] = {}
        for name in self._names(prefix):
            try:
                beat = _read(self.path_of(name))
            except OSError as error:
                unreadable[name] = error
            else:
                beats += [beat] if beat is not None else []
        return beats, unreadable

    def _names(self, prefix: str) -> list[str]:
        try:
            files = os.listdir(self._workers)  # noqa: PTH208 (Path.glob hides that the directory cannot be read)
        except FileNotFoundError:
            return []
        names = (file.removesuffix(".json") for file in files if file.endswith(".json"))
        return sorted(name for name in names if name.startswith(prefix))

    def exists(self, name: str) -> bool:
        """Tell whether a worker has a heartbeat; true if this cannot be known now."""
        try:
            self.path_of(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def version(self, name: str) -> tuple[int, int] | None:
        """Return what changes with each heartbeat of a worker, although it cannot be read; None if it is not known."""
        try:
            status = self.path_of(name).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def live_elsewhere(self) -> list[Heartbeat]:
        """Return the heartbeats of workers on other machines that are not older than `SILENCE_LIMIT_S`.

        Raises:
            OSError: a heartbeat cannot be read, so that its worker may be alive on another machine.
        """
        beats, unreadable = self.read()
        for error in unreadable.values():
            raise error
        return self.fresh([beat for beat in beats if not beat.is_here])

    def fresh(self, beats: Iterable[Heartbeat]) -> list[Heartbeat]:
        """Return the heartbeats that are not older than `SILENCE_LIMIT_S`, by the clock of the file system."""
        now = file_system_now(self._workers)
        fresh = []
        for beat in beats:
            with contextlib.suppress(OSError):  # the worker has ended meanwhile
                if now - self.path_of(beat.name).stat().st_mtime < SILENCE_LIMIT_S:
                    fresh.append(beat)
        return fresh


def _read(path: Path) -> Heartbeat | None:
    """Return the heartbeat in a file; None if it was removed, is damaged after a crash, or is that of another worker.

    Raises:
        OSError: the file cannot be read now.
    """
    try:
        beat = conversion.from_json(Heartbeat, read_text(path))
    except (FileNotFoundError, ValueError):
        return None
    return beat if beat.name == path.stem else None
