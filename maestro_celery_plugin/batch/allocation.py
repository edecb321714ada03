"""Allocations: batch jobs in which the workers of one or more groups run.

An allocation is a batch job that Maestro's adapter submits, or a set of workers that this process starts in the
allocation around it. Both have a state, an end, and a directory in the study for the script and the output.
`conductor/batch_jobs.py` submits the jobs, and `conductor/process_jobs.py` starts the workers.

    merlin_info/allocations/<name>/<number>/
      <name>.slurm.sh               the batch script, written by Maestro's adapter
      <name>.out <name>.err         the output of the job; the batch system chooses the names
      allocation.json               job, state, reason, times
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Count, UnixTime, Word
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_json, tail, write_atomically
from maestro_celery_plugin.states import AllocationState

__all__ = [
    "Allocation", "allocation_files", "job_words", "last_allocation", "new_directory", "read_allocation",
    "read_allocations",
]  # fmt: skip

_REMEDY = "cancel the batch job that was submitted in this directory, if it still runs, and remove the file"


def job_words(job: str | None) -> str:
    """Return what users read about the job of an allocation."""
    if job is None:
        return "not submitted"
    pid, is_process, _ = job.partition(":")
    return f"process {pid} in the allocation of the launch" if is_process else f"job {job}"


@dataclasses.dataclass
class Allocation:
    """One allocation.

    Attributes:
        name: Name of the allocation.
        number: Number of the allocation among those of the same name in the study, from 1.
        directory: Directory of the script and the output.
        job: Identifier of the batch job, or `pid:start:machine` of a process; None before submission.
        state: State of the job.
        reason: The message of the batch system: why the job waits, or how it ended.
        released: Whether the conductor has ended it because no step needs it any more.
        submitted_at: Time of submission (Unix seconds).
        began_at: Time when the conductor first found it running (Unix seconds); 0 before.
        ended_at: Time when the conductor first found it ended (Unix seconds); 0 before, and for a refused job.
        slots: The largest number of slots that its workers had at the same time.
    """

    name: str
    number: int
    directory: Path
    job: Word | None = None
    state: AllocationState = AllocationState.PENDING
    reason: str = ""
    released: bool = False
    submitted_at: UnixTime = 0.0
    began_at: UnixTime = 0.0
    ended_at: UnixTime = 0.0
    slots: Count = 0

    @property
    def is_open(self) -> bool:
        """Whether workers run in it or may still start."""
        return self.job is not None and self.state.is_open

    @property
    def is_submission_unknown(self) -> bool:
        """Whether the submission was interrupted, so that a job may exist or not."""
        return self.job is None and self.state is AllocationState.PENDING

    @property
    def label(self) -> str:
        """The name in logs, heartbeats and command lines: ``sim/2``."""
        return f"{self.name}/{self.number}"

    @property
    def output(self) -> str:
        """The end of the job's output, stderr before stdout."""
        files = sorted(path for path in self.directory.glob("*") if path.suffix in (".err", ".out"))
        return "\n".join(filter(None, map(tail, files)))

    def apply_report(self, report: JobReport) -> bool:
        """Apply a report of the batch system; return whether anything has changed."""
        if (report.state, report.reason) == (self.state, self.reason):
            return False
        before = self.state, self.reason, self.began_at, self.ended_at
        self.state, self.reason = report.state, report.reason
        if self.state is AllocationState.RUNNING and not self.began_at:
            self.began_at = clock.now()
        if not self.state.is_open:
            self.ended_at = clock.now()
        try:
            self.store()
        except OSError:  # a full disk: the report is applied again at the next poll
            self.state, self.reason, self.began_at, self.ended_at = before
            raise
        return True

    def record_slots(self, slots: int) -> None:
        """Store the number of slots of its workers if it is the largest so far; an allocation with slots has begun."""
        if slots > self.slots:
            self.slots = slots
            self.began_at = self.began_at or clock.now()
            with contextlib.suppress(OSError):  # a full disk: the next change stores it
                self.store()

    def store(self) -> None:
        """Write `allocation.json`, which status and a later conductor read."""
        values = dataclasses.asdict(self) | {"state": self.state.name}
        for key in ("name", "number", "directory"):  # the path of the file contains them
            del values[key]
        write_atomically(self.directory / "allocation.json", json.dumps(values, indent=1))


def read_allocations(directory: Path) -> Iterator[Allocation]:
    """Yield all allocations of a study, by name and number.

    Args:
        directory: Directory of the allocations of a study.

    Raises:
        OSError: a file cannot be read.
        DamagedFileError: a file is not that of an allocation.
    """
    for path in allocation_files(directory):
        yield read_allocation(path)


def allocation_files(directory: Path) -> list[Path]:
    """Return the files of all allocations of a study, by name and number."""
    paths = (path for path in directory.glob("*/*/allocation.json") if path.parent.name.isdecimal())
    return sorted(paths, key=lambda path: (path.parent.parent.name, int(path.parent.name)))


def last_allocation(directory: Path, name: str) -> Allocation | None:
    """Return the last allocation of a name; None before the first.

    Args:
        directory: Directory of the allocations of a study.
        name: Name of the allocation.

    Raises:
        OSError: the file cannot be read.
        DamagedFileError: the file is not that of an allocation.
    """
    numbers = [
        int(path.parent.name) for path in (directory / name).glob("*/allocation.json") if path.parent.name.isdecimal()
    ]
    return read_allocation(directory / name / str(max(numbers)) / "allocation.json") if numbers else None


def read_allocation(path: Path) -> Allocation:
    """Return the allocation that a file describes.

    Raises:
        OSError: the file cannot be read.
        DamagedFileError: it is not the file of an allocation.
    """
    place = {"name": path.parent.parent.name, "number": int(path.parent.name), "directory": path.parent}
    try:
        values: dict[str, Any] = read_json(path)
        return conversion.from_dict(Allocation, {**values, "state": AllocationState[values["state"]].value, **place})
    except DamagedFileError as error:
        raise DamagedFileError.at(path, error.problem, _REMEDY) from error
    except (ValueError, LookupError, TypeError) as cause:
        problem = str(cause) if isinstance(cause, ValueError) else "it is not the state of an allocation"
        raise DamagedFileError.at(path, problem, _REMEDY) from cause


def new_directory(parent: Path, name: str) -> tuple[int, Path]:
    """Create the directory of the next allocation with a name; return its number and the directory."""
    number = 1 + max((int(p.name) for p in (parent / name).glob("*") if p.name.isdecimal()), default=0)
    directory = parent / name / str(number)
    directory.mkdir(parents=True)
    return number, directory
