"""Relatives: the other studies of the session, whose conductors use the same workers and allocations."""

from __future__ import annotations

import contextlib

from maestro_celery_plugin import clock
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.session import Session

__all__ = ["Relatives"]

_INTERVAL_S = 1.0


class Relatives:
    """Follows the other members of a session that live.

    Args:
        session: The session.
        study: Identity of the study of this conductor.

    Attributes:
        living: The other members that live, as of the last `refresh`.
        needs: The worker groups that they need; all groups of a member whose conductor has not said which.
    """

    def __init__(self, session: Session, study: str) -> None:
        self._conductors, self._study = session.conductors, study
        self._members = Members(session.path)
        self._refreshed_at = float("-inf")
        self._ended: set[str] = set()
        self.living: list[Member] = []
        self.needs: frozenset[str] = frozenset()

    def refresh(self) -> None:
        """Find the relatives, at most once a second.

        Raises:
            OSError: a file of the session cannot be read now.
        """
        now = clock.monotonic()
        if now - self._refreshed_at < _INTERVAL_S:
            return
        self._refreshed_at = now
        others = [member for member in self._members.all() if member.id != self._study]
        self.living = [member for member in others if self._members.is_alive(member)]
        self.needs = self.needs_of(self.living)
        self._end_conductors(others)

    def needs_of(self, members: list[Member]) -> frozenset[str]:
        """Return the worker groups that members need."""
        needs: set[str] = set()
        for member in members:
            known = self._conductors.read(member.id).needs
            needs.update(member.groups if known is None or member.state is not MemberState.RUNNING else known)
        return frozenset(needs)

    def _end_conductors(self, others: list[Member]) -> None:
        """Store for the workers that conductors which have died see no busy worker any more."""
        living = {member.id for member in self.living}
        self._ended -= living
        for member in others:
            if member.state is MemberState.RUNNING and member.id not in living | self._ended:
                self._ended.add(member.id)
                with contextlib.suppress(OSError):
                    self._conductors.end(member.id)
