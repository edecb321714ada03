"""The deadline of a worker: when its allocation ends, and what may still be begun before."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping

from maestro_celery_plugin.batch.base import batch_system
from maestro_celery_plugin.study.group_config import WorkerTerms

__all__ = ["BEGAN", "LEAVE_S", "Deadline"]

# Environment variable in which the batch script notes its start, in Unix seconds of the node's clock.
BEGAN = "MAESTRO_CELERY_ALLOCATION_BEGAN"
# What still runs so long before the end is killed, so that the worker can note it and leave.
LEAVE_S = 5.0
# The least that is assumed of a sample's duration, while no `drain` and no `time_request` say otherwise.
SHORTEST_DRAIN_S = 30.0


@dataclasses.dataclass(frozen=True)
class Deadline:
    """When an allocation ends.

    Attributes:
        ends_at: Its end in Unix seconds of this machine; infinite when it has none.
        drain_s: Seconds before the end from which no sample is started; None for what they have needed so far.
        warn_s: Seconds before the end at which running samples get their signal.
        is_in_allocation: Whether there is an allocation at all.
    """

    ends_at: float = math.inf
    drain_s: float | None = None
    warn_s: float = 0.0
    is_in_allocation: bool = False

    @classmethod
    def of(cls, terms: WorkerTerms, environ: Mapping[str, str]) -> Deadline:
        """Find out when the allocation around this process ends: from the batch system, else start + walltime."""
        system = batch_system(terms.batch_type)
        if system is None:
            return cls()
        ends_at = system.end_time(environ)
        if ends_at is None and terms.walltime_s and (BEGAN in environ or system.held(environ)):
            ends_at = float(environ.get(BEGAN, time.time())) + terms.walltime_s
        return cls(math.inf if ends_at is None else ends_at, terms.drain_s, terms.warn_s, is_in_allocation=True)

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return self.ends_at - time.time()

    @property
    def is_draining(self) -> bool:
        """Whether no sample at all may be started any more."""
        return self.left_s < self._least_s

    @property
    def _least_s(self) -> float:
        """Seconds that a sample has to have at the least; what starts later is killed at once."""
        return max(LEAVE_S, self.warn_s, self.drain_s or 0.0)

    @property
    def is_warning(self) -> bool:
        """Whether running samples shall be warned."""
        return self.left_s < self.warn_s

    @property
    def is_over(self) -> bool:
        """Whether running samples shall be killed."""
        return self.left_s < LEAVE_S

    def fits(self, time_request_s: float | None, longest_s: float) -> bool:
        """Tell whether a sample may be started: whether it ends before it would be warned.

        Worked example: one that needs 45 s, with `warn` at 20 s, is started up to 65 s before the end.

        Args:
            time_request_s: What its step says that it needs, in seconds; None when it does not say.
            longest_s: What samples of its step have needed so far on this worker, in seconds.
        """
        if math.isinf(self.ends_at):
            return True
        least_s = self._least_s
        if time_request_s is not None:
            least_s = max(least_s, time_request_s + self.warn_s)
        elif self.drain_s is None:
            least_s = max(least_s, SHORTEST_DRAIN_S, longest_s + self.warn_s)
        return self.left_s >= least_s
