"""The studies of a session as a tree: which study has started which, and how each one is."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.report.terminal import plain, print_table, shortened, state_text
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members

__all__ = ["SessionStudy", "print_studies", "session_studies"]

# Columns of the name of a study in a terminal.
_NAME_WIDTH = 30
# Columns of a value of `--vars`.
_VALUE_WIDTH = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionStudy:
    """A study of a session.

    Attributes:
        member: The study in the session.
        state: Its state, such as `RUNNING`, or `launching`.
        samples: Number of samples by state: total, finished, failed, running, pending; None for a study without an
            ensemble, and if its files cannot be read.
        level: Its indentation in the tree: a study that is the only one that its parent has started is not indented.
    """

    member: Member
    state: str
    samples: dict[str, int] | None
    level: int

    def to_json(self) -> dict[str, Any]:
        """Return the study as JSON values."""
        one = self.member
        return {
            "number": one.number,
            "study": one.root,
            "id": one.id,
            "parent": one.parent or None,
            "started_by": one.started_by or None,
            "state": self.state,
            "variables": one.variables,
            "samples": self.samples,
            "started_at": one.started_at,
            "ended_at": one.ended_at or None,
            "conductor_restarts": one.restarts,
        }


def session_studies(session: Path) -> list[SessionStudy]:
    """Return the studies of a session; each one is followed by those that it has started.

    Args:
        session: Directory of the session.

    Raises:
        OSError: the session cannot be read.
    """
    members = Members(session)
    known = members.all()
    identities = {member.id for member in known}

    started_by: dict[str, list[Member]] = defaultdict(list)
    for member in known:
        started_by[member.parent if member.parent in identities else ""].append(member)
    # No recursion: a chain may be longer than Python's stack.
    found, waiting = [], [(member, 0) for member in reversed(started_by[""])]
    while waiting:
        member, level = waiting.pop()
        found.append(_study(member, members, level))
        below = started_by[member.id]
        waiting += [(one, level + (len(below) > 1)) for one in reversed(below)]
    return found


def _study(member: Member, members: Members, level: int) -> SessionStudy:
    if member.state in (MemberState.LAUNCHED, MemberState.REQUESTED):
        state = str(member.state) if members.is_alive(member) else "not launched"
        return SessionStudy(member=member, state=state, samples=None, level=level)
    if not member.lock.parent.is_dir():  # without an ensemble, or removed
        state = StudyState.RUNNING.name if members.is_alive(member) else "ended"
        return SessionStudy(member=member, state=state, samples=None, level=level)
    try:
        status = StatusReader(Path(member.root)).read()
    except (EnsembleError, OSError):
        if member.state is MemberState.ENDED and not Path(member.root, "batch.info").exists():
            return SessionStudy(member=member, state="not launched", samples=None, level=level)  # `stop` has ended it
        return SessionStudy(member=member, state="?", samples=None, level=level)
    counts: Counter[str] = Counter()
    for step in status.steps:
        counts.update(dataclasses.asdict(step.samples))
    names = ("total", "finished", "failed", "running", "pending")
    samples = {name: counts[name] for name in names}
    return SessionStudy(member=member, state=status.state.name, samples=samples, level=level)


def _words(variables: Mapping[str, str]) -> str:
    """Return variables as words; `--json` has long values whole."""
    return " ".join(f"{name}={shortened(value, _VALUE_WIDTH)}" for name, value in variables.items())


def print_studies(studies: list[SessionStudy]) -> None:
    """Print the studies as a table for a terminal; the directory of the first one has the others, as a rule."""
    headings = {
        "STUDY": "left",
        "STATE": "left",
        "FINISHED": "right",
        "FAILED": "right",
        "STARTED BY": "fold",
        "VARIABLES": "fold",
    }
    rows = []
    for one in studies:
        samples, variables = one.samples, _words(one.member.variables)
        rows.append(
            [
                plain("  " * one.level + shortened(Path(one.member.root).name, _NAME_WIDTH)),
                state_text(one.state),
                Text(f"{samples['finished']}/{samples['total']}" if samples else ""),
                Text(str(samples["failed"] or "") if samples else ""),
                plain(one.member.started_by),
                plain(variables),
            ]
        )
    print_table(headings, rows)
