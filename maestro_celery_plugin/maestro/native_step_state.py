"""The state of native steps, which Maestro runs, stored for a later conductor.

merlin_info/plain/<step record>/
  finished    exists when the step record has finished
  job.json    the last batch job and the directory of its submission; null during the submission
  run.sh      runs the script of a step record inside the conductor, and records its end
  lock        locked while this script runs, also after the death of the conductor
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Word
from maestro_celery_plugin.files import is_locked, read_json, write_atomically

__all__ = ["NativeStepState", "state_path"]

# The script runs in a child of the conductor, which may outlive it; the script of the next conductor waits for its end.
_GUARD = """#!/bin/sh
exec 9>>{lock}
command -v flock > /dev/null && flock 9
test -e {finished} && exit 0
{script} 9>&- || exit
touch {finished}
"""


def state_path(native: Path, record: str) -> Path:
    """Return the directory of the state of a step record.

    Args:
        native: The directory of the states of all native steps.
        record: Maestro's name of the step record.
    """
    return native / quote(record, safe="")


@dataclasses.dataclass(frozen=True)
class _Job:
    job: Word | int | None = None
    directory: Word | None = None
    printed: Word | None = None


class NativeStepState:
    """The stored state of a native step record.

    Args:
        path: The directory of the state.

    Attributes:
        path: The directory of the state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._finished = path / "finished"
        self._job = path / "job.json"

    @classmethod
    def of(cls, native: Path, record: str) -> NativeStepState:
        """Return the state of a step record, as `state_path` finds it."""
        return cls(state_path(native, record))

    @property
    def has_finished(self) -> bool:
        """Whether the step record has finished, under any conductor."""
        return self._finished.exists()

    def record_finished(self) -> None:
        """Record that the step record has finished."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._finished.touch()

    def forget(self) -> None:
        """Let the step record run again; its job goes first, because a job that has finished would count for it."""
        self._job.unlink(missing_ok=True)
        self._finished.unlink(missing_ok=True)

    def read_job(self) -> Any:
        """Return the batch system's identifier of the last job; None without a job."""
        return self._read().job

    @property
    def directory(self) -> Path | None:
        """The directory in which the last job was submitted; None when release 0.1 has stored it."""
        stored = self._read().directory
        return Path(stored) if stored else None

    @property
    def printed(self) -> str | None:
        """The number that a submission has printed whose job is not known yet."""
        return self._read().printed

    def _read(self) -> _Job:
        try:
            stored = read_json(self._job)
            if not isinstance(stored, dict):  # release 0.1 stores the identifier only
                stored = {"job": stored}
            return conversion.from_dict(_Job, stored)
        except (FileNotFoundError, ValueError):
            return _Job()

    @property
    def is_interrupted(self) -> bool:
        """Whether a submission was interrupted, so that a job may exist or not."""
        return self.has_job and self.read_job() is None

    @property
    def is_running_here(self) -> bool:
        """Whether a script that a conductor has started on this machine still runs."""
        return is_locked(self.path / "lock")

    @property
    def has_job(self) -> bool:
        """Whether a job was submitted, or its submission has begun."""
        return self._job.exists()

    def restore_job(self, id: Any, directory: Path | None) -> None:
        """Record that a submission has failed, so that the job before it is the last one; None without such a job."""
        if id is None:
            self._job.unlink(missing_ok=True)
        else:
            self.write_job(id, directory)

    def write_job(self, id: Any, directory: Path | str | None = None, *, printed: str | None = None) -> None:
        """Record the job and the directory of its submission.

        Args:
            id: The identifier of the batch system; None until it is known.
            directory: The directory.
            printed: The number that the submission has printed, as long as it is not known whether that is the job's.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        values = {"job": id, "directory": None if directory is None else str(directory)}
        if printed is not None:
            values["printed"] = printed
        # JSON can store only numbers and text.
        write_atomically(self._job, json.dumps(values, default=lambda other: None))

    def write_run_once_script(self, script: str) -> str:
        """Write a script that runs another script once, and records its end; return the path."""
        self.path.mkdir(parents=True, exist_ok=True)
        guard = self.path / "run.sh"
        places = {"lock": self.path / "lock", "finished": self._finished, "script": script}
        text = _GUARD.format(**{name: shlex.quote(str(place)) for name, place in places.items()})
        write_atomically(guard, text, mode=0o755)
        return str(guard)
