"""The part of Flux's Python package that Maestro's adapter uses, for the simulated cluster."""

from __future__ import annotations

import types
from typing import Any

from flux import job

__all__ = ["Flux", "job"]


class Flux:
    """A connection to the system instance, which is broken after a restart of Flux."""

    def __init__(self) -> None:
        if job.cluster.is_away():
            raise FileNotFoundError(2, "Unable to connect to Flux: broker socket /run/flux/local was not found")
        self._restarts = job.cluster.restarts()

    def check(self) -> None:
        """Raise the error of a broken connection."""
        if job.cluster.is_away() or job.cluster.restarts() != self._restarts:
            raise BrokenPipeError(32, "EPIPE: Broken pipe")

    def attr_get(self, name: str) -> str:
        """Return an attribute of the broker."""
        self.check()
        return {"version": "0.88.0"}[name]

    def rpc(self, topic: str, payload: Any = None) -> Any:
        """Answer a request; Maestro's adapter requests only the queues of the system instance."""
        self.check()
        assert topic == "config.get"
        return types.SimpleNamespace(get=lambda: {"queues": {name: {} for name in job.QUEUES}})
