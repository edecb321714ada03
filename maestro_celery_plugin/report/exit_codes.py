"""The exit codes of `status`, `explain`, `monitor`, `resume` and `wait`, which tell a script how the study is."""

from __future__ import annotations

import enum

from maestro_celery_plugin.report.model import StudyState, StudyStatus

__all__ = ["StudyCode", "WaitCode", "code_of", "wait_code_of"]


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


class WaitCode(enum.IntEnum):
    """How a study is for which `wait` has waited."""

    FINISHED = 0
    """It has finished, and no sample has failed."""
    FAILED = 1
    """It has ended, and samples or steps have failed."""
    CANCELLED = 2
    """It was cancelled."""
    STALLED = 3
    """It cannot go on by itself: no conductor runs it, or for some time, no worker was alive and no allocation open."""
    TIMED_OUT = 124
    """It still runs after the seconds of `--timeout`; `timeout(1)` has the same code."""


def wait_code_of(code: StudyCode | None, state: StudyState) -> WaitCode:
    """Return the exit code of `wait`.

    Args:
        code: How the study is; None while it runs.
        state: Its state.
    """
    if code is None or code is StudyCode.RUNNING:
        return WaitCode.TIMED_OUT
    if code in (StudyCode.UNCONDUCTED, StudyCode.STALLED) or state is StudyState.DRYRUN:
        return WaitCode.STALLED
    if state is StudyState.CANCELLED:
        return WaitCode.CANCELLED
    return WaitCode.FINISHED if code is StudyCode.WELL else WaitCode.FAILED
