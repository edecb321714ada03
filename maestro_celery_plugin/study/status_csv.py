"""Maestro's file ``status.csv`` with the states of the step records."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from maestro_celery_plugin.files import read_text, shared_lock

__all__ = ["FINAL_STATES", "StepRow", "read_rows"]

# Maestro does not quote values (executiongraph.py:686-725). The value of a parameter may add commas to the name, the
# job and the parameters, but not to the workspace, from which Maestro removes them (utils.py:199).
_ROW = re.compile(
    r"(?P<name>.+?),(?:--|(?P=name)#\d+|[^,]*),(?P<workspace>[^,]*),(?P<state>[A-Z]+),"
    r"(?:[^,]*,){5}(?P<restarts>\d+),(?P<params>.*)"
)
_LOCK_LIMIT_S = 2.0
# Final states of a step record in Maestro (executiongraph.py:757-900).
FINAL_STATES = frozenset({"FINISHED", "FAILED", "TIMEDOUT", "UNKNOWN", "CANCELLED", "DRYRUN"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRow:
    """A step record at Maestro's last poll.

    Attributes:
        name: Maestro's name of the step record.
        step: Name of the step, without the characters that Maestro removes from paths.
        params: Values of its parameters, by name.
        state: Name of a member of `maestrowf.abstracts.enums.State`.
        restarts: How often Maestro has restarted it.
    """

    name: str
    step: str
    params: dict[str, str]
    state: str
    restarts: int


def read_rows(root: Path) -> list[StepRow]:
    """Return the step records of a study in Maestro's order; no rows before Maestro has written the file."""
    try:
        with shared_lock(root / ".status.lock", _LOCK_LIMIT_S):
            text = read_text(root / "status.csv", errors="replace")
    except FileNotFoundError:
        return []
    matches = (_ROW.fullmatch(line) for line in text.split("\n")[1:])
    return [_row(match) for match in matches if match]


def _row(match: re.Match[str]) -> StepRow:
    return StepRow(
        name=match["name"],
        # Maestro writes "<step>/<combination>", or "<step>" for a record without parameters.
        step=match["workspace"].partition("/")[0],
        params=_params(match["params"]),
        state=match["state"],
        restarts=int(match["restarts"]),
    )


def _params(text: str) -> dict[str, str]:
    """Split ``A:1;B:x``; a part without a colon belongs to the value before it."""
    params: dict[str, str] = {}
    last = ""
    for part in text.split(";"):
        name, colon, value = part.partition(":")
        if colon:
            last, params[name] = name, value
        elif last:
            params[last] += f";{part}"
    return params
