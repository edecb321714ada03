"""The deadline of a worker: when its allocation ends, and which samples may still start."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.base import BatchSystem
from maestro_celery_plugin.config.groups import GroupConfig

__all__ = ["EXIT_MARGIN_S", "START_VARIABLE", "Deadline"]

# Environment variable in which the batch script stores its start, in Unix seconds of the node's clock.
START_VARIABLE = "MAESTRO_CELERY_ALLOCATION_BEGAN"
# Seconds before the end at which the worker kills running samples, to record them and exit in time.
EXIT_MARGIN_S = 5.0
# The worker assumes at least this duration for a sample whose step has neither a `drain` nor a `time_request`.
SHORTEST_DRAIN_S = 30.0


@dataclasses.dataclass(frozen=True)
class Deadline:
    """When an allocation ends.

    Attributes:
        ends_at: The end in Unix seconds of this machine; infinity when there is no end.
        drain_s: Seconds before the end from which no sample starts; None to derive it from the durations so far.
        warn_s: Seconds before the end at which running samples receive the signal of their step.
        is_in_allocation: Whether this process is inside an allocation.
    """

    ends_at: float = math.inf
    drain_s: float | None = None
    warn_s: float = 0.0
    is_in_allocation: bool = False

    @classmethod
    def of(cls, system: BatchSystem | None, group: GroupConfig, environ: Mapping[str, str]) -> Deadline:
        """Return the deadline of a process: the end that the batch system reports, else start + walltime.

        Args:
            system: The batch system of the group; None for a local group.
            group: The worker group.
            environ: The environment of the process.
        """
        if system is None:
            return cls()
        ends_at = system.end_time(environ)
        if ends_at is None and group.walltime_s and (START_VARIABLE in environ or system.current_allocation(environ)):
            ends_at = float(environ.get(START_VARIABLE, clock.now())) + group.walltime_s
        return cls(math.inf if ends_at is None else ends_at, group.drain_s, group.warn_s, is_in_allocation=True)

    @property
    def remaining_s(self) -> float:
        """Seconds until the end."""
        return self.ends_at - clock.now()

    @property
    def is_draining(self) -> bool:
        """Whether no sample may start any more."""
        return self.remaining_s < self._minimum_s

    @property
    def _minimum_s(self) -> float:
        """The minimum time of any sample in seconds; a sample that starts later would be ended immediately."""
        return max(EXIT_MARGIN_S, self.warn_s, self.drain_s or 0.0)

    @property
    def must_warn(self) -> bool:
        """Whether running samples must be warned now."""
        return self.remaining_s < self.warn_s

    @property
    def must_kill(self) -> bool:
        """Whether running samples must be killed now."""
        return self.remaining_s < EXIT_MARGIN_S

    def fits(self, time_request_s: float | None, longest_s: float) -> bool:
        """Tell whether a sample may start: it must end before its warning.

        Worked example: a sample that needs 45 s, with `warn` at 20 s, may start up to 65 s before the end.

        Args:
            time_request_s: Seconds that the step requests for a sample; None without a request.
            longest_s: The longest duration of a sample of the step on this worker so far, in seconds.
        """
        if math.isinf(self.ends_at):
            return True
        minimum_s = self._minimum_s
        if time_request_s is not None:
            minimum_s = max(minimum_s, time_request_s + self.warn_s)
        elif self.drain_s is None:
            minimum_s = max(minimum_s, SHORTEST_DRAIN_S, longest_s + self.warn_s)
        return self.remaining_s >= minimum_s
