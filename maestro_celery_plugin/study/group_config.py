"""The terms of a worker group: all that its workers have to know, in one file of the session.

    session/groups/<group>.json

A worker's command line names the session and the group and nothing else, so that it stays short in batch
scripts and has no secrets.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.study.manifest import write_atomically
from maestro_celery_plugin.study.session import Session

__all__ = ["WorkerTerms"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerTerms:
    """What the workers of one group work by.

    Attributes:
        group: The worker group.
        queues: Task queues it serves.
        args: Options of `celery worker`.
        idle_limit_s: Seconds without work after which a worker leaves its allocation.
        batch_type: `batch.type` of the group.
        walltime_s: Time limit of the group's allocations, in seconds; None when there is none.
        drain_s: Seconds before the end from which no sample is started; None for what they have needed so far.
        warn_s: Seconds before the end at which running samples get their signal.
        nodes: Nodes of an allocation; 0 for a group that has none.
        workers: Workers that are started in an allocation.
        gpus: GPUs of each node of an allocation; None when they are not counted.
        needs: What a sample of each sampled step needs: the fields of `StepNeeds`.
    """

    group: str
    queues: tuple[str, ...]
    args: str = ""
    idle_limit_s: float = 300.0
    batch_type: str = "local"
    walltime_s: int | None = None
    drain_s: float | None = None
    warn_s: float = 20.0
    nodes: int = 0
    workers: int = 1
    gpus: int | None = None
    needs: tuple[dict[str, Any], ...] = ()

    def write(self, session: Session) -> None:
        """Store the terms in a session, whole or not at all."""
        path = session.path / "groups" / f"{self.group}.json"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, session: Session, group: str) -> WorkerTerms:
        """Read the terms of a group.

        Raises:
            StudyError: the session has no such group, or has ended.
        """
        try:
            values = json.loads((session.path / "groups" / f"{group}.json").read_text())
        except OSError as cause:
            raise StudyError(
                f"The session '{session.path}' has no worker group '{group}' that can be read ({cause.strerror}): "
                "its study has ended, or this machine does not see its file system."
            ) from cause
        return cls(**{**values, "queues": tuple(values["queues"]), "needs": tuple(values["needs"])})
