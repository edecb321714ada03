"""The end of all studies of a session, for scripts that wait for a chain of studies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.files import is_locked
from maestro_celery_plugin.host.start import has_host
from maestro_celery_plugin.report.exit_codes import WaitCode, code_of, wait_code_of
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.report.monitor import growing_pause_s
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.session import Session

__all__ = ["StudyEnd", "await_session", "ends_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyEnd:
    """How a study of a session has ended.

    Attributes:
        root: Directory of the study.
        state: What `session show` calls its state.
        code: Its exit code for `wait`.
    """

    root: str
    state: StudyState
    code: WaitCode


def await_session(session: Session, timeout_s: float) -> bool:
    """Wait until no study of a session goes on; return whether this was so in time.

    Args:
        session: The session.
        timeout_s: Seconds to wait; may be infinite.
    """
    begin = clock.monotonic()
    while True:
        look_begin = clock.monotonic()
        if not _goes_on(session):
            return True
        now = clock.monotonic()
        remaining_s = begin + timeout_s - now
        if remaining_s <= 0:
            return False
        clock.sleep(min(growing_pause_s(now - begin, now - look_begin), remaining_s))


def _goes_on(session: Session) -> bool:
    """Whether a study lives, its conductor is about to end, or the host is about to start its conductor again."""
    members = Members(session.path)
    known = members.all()
    if any(members.is_alive(member) or is_locked(member.lock) for member in known):
        return True
    begun = (MemberState.REQUESTED, MemberState.RUNNING)
    return any(member.state in begun for member in known) and has_host(session)


def ends_of(session: Path) -> list[StudyEnd]:
    """Return how the studies of a session have ended, without those that have no ensemble or were never launched.

    Args:
        session: Directory of the session.
    """
    return [end for member in Members(session).all() if (end := _end(member)) is not None]


def _end(member: Member) -> StudyEnd | None:
    if member.state is MemberState.LAUNCHED or not member.lock.parent.is_dir():
        return None
    try:
        status = StatusReader(Path(member.root)).read()
    except (EnsembleError, OSError):
        return None
    code = wait_code_of(code_of(status, is_to_end=True), status.state)
    return StudyEnd(root=member.root, state=status.state, code=code)
