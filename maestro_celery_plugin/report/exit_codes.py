"""The exit codes of `status`, `explain`, `monitor` and `resume`, which tell a script how the study is."""

from __future__ import annotations

import enum

from maestro_celery_plugin.report.model import StudyState, StudyStatus

__all__ = ["StudyCode", "code_of"]


class StudyCode(enum.IntEnum):
    """How a study is."""

    WELL = 0
    """It has finished or runs, and no sample has failed."""
    FAILED_SAMPLES = 1
    """It has finished or runs, and samples have failed."""
    UNSUCCESSFUL = 2
    """It has failed or was cancelled."""
    UNCONDUCTED = 3
    """It has not ended, and no conductor runs it."""
    RUNNING = 4
    """It still runs, although the command was to wait for its end."""
    STALLED = 5
    """Only of `monitor`: it waits for workers; for some time, no worker was alive and no allocation open."""


def code_of(status: StudyStatus, *, is_to_end: bool = False) -> StudyCode:
    """Return the exit code of a command that shows a study.

    Args:
        status: The status of the study.
        is_to_end: Whether the command was to wait for the end of the study.
    """
    if status.state in (StudyState.FAILED, StudyState.CANCELLED):
        return StudyCode.UNSUCCESSFUL
    if status.state in (StudyState.PENDING, StudyState.INTERRUPTED):
        return StudyCode.UNCONDUCTED
    if status.state is StudyState.RUNNING and is_to_end:
        return StudyCode.RUNNING
    return StudyCode.FAILED_SAMPLES if status.failed_samples else StudyCode.WELL
