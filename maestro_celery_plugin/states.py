"""States and exit codes: every one there is, and the tables that lead from one kind to another.

exit code of an attempt → `Outcome` of the sample → `RecordState` of the step record → Maestro's `State`

a batch system's word → `AllocationState` → `RecordState` of the step records whose allocations have ended
"""

from __future__ import annotations

import enum

__all__ = [
    "ALLOCATION_ENDS",
    "EXIT_OUTCOMES",
    "MAESTRO_STATES",
    "AllocationState",
    "ExitCode",
    "Outcome",
    "RecordState",
    "outcome_of",
]


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


class AllocationState(enum.Enum):
    """State of the batch job behind an allocation."""

    PENDING = "waits in the queue"
    """The batch system has it and has not started it, or will start it again."""
    RUNNING = "runs"
    """It has its nodes."""
    COMPLETED = "its workers have left"
    """Its script has ended with exit code 0: the workers were drained, or had nothing to do."""
    FAILED = "its script has failed"
    """Its script has ended with another exit code."""
    TIMED_OUT = "its time was up"
    """The batch system has ended it at its time limit."""
    PREEMPTED = "it was preempted"
    """The batch system has taken its nodes for a job of higher priority."""
    NODE_FAILED = "a node has failed"
    """The batch system has lost one of its nodes."""
    BOOT_FAILED = "its nodes could not be booted"
    """The batch system could not make its nodes ready."""
    OUT_OF_MEMORY = "it has used more memory than it was given"
    """The batch system has ended it for the memory that it used."""
    CANCELLED = "it was cancelled"
    """Somebody has cancelled it: its owner, or an operator."""
    GONE = "the batch system does not know it any more"
    """It has left the batch system's memory before it was asked; without accounting, that takes minutes."""

    @property
    def is_open(self) -> bool:
        """Whether workers may still come or be there."""
        return self in (AllocationState.PENDING, AllocationState.RUNNING)


# What becomes of a step record that has started samples when the last of its allocations has ended with
# samples left. TIMED_OUT lets Maestro restart it, up to the limit of `-r`, which opens the next one.
ALLOCATION_ENDS: dict[AllocationState, RecordState] = {
    AllocationState.PENDING: RecordState.RUNNING,
    AllocationState.RUNNING: RecordState.RUNNING,
    AllocationState.COMPLETED: RecordState.TIMED_OUT,
    AllocationState.FAILED: RecordState.TIMED_OUT,
    AllocationState.TIMED_OUT: RecordState.TIMED_OUT,
    AllocationState.PREEMPTED: RecordState.TIMED_OUT,
    AllocationState.NODE_FAILED: RecordState.TIMED_OUT,
    AllocationState.BOOT_FAILED: RecordState.TIMED_OUT,
    AllocationState.OUT_OF_MEMORY: RecordState.TIMED_OUT,
    AllocationState.CANCELLED: RecordState.CANCELLED,
    AllocationState.GONE: RecordState.TIMED_OUT,
}
