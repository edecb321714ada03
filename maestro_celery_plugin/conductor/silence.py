"""Silence: whether the heartbeats of workers on other machines still change.

A heartbeat that cannot be read now says nothing about its worker. Then the file itself must still change, which needs
no right to read it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from maestro_celery_plugin import clock
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S, Heartbeat, Heartbeats

__all__ = ["Silence"]

LOGGER = logging.getLogger(__name__)


class Silence:
    """Remembers when the heartbeats have changed.

    Args:
        heartbeats: The heartbeats of the session.
    """

    def __init__(self, heartbeats: Heartbeats) -> None:
        self._heartbeats = heartbeats
        self._unreadable: Mapping[str, OSError] = {}
        self._changed: dict[tuple[str, str], tuple[object, float]] = {}

    def record_unreadable(self, unreadable: Mapping[str, OSError]) -> None:
        """Store which heartbeats cannot be read now; log the new ones."""
        for name in unreadable.keys() - self._unreadable.keys():
            LOGGER.warning("The heartbeat of worker '%s' cannot be read now: %s", name, unreadable[name])
        self._unreadable = unreadable

    def is_broken_by(self, beat: Heartbeat) -> bool:
        """Tell whether the heartbeat of a worker has changed within the last `SILENCE_LIMIT_S`.

        Args:
            beat: The last heartbeat that could be read.
        """
        if beat.name in self._unreadable:
            return self.is_broken_unread(beat.name)
        return self._has_changed(beat.name, "beat", beat.beat)

    def is_broken_unread(self, name: str) -> bool:
        """Tell the same for a heartbeat that cannot be read; true while this cannot be known."""
        version = self._heartbeats.version(name)
        return version is None or self._has_changed(name, "file", version)

    def _has_changed(self, name: str, what: str, value: object) -> bool:
        last, changed_at = self._changed.get((name, what), (None, 0.0))
        if value != last:
            self._changed[name, what] = value, clock.monotonic()
            return True
        return clock.monotonic() - changed_at < SILENCE_LIMIT_S
