"""The addition of samples to a study: one process at a time adds the rows of a file (`study/additions.py`)."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from filelock import FileLock, Timeout
from msgspec.structs import replace

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import SampleError, StudyError
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.report.terminal import command_words
from maestro_celery_plugin.samples.own_table import copy_table
from maestro_celery_plugin.samples.table import check_is_file, forget_identity
from maestro_celery_plugin.study.additions import (
    Addition,
    Additions,
    are_taken,
    file_of,
    read_additions,
    write_additions,
)
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.stopped_workers import read_stopped

__all__ = ["Added", "add_file", "await_conductor", "growing_plan", "room_in"]

# Seconds that a process waits for another one that adds samples: a large table is copied and indexed.
_LOCK_LIMIT_S = 60.0
# Seconds that a user waits for the conductor.
_TAKEN_LIMIT_S = 10.0
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Added:
    """What an addition has done.

    Attributes:
        start: The number of the first added sample.
        stop: The number after that of the last added sample; `start` if there was no room.
        total: The number of samples of the study now.
        left_out: Number of rows that are no samples, because the study would have more than `max_samples`.
        is_new: Whether this call has added them; otherwise an earlier one has.
    """

    start: int
    stop: int
    total: int
    left_out: int = 0
    is_new: bool = True

    @property
    def sentence(self) -> str:
        """What was done, for the user."""
        count, which = self.stop - self.start, f"{self.start} to {self.stop - 1}"
        if count == 1:
            which = str(self.start)
        if not self.is_new:
            return f"An earlier call has added these samples ({which}); nothing is added. The study has {self.total}."
        more = "1 more is" if self.left_out == 1 else f"{self.left_out} more are"
        limit = f"; {more} left out (merlin.samples.max_samples)" if self.left_out else ""
        words = f"Added {count} {'sample' if count == 1 else 'samples'} ({which})" if count else "Nothing is added"
        return f"{words}{limit}. The study has {self.total} samples."


def growing_plan(directory: Path) -> StudyPlan:
    """Return the plan of a study to which samples can be added.

    Raises:
        StudyError: samples cannot be added to it.
    """
    plan = StudyPlan.read(directory)
    if not plan.session.exists():
        raise StudyError(f"The study '{plan.root}' was a dry run; it runs no samples.")
    if plan.table is None:
        raise StudyError(f"The study '{plan.root}' has no sample table (merlin.samples), so that none can be added.")
    if plan.hierarchy == 1:
        raise StudyError(
            f"The study '{plan.root}' has one sample, which runs in the workspace of its step, and no directories for "
            "others; launch it with `merlin.samples.max_samples: N`."
        )
    return plan


def room_in(plan: StudyPlan, additions: Additions) -> int | None:
    """Return how many samples can still be added; None for any number."""
    limit = plan.settings.samples.max_samples if plan.settings.samples else None
    return None if limit is None else max(0, limit - plan.rows - additions.count)


def add_file(plan: StudyPlan, path: Path, key: str | None = None, shown: str | None = None) -> Added:
    """Add the rows of a sample file to a study.

    Args:
        plan: The study.
        path: The file, of which the study gets a copy.
        key: Identity of the addition; None for the content of the file.
        shown: Name of the file in messages.

    Raises:
        SampleError: the file is no sample table of this study.
        StudyError: another process does not end its addition.
        OSError: a file cannot be read or written.
    """
    try:
        with FileLock(plan.info / "additions.lock").acquire(timeout=_LOCK_LIMIT_S):
            return _add(plan, path, key, shown or str(path))
    except Timeout as cause:
        raise StudyError(
            f"Another process has been adding samples to '{plan.root}' for {_LOCK_LIMIT_S:.0f} s; try again."
        ) from cause


def _add(plan: StudyPlan, path: Path, key: str | None, shown: str) -> Added:
    additions = read_additions(plan)
    check_is_file(path)
    key = key or _content_key(path)
    total = plan.rows + additions.count
    earlier = additions.samples_before(key, plan.rows)
    if earlier is not None:
        return Added(start=earlier[0], stop=earlier[1], total=total, is_new=False)
    # With the user's name, which messages of readers show; a name has at most 255 bytes.
    target = file_of(plan, f"{len(additions.added) + 1}-{path.stem[:50]}{path.suffix}")
    rows = _stored_rows(plan, path, target, shown)
    room = room_in(plan, additions)
    used = rows if room is None else min(rows, room)
    if used:
        addition = Addition(file=target.name, rows=rows, used=used, key=key)
        write_additions(plan, replace(additions, study_id=plan.id, added=(*additions.added, addition)))
    return Added(start=total, stop=total + used, total=total + used, left_out=rows - used)


def _stored_rows(plan: StudyPlan, path: Path, target: Path, shown: str) -> int:
    """Store the file of an addition; return the number of its rows.

    A process that was killed before its addition may have left a file of this name.
    """
    try:
        forget_identity(target, target.parent)
        copy_table(path, target)
        table = open_table(target, plan.column_labels, target.parent)
        table.row(0)
    except SampleError as cause:
        raise SampleError(str(cause).replace(str(target), shown).replace(str(path), shown)) from cause
    return len(table)


def _content_key(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def await_conductor(plan: StudyPlan, total: int, *, wait: bool) -> tuple[str, bool]:
    """Return what becomes of added samples, as a sentence, and whether a conductor has taken or will take them.

    Args:
        plan: The study.
        total: The number of samples of the study.
        wait: Whether to wait some seconds for the conductor, which may just end.
    """

    def is_decided() -> bool:
        return are_taken(plan, total) or not has_conductor(plan)

    if wait:
        clock.wait_until(is_decided, _TAKEN_LIMIT_S, interval_s=0.3)
    if has_conductor(plan):
        if read_stopped(plan.session) is not None:
            command = command_words("maestro-celery resume", plan.root)
            return f"They wait, because workers are stopped; `{command}` starts these again.", True
        if wait and are_taken(plan, total):
            return "The conductor runs them.", True
        return "The conductor takes them within seconds.", True
    command = command_words("maestro-celery resume", plan.root)
    if are_taken(plan, total):
        return f"The study has ended, and its step records have them; `{command}` runs those that have not run.", False
    return f"The study has no conductor; `{command}` runs them.", False
