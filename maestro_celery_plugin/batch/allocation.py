"""Allocations: batch jobs in which the workers of one or more groups run.

An allocation that Maestro's adapter submits, and a set of workers started in an allocation that this
process is already inside of, look the same from outside: each has a directory in the study with its script
and output, a state, and an end. Where they come from is in `allocation_jobs.py`.

    merlin_info/allocations/<name>/<number>/
      <name>.slurm.sh               the batch script, by Maestro's adapter
      <name>.out <name>.err         what the job printed, named as the batch system does
      allocation.json               job, state, reason, times
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maestro_celery_plugin.batch.base import JobReport
from maestro_celery_plugin.states import AllocationState
from maestro_celery_plugin.study.manifest import write_atomically

__all__ = ["Allocation", "new_directory", "read_allocations"]


@dataclasses.dataclass
class Allocation:
    """One allocation.

    Attributes:
        name: Name of the allocation.
        number: Counts the allocations of this name in the study, from 1.
        directory: Where its script and output are.
        job: Identifier for the batch system, or `pid:start` of a process here; None before it is submitted.
        state: Its state.
        reason: The batch system's words: why it waits, or how it ended.
        released: Whether we have ended it because nothing needs it any more.
        submitted_at: When it was submitted (Unix seconds).
        began_at: When it was first seen to have its nodes (Unix seconds); 0 before.
        ended_at: When it was first seen to have ended (Unix seconds); 0 before, and when it was refused.
        slots: The most slots that its workers have had at a time.
    """

    name: str
    number: int
    directory: Path
    job: str | None = None
    state: AllocationState = AllocationState.PENDING
    reason: str = ""
    released: bool = False
    submitted_at: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0
    slots: int = 0

    @property
    def is_open(self) -> bool:
        """Whether workers may still come or be there."""
        return self.job is not None and self.state.is_open

    @property
    def is_unsettled(self) -> bool:
        """Whether nobody knows if the batch system has taken it: the conductor died, or there was no answer."""
        return self.job is None and self.state is AllocationState.PENDING

    @property
    def label(self) -> str:
        """Its name in logs, heartbeats and command lines: ``sim/2``."""
        return f"{self.name}/{self.number}"

    @property
    def output(self) -> str:
        """The last lines of what the job printed, stderr before stdout."""
        files = sorted(path for path in self.directory.glob("*") if path.suffix in (".err", ".out"))
        texts = (path.read_text(errors="replace").strip() for path in files)
        return "\n".join(text[-1500:] for text in texts if text)

    def take(self, report: JobReport) -> bool:
        """Take in what the batch system says; return whether anything is new."""
        if (report.state, report.reason) == (self.state, self.reason):
            return False
        before = self.state, self.reason, self.began_at, self.ended_at
        self.state, self.reason = report.state, report.reason
        if self.state is AllocationState.RUNNING and not self.began_at:
            self.began_at = time.time()
        if not self.state.is_open:
            self.ended_at = time.time()
        try:
            self.store()
        except OSError:  # a full disk: it is news again at the next look
            self.state, self.reason, self.began_at, self.ended_at = before
            raise
        return True

    def note_slots(self, slots: int) -> None:
        """Keep how many slots its workers have, the most that there were; it has begun when there are any."""
        if slots > self.slots:
            self.slots = slots
            self.began_at = self.began_at or time.time()
            with contextlib.suppress(OSError):  # a full disk: it is stored with the next change
                self.store()

    def store(self) -> None:
        """Write its file, from which status and a later conductor read."""
        values = dataclasses.asdict(self) | {"state": self.state.name}
        for key in ("name", "number", "directory"):  # its directory tells
            del values[key]
        write_atomically(self.directory / "allocation.json", json.dumps(values, indent=1))


def read_allocations(directory: Path) -> Iterator[Allocation]:
    """Yield all allocations of a study, by name and number.

    Args:
        directory: The study's directory of allocations.
    """
    for path in sorted(directory.glob("*/*/allocation.json"), key=lambda p: (p.parent.parent.name, int(p.parent.name))):
        values: dict[str, Any] = json.loads(path.read_text())
        state = AllocationState[values.pop("state")]
        yield Allocation(path.parent.parent.name, int(path.parent.name), path.parent, state=state, **values)


def new_directory(parent: Path, name: str) -> tuple[int, Path]:
    """Make the directory of the next allocation of a name; return its number, too."""
    number = 1 + max((int(p.name) for p in (parent / name).glob("*") if p.name.isdigit()), default=0)
    directory = parent / name / str(number)
    directory.mkdir(parents=True)
    return number, directory

