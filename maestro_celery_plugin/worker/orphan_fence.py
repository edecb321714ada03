"""The fence of a worker process whose supervisor was killed: it ends the samples before the worker counts as dead.

Otherwise, the supervisor does this (`supervisor.py`). Without it, the other threads of the worker may wait for a file
system that does not answer, while another worker begins to run the samples. So this thread uses no file of the study.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from maestro_celery_plugin import clock
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.worker.heartbeat_limit import HeartbeatLimit

__all__ = ["OrphanFence"]

_CHECK_INTERVAL_S = 1.0


class OrphanFence:
    """Ends a worker process and its samples when it has no supervisor and could not write its heartbeat for too long.

    Args:
        supervisor: The supervisor.
        limit: How long the process may live without a heartbeat.
        kill_samples: Kills the samples of the process, without any file of the study.
    """

    def __init__(self, supervisor: ProcessId, limit: HeartbeatLimit, kill_samples: Callable[[], object]) -> None:
        self._supervisor, self._limit, self._kill_samples = supervisor, limit, kill_samples

    def start(self) -> None:
        """Check at intervals, in a thread of its own."""
        threading.Thread(target=self._run, name="fence", daemon=True).start()

    def _run(self) -> None:
        while not self.must_end:
            clock.sleep(_CHECK_INTERVAL_S)
        self._kill_samples()
        os._exit(1)

    @property
    def must_end(self) -> bool:
        """Whether the samples must end now."""
        return self._limit.is_exceeded and not self._supervisor.is_alive
