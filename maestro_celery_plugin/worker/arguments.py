"""The arguments that the supervisor of a worker passes to its Celery worker."""

from __future__ import annotations

import dataclasses

from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.study.session import Session

__all__ = ["WorkerArguments"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """The arguments of a worker.

    Attributes:
        session: The session.
        group: The configuration of its worker group.
        name: Name of the worker, unique in the session.
        allocation: The allocation of the worker, such as ``sim/2``; empty outside of the study's allocations.
        number: Number of the worker in its allocation, from 1.
    """

    session: Session
    group: GroupConfig
    name: str
    allocation: str
    number: int
