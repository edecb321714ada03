"""The part of Flux's Python package that Maestro's adapter uses, for the simulated cluster."""

from __future__ import annotations

import types
from typing import Any

from flux import job

__all__ = ["Flux", "job"]


class Flux:
    """A connection to the system instance."""

    def attr_get(self, name: str) -> str:
        """Return an attribute of the broker."""
        return {"version": "0.66.0"}[name]

    def rpc(self, topic: str, payload: Any = None) -> Any:
        """Answer a request; Maestro's adapter requests only the queues of the system instance."""
        assert topic == "config.get"
        return types.SimpleNamespace(get=lambda: {"queues": {"pbatch": {}, "pdebug": {}}})
