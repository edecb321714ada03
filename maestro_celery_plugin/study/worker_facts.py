"""The facts about a worker that its study keeps after its end; its heartbeat is removed then.

merlin_info/workers/<name>.json     facts of one worker, beside its log
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count, UnixTime
from maestro_celery_plugin.files import read_text, write_atomically
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import log_of

__all__ = ["VERSIONS_OF", "WorkerFacts", "read_facts", "write_facts"]

# The packages that decide how a study runs.
VERSIONS_OF = ("maestro-celery-plugin", "maestrowf", "celery")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerFacts:
    """The facts about a worker.

    Attributes:
        name: Name of the worker, unique in the session.
        group: Its worker group.
        node: Name of its machine in the batch system.
        allocation: Its allocation, such as ``sim/2``; empty for a worker outside of the study's allocations.
        slots: How many samples it runs in parallel; 0 for a worker with a pool of processes.
        started_at: Its start (Unix seconds of its machine); None in the facts of a worker of another release.
        versions: Versions of Python and of packages by name.
    """

    name: str
    group: str
    node: str
    allocation: str = ""
    slots: Count = 0
    started_at: UnixTime | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, beat: Heartbeat) -> WorkerFacts:
        """Return the facts in a heartbeat of this process, with the versions of this process."""
        packages = {name: importlib.metadata.version(name) for name in VERSIONS_OF}
        return cls(
            name=beat.name,
            group=beat.group,
            node=beat.node,
            allocation=beat.allocation,
            slots=beat.slots,
            started_at=beat.started_at,
            versions={**packages, "Python": platform.python_version()},
        )


def write_facts(session: Session, facts: WorkerFacts) -> None:
    """Store the facts of a worker.

    Raises:
        OSError: the file cannot be written.
    """
    path = log_of(session, facts.name).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, conversion.to_json(facts), durable=False)


def read_facts(session: Session) -> dict[str, WorkerFacts]:
    """Return the facts of the workers of a session by name, without those that a crash has damaged."""
    found = {}
    for path in sorted(log_of(session, "any").parent.glob("*.json")):
        try:
            facts = conversion.from_json(WorkerFacts, read_text(path))
        except (OSError, ValueError):
            continue
        if facts.name == path.stem:
            found[facts.name] = facts
    return found
