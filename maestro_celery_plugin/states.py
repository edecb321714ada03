"""All states and exit codes, and the tables that map one kind to another.

exit code of an attempt → `Outcome` of the sample → `RecordState` of the step record → Maestro's `State`

state of a batch system → `AllocationState` → `RecordState` of the step records whose allocations have ended
"""

from __future__ import annotations

import enum
import errno
import os
import signal

__all__ = [
    "ALLOCATION_ENDS",
    "BROKEN",
    "EXIT_OUTCOMES",
    "FAULT_MACHINES",
    "MAESTRO_STATES",
    "POISON_LIMIT",
    "QUICK_FAILURES",
    "QUICK_S",
    "TRIES_PASSING",
    "TRIES_PERMANENT",
    "UNREADABLE",
    "AllocationState",
    "ExitCode",
    "MemberState",
    "Outcome",
    "RecordState",
    "RunMode",
    "WorkerState",
    "cannot_run_code",
    "errno_of",
    "how_it_ended",
    "is_permanent",
    "is_quick_failure",
    "is_request",
    "outcome_of",
]


class ExitCode(enum.IntEnum):
    """Exit codes with a meaning, as in Merlin (common/enums.py:34-42)."""

    SUCCESS = 0
    """The sample has finished."""
    RESTART = 100
    """Run the sample again, with `restart`."""
    SOFT_FAIL = 101
    """The sample failed; the step continues, within `max_failures` if it is sampled."""
    HARD_FAIL = 102
    """The sample failed, and the step fails."""
    RETRY = 104
    """Run the sample again, with `cmd`."""
    STOP_WORKERS = 105
    """The sample has finished; all workers of the study leave after their running samples, and the study waits."""
    RAISE_ERROR = 106
    """The sample failed, and the step fails (Merlin raises an exception here)."""


class Outcome(enum.IntEnum):
    """The outcome of a sample. All outcomes except `OPEN` are final."""

    # If two attempts under the same epoch end, the higher outcome counts. The cache of `status` stores these numbers:
    # whoever changes them raises its `_FORMAT` as well.

    OPEN = 0
    """No outcome yet: not started, running, lost, or waiting for another attempt."""
    FINISHED = 3
    """Finished."""
    FAILED = 1
    """Failed; the step continues unless more samples have failed than may fail (`max_failures`)."""
    HARD_FAILED = 2
    """Failed; the step fails."""
    STOPPED_STUDY = 4
    """Finished, with the request that all workers stop."""


EXIT_OUTCOMES: dict[ExitCode, Outcome] = {
    ExitCode.SUCCESS: Outcome.FINISHED,
    ExitCode.RESTART: Outcome.OPEN,
    ExitCode.SOFT_FAIL: Outcome.FAILED,
    ExitCode.HARD_FAIL: Outcome.HARD_FAILED,
    ExitCode.RETRY: Outcome.OPEN,
    ExitCode.STOP_WORKERS: Outcome.STOPPED_STUDY,
    ExitCode.RAISE_ERROR: Outcome.HARD_FAILED,
}


# A sample fails when its worker has died this many times while the sample ran.
POISON_LIMIT = 5

# A sample that workers could not run because of faults of their machines fails after this many tries, on this many
# machines if there are so many: a fault that can pass (a full disk), and a fault that will not (a missing interpreter).
TRIES_PASSING, TRIES_PERMANENT, FAULT_MACHINES = 30, 3, 3
_PERMANENT_ERRORS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ENOEXEC,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.E2BIG,
    }
)

# A worker is held after this many quick failures in a row, and again after twice as many if it was acquitted.
QUICK_FAILURES = 5
# A sample that fails later has probably done its work.
QUICK_S = 1.0

# Codes of attempts that did not run. Codes of signals are negative, as in `subprocess`, and greater than these.
_CANNOT_RUN = -1000
# The row of the sample cannot be read, because the sample file has changed.
UNREADABLE = -999
# The worker itself has failed while it ran the sample; the log of the worker has the traceback.
BROKEN = -998


def cannot_run_code(number: int) -> int:
    """Return the code of a sample that could not start because of an `errno`."""
    return _CANNOT_RUN - number


def errno_of(code: int) -> int | None:
    """Return the `errno` because of which a sample could not start; None for all other codes."""
    return _CANNOT_RUN - code if code <= _CANNOT_RUN else None


def is_permanent(code: int) -> bool:
    """Tell whether a fault of a machine, because of which a sample could not run, will not pass."""
    return code in (UNREADABLE, BROKEN) or errno_of(code) in _PERMANENT_ERRORS


def how_it_ended(code: int) -> str:
    """Return how an attempt ended, for a message: ``exit code 3``, ``SIGKILL``, ``it could not start: ...``."""
    if code == UNREADABLE:
        return "its row of the sample table cannot be read: the file has changed"
    if code == BROKEN:
        return "an error in the worker; the log of the worker has the traceback"
    number = errno_of(code)
    if number is not None:
        return f"it could not start: {os.strerror(number)}"
    if code < 0:
        return _signal_name(-code)
    meaning = ExitCode(code).name.lower().replace("_", " ") if code in ExitCode._value2member_map_ else ""
    if code in (ExitCode.RESTART, ExitCode.RETRY):
        meaning += ", too often"
    return f"exit code {code} ({meaning})" if meaning else f"exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def is_request(code: int) -> bool:
    """Tell whether a code makes the sample run again: a request of the sample, or a start that failed."""
    # Only workers of release 0.1 record a start that failed as the end of an attempt; this release has `Kind.NOT_RUN`.
    return code in (ExitCode.RESTART, ExitCode.RETRY) or code <= _CANNOT_RUN


