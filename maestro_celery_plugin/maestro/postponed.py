"""Postponed submissions of native steps: the batch system must first say whether an earlier job continues.

Maestro creates an adapter at every poll (executiongraph.py:774), so that this module keeps them for the process. After
the death of the conductor they need not be known: the stored states of the native steps lead to the same question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock

__all__ = ["Postponed", "Submission", "postponed_of"]

# After the batch system has not answered, no submission asks it again for this long: a question blocks Maestro for up
# to half a minute, and a study may have many native steps.
QUIET_S = 15.0


@dataclasses.dataclass(kw_only=True)
class Submission:
    """The submission of a step record, as Maestro has requested it.

    Attributes:
        step: Maestro's step.
        path: Path of the script.
        cwd: The workspace.
        options: Further arguments of the adapter.
        is_cancelled: Whether the step record was cancelled while its submission was postponed.
    """

    step: Any
    path: str
    cwd: str
    options: Mapping[str, Any]
    is_cancelled: bool = False

    @property
    def record(self) -> str:
        """Maestro's name of the step record."""
        return str(self.step.real_name)


class Postponed:
    """The postponed submissions of one study, and what else must outlive the adapter of one poll.

    Attributes:
        cancelled: The step records whose jobs the batch system has accepted to cancel, one by one.
    """

    def __init__(self) -> None:
        self._submissions: dict[str, Submission] = {}
        self._quiet_until = 0.0
        self._gone: dict[str, int] = {}
        self.cancelled: set[str] = set()

    def add(self, submission: Submission) -> None:
        """Postpone a submission, because the batch system does not answer now."""
        self._submissions[submission.record] = submission
        self._quiet_until = clock.monotonic() + QUIET_S

    def get(self, record: str) -> Submission | None:
        """Return the postponed submission of a step record; None without one."""
        return self._submissions.get(record)

    def remove(self, record: str) -> None:
        """Forget the postponed submission of a step record, which is decided now."""
        self._submissions.pop(record, None)

    def count_gone(self, record: str, *, is_gone: bool) -> int:
        """Return how often in a row the batch system has not listed the job of a step record, with this time."""
        self._gone[record] = self._gone.get(record, 0) + 1 if is_gone else 0
        return self._gone[record]

    @property
    def is_quiet(self) -> bool:
        """Whether the batch system has not answered a moment ago."""
        return clock.monotonic() < self._quiet_until


_OF_STUDY: dict[Path, Postponed] = {}


def postponed_of(study: Path) -> Postponed:
    """Return the postponed submissions of a study in this process."""
    return _OF_STUDY.setdefault(study, Postponed())
