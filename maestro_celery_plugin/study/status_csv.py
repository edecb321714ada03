"""Maestro's own record of a study's states, ``status.csv``."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LAST_STATES", "StepRow", "read_rows", "shared_lock"]

# Maestro quotes nothing (executiongraph.py:686-725). A parameter's value may put commas into the name,
# the job and the parameters, but not into the workspace, from which Maestro strips them (utils.py:199).
_ROW = re.compile(
    r"(?P<name>.+?),(?:--|(?P=name)#\d+|[^,]*),(?P<workspace>[^,]*),(?P<state>[A-Z]+),"
    r"(?:[^,]*,){5}(?P<restarts>\d+),(?P<params>.*)"
)
_LOCK_LIMIT_S = 2.0
# States in which Maestro leaves a step record for good (executiongraph.py:757-900).
LAST_STATES = frozenset({"FINISHED", "FAILED", "TIMEDOUT", "UNKNOWN", "CANCELLED", "DRYRUN"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRow:
    """A step record as Maestro last saw it.

    Attributes:
        name: Maestro's name of the step record.
        step: The step's name, as far as Maestro allows it in a path.
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
    """Return the step records of a study in Maestro's order; none when it has not written any yet."""
    try:
        with shared_lock(root / ".status.lock", _LOCK_LIMIT_S):
            text = (root / "status.csv").read_text(errors="replace")
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


@contextlib.contextmanager
def shared_lock(path: Path, timeout_s: float = 0.0) -> Iterator[bool]:
    """Lock a file of `filelock` against writers, not against other readers.

    Unlike a `FileLock`, it makes no file, needs no permission to write, and two readers never take each
    other for the writer.

    Args:
        path: The lock file; where there is none, nobody holds it.
        timeout_s: Seconds to wait for the writer.

    Yields:
        Whether no writer holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock(descriptor, time.monotonic() + timeout_s)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