def outcome_of(code: int) -> Outcome:
    """Return the outcome of a sample from the code of its last attempt; an unknown code is a soft failure."""
    if is_request(code):
        return Outcome.OPEN
    if code in (UNREADABLE, BROKEN):
        return Outcome.HARD_FAILED
    return EXIT_OUTCOMES[ExitCode(code)] if code in ExitCode._value2member_map_ else Outcome.FAILED


def is_quick_failure(code: int, duration_s: float) -> bool:
    """Tell whether an attempt has failed so early that the machine may be the cause."""
    return outcome_of(code) in (Outcome.FAILED, Outcome.HARD_FAILED) and duration_s < QUICK_S


class RunMode(enum.IntEnum):
    """How a worker runs a sample: the coordinator decides, and its message says so."""

    ASSIGNED = 0
    """The samples of the message have different modes, which are in a file (`study/assignment.py`)."""
    FIRST = 1
    """Run `cmd`; the sample has not run before."""
    AGAIN = 2
    """Run `cmd` again."""
    RESTART = 3
    """Run `restart`."""


class WorkerState(str, enum.Enum):
    """State of a worker: in its heartbeat, and for users in `status`, where scripts read the text."""

    STARTING = "starting"
    """It does not receive messages yet."""
    IDLE = "idle"
    """It waits for messages."""
    BUSY = "busy"
    """A slot has a message."""
    DISCONNECTED = "disconnected"
    """It has no work, and its machine cannot reach the broker."""
    HELD = "held"
    """It takes no samples until the conductor has found out why the last ones failed."""
    DRAINING = "draining"
    """It takes no samples, because its allocation ends soon."""
    STOPPING = "stopping"
    """It takes no samples, and leaves when the running samples have ended."""
    DEAD = "dead"
    """Only in `status`: its process has ended, or its machine writes no heartbeat."""
    AWAITED = "awaited"
    """Only in `status`: a user must start it on another machine."""
    UNKNOWN = "unknown"
    """Its heartbeat has a state that this version does not know; it counts as a live worker without a free slot."""

    __str__ = str.__str__  # the text alone, with each version of Python

    @classmethod
    def _missing_(cls, value: object) -> WorkerState:
        """Return `UNKNOWN`: a worker of another version must not count as dead because of its state."""
        return cls.UNKNOWN


class MemberState(str, enum.Enum):
    """State of a study in its session (`study/members.py`)."""

    LAUNCHED = "launching"
    """`maestro run` prepares it."""
    REQUESTED = "requested"
    """The host of the session is asked to start its conductor."""
    RUNNING = "running"
    """Its conductor has started; if the conductor does not live any more, the study is interrupted."""
    ENDED = "ended"
    """Its conductor has ended in order."""

    __str__ = str.__str__  # the text alone, with each version of Python


class RecordState(enum.Enum):
    """State of a step record in the coordinator."""

    PENDING = enum.auto()
    """Submitted; no sample has started, or it waits because its workers are stopped."""
    RUNNING = enum.auto()
    """Samples have started, and some have no outcome."""
    FINISHED = enum.auto()
    """Every sample has an outcome, and not more samples failed than may fail."""
    FAILED = enum.auto()
    """A sample failed hard, more samples failed than may fail, or no worker could start; no sample runs any more."""
    TIMED_OUT = enum.auto()
    """The allocations of its worker groups have ended, and some samples have no outcome."""
    CANCELLED = enum.auto()
    """Cancelled; no sample runs any more."""


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
    """The job is in the queue, or the batch system will start it again."""
    RUNNING = "runs"
    """The job has started on its nodes."""
    COMPLETED = "its workers have left"
    """The script has ended with exit code 0: the workers were drained, or had no work."""
    FAILED = "its script has failed"
    """The script has ended with another exit code."""
    TIMED_OUT = "it reached its time limit"
    """The batch system has ended the job at its time limit."""
    PREEMPTED = "it was preempted"
    """The batch system has ended the job to give its nodes to a job of higher priority."""
    NODE_FAILED = "a node has failed"
    """The batch system has lost a node of the job."""
    BOOT_FAILED = "its nodes could not be booted"
    """The batch system could not boot the nodes of the job."""
    OUT_OF_MEMORY = "it exceeded its memory limit"
    """The batch system has ended the job because it used too much memory."""
    CANCELLED = "it was cancelled"
    """A person has cancelled the job: its owner, or an operator."""
    GONE = "the batch system no longer lists it"
    """The batch system no longer lists the job; without accounting, this happens minutes after its end."""

    @property
    def is_open(self) -> bool:
        """Whether workers run in the allocation or may still start."""
        return self in (AllocationState.PENDING, AllocationState.RUNNING)


# The state of a step record with started samples when its last allocation has ended and samples have no outcome.
# TIMED_OUT lets Maestro restart the step record, up to the limit of `-r`; the restart opens the next allocation.
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
