"""The ownership of batch jobs: which job was submitted in a directory of the study, as the batch system knows it.

Maestro's adapters take the first number that `sbatch` or `bsub` prints for the identifier of the job
(slurmscriptadapter.py:245, lsfscriptadapter.py:291). A command that prints a number before it, in a banner of the
computing centre for example, makes every job number 3. The study would then watch and cancel another job.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.base import BatchSystem
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError

__all__ = ["check_owner", "confirmed_job", "find_job", "find_submitted"]

LOGGER = logging.getLogger(__name__)

# Seconds before each look for a new job, which some batch systems list with a delay.
_LOOK_DELAYS_S = (0.0, 0.5, 1.5)


def find_job(system: BatchSystem, directory: Path) -> str | None:
    """Return the user's newest open job that was submitted in a directory; None without such a job.

    Raises:
        BatchSystemUnavailableError: the batch system does not answer now.
    """
    try:
        directories = system.directories() or {}
    except AllocationError as cause:
        raise BatchSystemUnavailableError(str(cause)) from cause
    jobs = [job for job, place in directories.items() if _is_same(place, directory)]
    return max(jobs, key=_number, default=None)


def find_submitted(system: BatchSystem, directory: Path, printed: str | None) -> str | None:
    """Return the job of a submission that was not confirmed: one that is open, or the one with the printed number.

    Args:
        system: The batch system.
        directory: The directory of the submission.
        printed: The number that the submission has printed, perhaps that of the job, which may have ended meanwhile.

    Raises:
        BatchSystemUnavailableError: the batch system does not answer now.
    """
    found = find_job(system, directory)
    if found is not None or printed is None:
        return found
    try:
        place = (system.directories([printed]) or {}).get(printed, "")
    except AllocationError as cause:
        raise BatchSystemUnavailableError(str(cause)) from cause
    return printed if _is_same(place, directory) else None


def confirmed_job(system: BatchSystem, job: str, directory: Path) -> str:
    """Return the identifier of a job that was just submitted in a directory.

    Args:
        system: The batch system.
        job: The identifier that Maestro's adapter has read from the output of the command.
        directory: The directory.

    Raises:
        BatchSystemUnavailableError: the batch system does not say now which job it is.
    """
    problem = "it lists no job from there"
    for delay_s in _LOOK_DELAYS_S:
        clock.sleep(delay_s)
        try:
            directories = system.directories([job])
            if directories is None or _is_same(directories.get(job, ""), directory):
                return job
            found = find_job(system, directory)
        except AllocationError as error:
            problem = str(error)
            continue
        if found is not None:
            LOGGER.warning(
                "The job from '%s' is %s; its submission has printed another number first, %s.", directory, found, job
            )
            return found
    raise BatchSystemUnavailableError(
        f"A job was submitted from '{directory}', but the batch system does not say now which one it is; it is looked "
        f"up again ({problem})."
    )


def check_owner(system: BatchSystem, job: str, directory: Path | None) -> None:
    """Check, before a job is cancelled, that it was submitted in a directory of the study.

    Args:
        system: The batch system.
        job: The job.
        directory: The directory; None when it is unknown, which a study of release 0.1 did not store.

    Raises:
        BatchSystemUnavailableError: the batch system does not answer now.
        AllocationError: it is the job of somebody else.
    """
    try:
        directories = system.directories([job]) if directory is not None else None
    except AllocationError as cause:
        raise BatchSystemUnavailableError(str(cause)) from cause
    if directory is None or directories is None or job not in directories:
        return  # a job that the batch system does not list any more has ended
    if not _is_same(directories[job], directory):
        raise AllocationError(
            f"job {job} was submitted in '{directories[job]}' and is not a job of this study; it is not cancelled"
        )


def _is_same(place: str, directory: Path) -> bool:
    """Whether a path of the batch system is a directory; LSF writes ``$HOME``, and paths may contain links."""
    place = os.path.expandvars(place) if place.startswith("$HOME") else place
    return place == str(directory) or (bool(place) and os.path.realpath(place) == os.path.realpath(directory))


def _number(job: str) -> int:
    found = re.match(r"\d+", job)
    return int(found[0]) if found else 0
