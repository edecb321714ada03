"""Traces of plain steps: what is kept of those that Maestro runs itself, for a later conductor.

    merlin_info/plain/<step record>/
      finished    present when the step record has finished
      job.json    the batch job it was last submitted as; null while it is being submitted
      run.sh      runs the script of one that the conductor runs itself, and notes its end
      lock        held while that script runs, also when its conductor has died
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from maestro_celery_plugin.study.manifest import write_atomically
from maestro_celery_plugin.study.status_csv import shared_lock

__all__ = ["PlainTrace"]

# The script runs in the conductor's child, which may outlive the conductor: the next one then waits for its end.
_GUARD = """#!/bin/sh
exec 9>>{lock}
command -v flock > /dev/null && flock 9
test -e {finished} && exit 0
{script} 9>&- || exit
touch {finished}
"""


class PlainTrace:
    """What is kept of a plain step record for a later conductor.

    Args:
        directory: Where it is kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._finished = directory / "finished"
        self._job = directory / "job.json"

    @property
    def has_finished(self) -> bool:
        """Whether the step record has finished, under whatever conductor."""
        return self._finished.exists()

    def note_finished(self) -> None:
        """Note that it has."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._finished.touch()

    def read_job(self) -> Any:
        """Return the batch system's identifier of the last job, or None."""
        try:
            return json.loads(self._job.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    @property
    def is_cut_off(self) -> bool:
        """Whether a submission was begun, and nobody knows what became of it."""
        return self._job.exists() and self.read_job() is None

    @property
    def is_running_here(self) -> bool:
        """Whether the guard that the conductor has started goes on."""
        with shared_lock(self._directory / "lock") as is_free:
            return not is_free

    def forget_job(self) -> None:
        """Note that it was not submitted after all."""
        self._job.unlink(missing_ok=True)

    def write_job(self, id: Any) -> None:
        """Note its job; None before the batch system has answered."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self._job, json.dumps(id, default=lambda other: None))  # numbers and text can be kept

    def guard(self, script: str) -> str:
        """Write the script that runs another one unless that has finished, and notes its end."""
        self._directory.mkdir(parents=True, exist_ok=True)
        guard = self._directory / "run.sh"
        places = {"lock": self._directory / "lock", "finished": self._finished, "script": script}
        text = _GUARD.format(**{name: shlex.quote(str(place)) for name, place in places.items()})
        write_atomically(guard, text, mode=0o755)
        return str(guard)
