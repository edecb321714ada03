"""The processes of a study on this machine: its workers, its broker, its conductors and its samples.

Files cannot tell which processes a dead conductor has left, so this module looks at the processes themselves:

- A worker, the host of a session or a conductor has the path of its session or study in its command line.
- A sample has the mark of its worker in its environment.
- A sample that has cleared its environment and has left its process session still has its current directory in the
  workspace of a step. Such a process counts only if its parent is dead and it has no terminal: a user may work there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import psutil

from maestro_celery_plugin.processes import end_found, marked
from maestro_celery_plugin.study.worker_identity import MARKER, WORKER_MODULE

__all__ = ["Ended", "StudyProcesses"]

_HOST = "maestro_celery_plugin.host"
# Directories in the root of a study that are not the workspace of a step.
_NO_WORKSPACES = ("merlin_info", "logs", "meta")
# The processes, besides process 1, that become the parent of a process whose parent has died (prctl(2),
# PR_SET_CHILD_SUBREAPER). A batch system is not among them, because it is the parent of a live job's script as well.
_ADOPTERS = ("systemd",)
# A supervisor ends its worker with SIGTERM, then with SIGKILL after eight seconds; a host ends within five seconds.
_WORKER_LIMIT_S = 12.0
_HOST_LIMIT_S = 8.0
_SAMPLE_LIMIT_S = 5.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """What was ended on this machine.

    Attributes:
        workers: The number of workers.
        hosts: The number of hosts of the session.
        samples: The number of processes of samples that had no worker any more.
        remaining: The numbers of processes that cannot be ended.
    """

    workers: int
    hosts: int
    samples: int
    remaining: tuple[int, ...]

    @property
    def text(self) -> str:
        """What was ended, such as ``1 worker with its samples, the private broker``; empty for nothing."""
        parts = []
        if self.workers:
            parts.append(
                "1 worker with its samples" if self.workers == 1 else f"{self.workers} workers with their samples"
            )
        if self.samples:
            noun = "process" if self.samples == 1 else "processes"
            parts.append(f"{self.samples} {noun} of samples without a worker")
        if self.hosts:
            parts.append("the host of its session")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    name: str
    words: list[str]
    directory: str
    has_terminal: bool


class StudyProcesses:
    """Finds and ends the processes of one study.

    Args:
        root: The directory of the study, as an absolute path.
        session: The directory of its session; None for its own.
    """

    def __init__(self, root: Path, session: Path | None = None) -> None:
        self._root, self._session = root, session or root / "merlin_info" / "session"

    def conductors(self) -> list[int]:
        """Return the conductors, including those that have not locked the study yet."""
        table, caller = _table()
        return [
            one.pid
            for one in table.values()
            if one.pid not in caller
            and str(self._root) in one.words
            and any(Path(word).name == "conductor" for word in one.words[:3])
        ]

    def workers(self) -> list[int]:
        """Return the supervisors of workers, or workers whose supervisor is dead."""
        return self._modules(WORKER_MODULE)

    def hosts(self) -> list[int]:
        """Return the hosts of the session, which keep the private broker."""
        return self._modules(_HOST)

    def _modules(self, module: str) -> list[int]:
        table, caller = _table()
        found = self._all_of(table, module)
        return [pid for pid in found if pid not in caller and table[pid].parent not in found]

    def _all_of(self, table: dict[int, _Process], module: str) -> set[int]:
        return {one.pid for one in table.values() if module in one.words and str(self._session) in one.words}

    def orphans(self, workspaces: Collection[Path] | None = None) -> list[int]:
        """Return the processes of samples whose worker on this machine is dead.

        Args:
            workspaces: The workspaces of the steps; None for all directories that may be one.
        """
        table, caller = _table()
        workers = self._all_of(table, WORKER_MODULE)
        with_mark = set(marked(MARKER, f"{self._session}:"))
        places = self._places(workspaces)
        in_place = {one.pid for one in table.values() if not one.has_terminal and _is_below(one.directory, places)}
        found = []
        for pid in (with_mark | in_place) & table.keys() - caller:
            line = list(_ancestors(table, pid))
            if workers.isdisjoint(line) and (pid in with_mark or _is_adopted(table, line, with_mark | in_place)):
                found.append(pid)
        return found

    def _places(self, workspaces: Collection[Path] | None) -> list[str]:
        if workspaces is None:
            with contextlib.suppress(OSError):
                workspaces = [path for path in self._root.iterdir() if path.name not in _NO_WORKSPACES]
        return [os.path.realpath(path) for path in workspaces or ()]

    def end_orphans(self, workspaces: Collection[Path]) -> Ended:
        """End the samples without a worker."""
        samples, remaining = end_found(lambda: self.orphans(workspaces), _SAMPLE_LIMIT_S)
        return Ended(workers=0, hosts=0, samples=len(samples), remaining=tuple(remaining))

    def end_all(self, request: Callable[[], None] = lambda: None) -> Ended:
        """End workers, which end their samples; then the samples without a worker; then the host of the session.

        Args:
            request: Asks workers and hosts to end. Those that do so before they get a signal count as ended, too.
        """
        present_workers, present_hosts = self.workers(), self.hosts()
        request()
        workers, workers_left = end_found(self.workers, _WORKER_LIMIT_S)
        samples, samples_left = end_found(self.orphans, _SAMPLE_LIMIT_S)
        hosts, hosts_left = end_found(self.hosts, _HOST_LIMIT_S)
        return Ended(
            workers=len({*present_workers, *workers}),
            hosts=len({*present_hosts, *hosts}),
            samples=len(samples),
            remaining=(*workers_left, *samples_left, *hosts_left),
        )


def _table() -> tuple[dict[int, _Process], set[int]]:
    """Return the processes of this user by number, and the numbers of this process and its ancestors."""
    table = {}
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(f"/proc/{pid}").stat().st_uid != os.getuid():
                continue  # a login node has thousands of processes of others
            process = psutil.Process(pid)
            with process.oneshot():
                if process.status() != psutil.STATUS_ZOMBIE:
                    table[pid] = _Process(
                        pid, process.ppid(), process.name(), process.cmdline(), _directory(pid), _has_terminal(pid)
                    )
    return table, {os.getpid(), os.getppid(), *_ancestors(table, os.getpid())}


def _directory(pid: int) -> str:
    """Return the current directory of a process; empty when it cannot be read.

    The kernel adds a suffix to the path of a directory that was removed (proc(5)).
    """
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")  # noqa: PTH115 (a path with a suffix)
    except OSError:
        return ""


def _has_terminal(pid: int) -> bool:
    """Whether a process has a controlling terminal (field 7 of /proc/<pid>/stat), as those of a user's shell have."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[4] != b"0"


def _is_below(directory: str, places: list[str]) -> bool:
    return any(directory == place or directory.startswith(f"{place}/") for place in places)


def _ancestors(table: dict[int, _Process], pid: int) -> Iterator[int]:
    seen = {pid}
    while pid in table and table[pid].parent not in seen:
        pid = table[pid].parent
        seen.add(pid)
        yield pid


def _is_adopted(table: dict[int, _Process], line: list[int], samples: set[int]) -> bool:
    """Whether the first ancestor that is no sample has adopted the process after the death of its parent."""
    adopter = next((pid for pid in line if pid not in samples), 0)
    return adopter in (0, 1) or (adopter in table and table[adopter].name in _ADOPTERS)
