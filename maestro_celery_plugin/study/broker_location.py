"""The location of the broker of a session, as the session stores it."""

from __future__ import annotations

import dataclasses
from typing import Any

from maestro_celery_plugin.config.stored import ProcessFields

__all__ = ["BrokerLocation"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokerLocation:
    """The location of the broker of a session.

    Attributes:
        url: URL with the password.
        supervisor: (pid, start time) of the supervisor of a private broker; None for a broker that the user
            gave by URL.
        machine: Identity of the supervisor's machine (`machine.machine_id`); empty in a session of release 0.1.0.
        generation: Changes at each start of a private broker, which loses its messages; None for a broker
            that the user gave by URL.
        celery: Settings of Celery that a user has changed for this broker.
        has_priorities: Whether its queues may be declared with priorities; RabbitMQ refuses this for quorum queues.
    """

    url: str
    supervisor: ProcessFields | None = None
    generation: str | None = None
    machine: str = ""
    celery: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_priorities: bool = True
