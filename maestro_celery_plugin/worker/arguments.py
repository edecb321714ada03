"""The arguments that the supervisor of a worker passes to its Celery worker."""

from __future__ import annotations

import dataclasses
import signal

from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.heartbeat_limit import HeartbeatLimit
from maestro_celery_plugin.worker.pool_limits import PoolLimits
from maestro_celery_plugin.worker.shared_memory import SharedFlag

__all__ = ["LEAVE_SIGNAL", "WorkerArguments"]

# The signal of a worker that leaves to its supervisor. It differs from SIGTERM, with which others end the supervisor.
# No batch system sends it, and a process without a handler ignores it (signal(7)).
LEAVE_SIGNAL = signal.SIGURG


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """The arguments of a worker.

    Attributes:
        session: The session.
        group: The configuration of its worker group.
        name: Name of the worker, unique in the session.
        allocation: The allocation of the worker, such as ``sim/2``; empty outside of the study's allocations.
        number: Number of the worker in its allocation, from 1.
        heartbeat_limit: How long the worker may live without a heartbeat.
        pool_limits: How long each process of its pool may live without a heartbeat.
        has_fault: Whether the worker leaves because it could not claim messages, so that a new worker must start later.
    """

    session: Session
    group: GroupConfig
    name: str
    allocation: str
    number: int
    heartbeat_limit: HeartbeatLimit = dataclasses.field(default_factory=HeartbeatLimit)
    pool_limits: PoolLimits = dataclasses.field(default_factory=PoolLimits)
    has_fault: SharedFlag = dataclasses.field(default_factory=SharedFlag)
