"""States and exit codes: every one there is, and the tables that lead from one kind to another.

exit code of an attempt → `Outcome` of the sample → `RecordState` of the step record → Maestro's `State`.
"""

from __future__ import annotations

import enum

__all__ = ["EXIT_OUTCOMES", "MAESTRO_STATES", "ExitCode", "Outcome", "RecordState", "outcome_of"]


class ExitCode(enum.IntEnum):
    """Exit codes with a meaning, Merlin's (common/enums.py:34-42)."""

    SUCCESS = 0
    """The sample is done."""
    RESTART = 100
    """Run the sample again, with `restart`."""
    SOFT_FAIL = 101
    """The sample failed; the step goes on."""
    HARD_FAIL = 102
    """The sample failed, and with it the step."""
    RETRY = 104
    """Run the sample again, with `cmd`."""
    STOP_WORKERS = 105
    """The sample is done; stop all workers of the study."""
    RAISE_ERROR = 106
    """The sample failed, and with it the step (Merlin raises an exception here)."""


class Outcome(enum.IntEnum):
    """What became of a sample. Everything but `OPEN` is final."""

    # The numbers are in no file. Should two attempts under the same epoch end, the higher one counts.

    OPEN = 0
    """Not decided: not started, running, lost, or waiting for another attempt."""
    FINISHED = 3
    """Done."""
    FAILED = 1
    """Soft-failed: recorded, and the step goes on."""
    HARD_FAILED = 2
    """Failed such that its step fails."""
    STOPPED_STUDY = 4
    """Done, and the last that shall be done: all workers stop."""


EXIT_OUTCOMES: dict[ExitCode, Outcome] = {
    ExitCode.SUCCESS: Outcome.FINISHED,
    ExitCode.RESTART: Outcome.OPEN,
    ExitCode.SOFT_FAIL: Outcome.FAILED,
    ExitCode.HARD_FAIL: Outcome.HARD_FAILED,
    ExitCode.RETRY: Outcome.OPEN,
    ExitCode.STOP_WORKERS: Outcome.STOPPED_STUDY,
    ExitCode.RAISE_ERROR: Outcome.HARD_FAILED,
}


def outcome_of(code: int) -> Outcome:
    """Return the outcome that an exit code asks for; any code without a meaning is a soft failure.

    Negative codes are signals, as in `subprocess`.
    """
    return EXIT_OUTCOMES[ExitCode(code)] if code in ExitCode._value2member_map_ else Outcome.FAILED


class RecordState(enum.Enum):
    """State of a step record, as the coordinator sees it."""

    PENDING = enum.auto()
    """Submitted; no sample has started."""
    RUNNING = enum.auto()
    """Samples have started, and some are left."""
    FINISHED = enum.auto()
    """Every sample has an outcome, none of them a hard failure."""
    FAILED = enum.auto()
    """A sample failed hard, or no worker could be started; nothing of it runs any more."""
    TIMED_OUT = enum.auto()
    """The allocations of its worker groups have ended with samples left."""
    CANCELLED = enum.auto()
    """Cancelled; nothing of it runs any more."""


# RecordState → name of the member of maestrowf.abstracts.enums.State.
MAESTRO_STATES: dict[RecordState, str] = {
    RecordState.PENDING: "PENDING",
    RecordState.RUNNING: "RUNNING",
    RecordState.FINISHED: "FINISHED",
    RecordState.FAILED: "FAILED",
    RecordState.TIMED_OUT: "TIMEDOUT",
    RecordState.CANCELLED: "CANCELLED",
}
