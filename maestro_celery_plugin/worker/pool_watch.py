"""The pool watch: the supervisor of a worker ends the processes of its pool that may count as dead, and their samples.

The conductor can end a process of a pool on its own machine only. On another machine, the samples of a process that was
stopped, has crashed, or is cut off from the file system would continue, and would run again elsewhere.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.processes import end_found, marked
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import PROCESS_MARKER, mark
from maestro_celery_plugin.worker.heartbeat_limit import HEARTBEAT_LIMIT_S
from maestro_celery_plugin.worker.pool_limits import PoolLimits, PoolProcess

__all__ = ["PoolWatch"]

# Interval between two checks of the limits.
_CHECK_INTERVAL_S = 1.0
# Time between SIGTERM and SIGKILL for samples; their end must come before the conductor counts their process as dead.
_KILL_GRACE_S = 1.0


class PoolWatch:
    """Watches the processes of the pool of one worker; Celery replaces those that have ended.

    Args:
        session: The session.
        session_id: Identity of the session when the supervisor has started.
        worker: Name of the worker.
        limits: The limits of the processes.
    """

    def __init__(self, session: Session, session_id: str, worker: str, limits: PoolLimits) -> None:
        self._session, self._session_id, self._worker, self._limits = session, session_id, worker, limits
        self._ending: set[int] = set()
        self._has_ended = threading.Event()

    def start(self) -> None:
        """Watch until `end`, in a thread."""
        threading.Thread(target=self._run, name="pool watch", daemon=True).start()

    def _run(self) -> None:
        while not self._has_ended.wait(_CHECK_INTERVAL_S):
            self.check()

    def check(self) -> None:
        """Kill the processes whose limit is exceeded, and end what the processes that have ended have left."""
        to_kill, ended = [], []
        for one in self._limits.processes():
            if one.entry in self._ending:
                continue
            if not one.process.is_alive:
                ended.append(one)
            elif one.is_exceeded:
                one.process.signal(signal.SIGKILL)
                to_kill.append(one)
        if to_kill or ended:
            self._ending.update(one.entry for one in (*to_kill, *ended))
            # In a thread: neither a process that cannot be killed nor a file may delay the next check.
            threading.Thread(target=self._clean, args=(to_kill, ended), name="pool cleanup", daemon=True).start()

    def _clean(self, killed: list[PoolProcess], ended: list[PoolProcess]) -> None:
        marks = [mark(self._session, self._name_of(one)) for one in (*killed, *ended)]
        with contextlib.suppress(OSError):
            end_found(lambda: {pid for value in marks for pid in marked(PROCESS_MARKER, value)}, _KILL_GRACE_S)
        for one in (*killed, *ended):
            self._limits.free(one)
            self._ending.discard(one.entry)
        # A process that was killed keeps its heartbeat: the conductor then finds that its samples are not the cause.
        self._remove_heartbeats(ended)
        for one in killed:
            self._report(one)

    def end(self, *, keep_heartbeats: bool) -> None:
        """End the watch after the worker and its samples have ended.

        Args:
            keep_heartbeats: Whether the conductor must find that the machine is the cause of the end.
        """
        self._has_ended.set()
        if not keep_heartbeats:
            self._remove_heartbeats(self._limits.processes())
        self._limits.close()

    def _remove_heartbeats(self, processes: Iterable[PoolProcess]) -> None:
        for one in processes:
            # If it stays, the conductor finds that it does not change any more.
            with contextlib.suppress(OSError, StudyError):
                if self._session.id == self._session_id:
                    self._session.heartbeats.remove(self._name_of(one))

    def _report(self, one: PoolProcess) -> None:
        with contextlib.suppress(OSError):
            print(
                f"worker on {host_name()}: process '{self._name_of(one)}' could not write its heartbeat for "
                f"{HEARTBEAT_LIMIT_S:.0f} s. It was killed, because its samples will run again elsewhere.",
                file=sys.stderr,
                flush=True,
            )

    def _name_of(self, one: PoolProcess) -> str:
        return f"{self._worker}.{one.process.pid}"
