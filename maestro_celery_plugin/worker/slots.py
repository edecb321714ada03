"""The slots of a worker process: the attempts that run in them, and whether there is time for more."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import threading
from collections.abc import Callable, Iterator

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.worker.attempt import RunningAttempt
from maestro_celery_plugin.worker.heartbeat_limit import HeartbeatLimit
from maestro_celery_plugin.worker.launch_env import LaunchEnvironment

__all__ = ["TIME_BUDGET_S", "Running", "Slots"]

# A slot runs samples of its range for about this long, and sends the rest of the range to other slots.
TIME_BUDGET_S = 1.0
# The same for a step record whose samples have requested another run: the delay of a retry ends within a second.
AGAIN_BUDGET_S = 0.3
# A sample that is expected to take less ends soon: the next message of its slot may arrive meanwhile.
SOON_S = 0.1
# A slot that was free for longer has waited for its message: few messages are in the task queues.
WAIT_S = 0.1
# Signals that a batch system sends to every process of an allocation that it ends: samples and workers.
# LSF sends SIGUSR2 at the time limit, and SIGINT before SIGTERM (bsub -W, bkill).
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL)
# If such a signal has ended a sample, the worker waits this long to see whether it also receives the signal.
SIGNAL_LIMIT_S = 2.0


@dataclasses.dataclass(frozen=True)
class Running:
    """An attempt that runs in a slot.

    Attributes:
        attempt: The attempt.
        study: Identity of its study.
        record: Number of the step record.
        signal: The signal that the sample receives before its allocation ends.
        must_end: Returns whether the coordinator has cancelled the attempt or declared it lost.
        launches: Whether the sample starts parallel programs.
    """

    attempt: RunningAttempt
    study: str
    record: int
    signal: signal.Signals
    must_end: Callable[[], bool]
    launches: bool = False


class Slots:
    """The slots of a worker process.

    Args:
        count: Number of slots: how many samples run in parallel.
        deadline: The end of the allocation.
        launches: Environment and warning of samples that start parallel programs.
        heartbeat_limit: How long the worker may live without a heartbeat.

    Attributes:
        launches: Environment and warning of samples that start parallel programs.
        busy: Number of slots with a task.
        last_work: When a slot last took or finished a task (monotonic).
        stopping: Set when no further sample may start, and the running samples must end.
        is_leaving: Whether no further sample may start, while the running samples continue.
        is_terminated: Whether a signal has told the worker to end. `stopping` follows, perhaps much later: the thread
            that sets it may wait for the file system. A signal handler sets this, so it has no lock.
    """

    def __init__(
        self, count: int, deadline: Deadline, launches: LaunchEnvironment, heartbeat_limit: HeartbeatLimit | None = None
    ) -> None:
        self.launches = launches
        self._heartbeat_limit = heartbeat_limit or HeartbeatLimit()
        self._number = count
        self.busy = 0
        self.last_work = clock.monotonic()
        self.stopping = threading.Event()
        self.is_leaving = self.is_terminated = False
        self._deadline = deadline
        self._lock = threading.Lock()
        self._running: dict[int, Running] = {}
        self._mean_s: dict[tuple[str, int | str], float] = {}
        # How many samples have ended that the mean comes from: not more than the worker has slots.
        self._ended: dict[tuple[str, int | str], int] = {}
        self._longest_s: dict[tuple[str, int], float] = {}
        self._out_of_time: set[tuple[str, int]] = set()
        self._requesting: set[tuple[str, int]] = set()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        # Since when each slot is free (monotonic), and the slots that have waited for their present message.
        self._free_since: dict[int, float] = {}
        self._waited: set[int] = set()
        for slot in range(count):
            self._free.put(slot)

    @contextlib.contextmanager
    def take(self) -> Iterator[int]:
        """Wait for a free slot, and reserve it; yield its number."""
        slot = self._free.get()
        if clock.monotonic() - self._free_since.get(slot, float("-inf")) > WAIT_S:
            self._waited.add(slot)
        self._count(+1)
        try:
            yield slot
        finally:
            self._waited.discard(slot)
            self._count(-1)
            self._free_since[slot] = clock.monotonic()
            self._free.put(slot)

    def has_waited(self, slot: int) -> bool:
        """Tell whether a slot with a task had to wait for its message, as other slots may wait now."""
        return slot in self._waited

    def _count(self, change: int) -> None:
        with self._lock:
            self.busy += change
            self.last_work = clock.monotonic()

    # --- durations ---

    def piece_size(self, task: RangeTask, step: str) -> int:
        """Return how many samples a slot runs itself: as many as fit its time budget, or one if none has run yet.

        Args:
            task: The range task.
            step: Name of the step. Its step records differ in parameters; the first sample of a step record is assumed
                to take as long as those of the others.
        """
        mean_s = self._expected_s(task, step)
        return max(1, int(self._budget_s(task) / mean_s)) if mean_s else 1

    def _budget_s(self, task: RangeTask) -> float:
        """Return for how many seconds a slot runs samples of one range."""
        return min(AGAIN_BUDGET_S, TIME_BUDGET_S) if (task.study, task.record) in self._requesting else TIME_BUDGET_S

    def record_request(self, task: RangeTask) -> None:
        """Record that a sample of a step record has requested another run."""
        self._requesting.add((task.study, task.record))

    def ends_soon(self, task: RangeTask, step: str) -> bool:
        """Tell whether a sample that starts now will probably end within `SOON_S` seconds."""
        mean_s = self._expected_s(task, step)
        return mean_s is not None and mean_s < SOON_S

    def _expected_s(self, task: RangeTask, step: str) -> float | None:
        """Return how long a sample probably takes; None if none has ended.

        The first samples that end are the shortest ones. So those that still run count with their time so far: the time
        of both, divided by the number of those that have ended.
        """
        for key in ((task.study, task.record), (task.study, step)):
            mean_s = self._mean_s.get(key)
            if mean_s is None:
                continue
            running = [one for one in list(self._running.values()) if one.study == task.study_id]
            running_s = sum(one.attempt.elapsed_s for one in running if one.record == task.record or key[1] == step)
            return mean_s + running_s / self._ended[key]
        return None

    def is_over_budget(self, task: RangeTask, seconds: float) -> bool:
        """Tell whether a slot has worked on one range for so long that it should send the rest to other slots."""
        return seconds > 2 * self._budget_s(task)

    def record_duration(self, task: RangeTask, step: str, duration_s: float) -> None:
        """Record the duration of a sample of a step record, and of its step."""
        for key in ((task.study, task.record), (task.study, step)):
            mean_s = self._mean_s.get(key, duration_s)
            self._mean_s[key] = max(1e-4, 0.9 * mean_s + 0.1 * duration_s)
            self._ended[key] = min(self._number, self._ended.get(key, 0) + 1)
        key = task.study, task.record
        self._longest_s[key] = max(duration_s, self._longest_s.get(key, 0.0))

    @property
    def may_start(self) -> bool:
        """Whether a sample may start: the worker does not stop, and the conductor does not count it as dead."""
        return not (self.is_leaving or self.stopping.is_set() or self.is_cut_off)

    @property
    def is_cut_off(self) -> bool:
        """Whether the conductor may count the worker as dead, and let others run its samples."""
        return self._heartbeat_limit.is_exceeded

    @property
    def lapses(self) -> int:
        """How often this worker has counted as dead and has gone on, perhaps (`HeartbeatLimit`)."""
        return self._heartbeat_limit.lapses

    def has_time_for(self, task: RangeTask, manifest: Manifest) -> bool:
        """Tell whether a sample of a step record may start before the allocation ends.

        If not, the worker reports it in its heartbeat, so that the coordinator does not count the slots of this worker
        as free for the step record.
        """
        if not self._deadline.is_in_allocation:
            return True
        place = task.study_id, task.record
        elapsed_s = [one.attempt.elapsed_s for one in list(self._running.values()) if (one.study, one.record) == place]
        longest_s = max((*elapsed_s, self._longest_s.get((task.study, task.record), 0.0)))
        if self._deadline.fits(manifest.time_request_s, longest_s):
            return True
        self._out_of_time.add(place)
        return False

    @property
    def out_of_time(self) -> tuple[tuple[str, int], ...]:
        """(study, step record) whose samples do not start any more, because the time is too short."""
        return tuple(sorted(self._out_of_time))

    # --- running attempts ---

    def add(self, slot: int, running: Running) -> None:
        """Watch an attempt while it runs."""
        self._running[slot] = running

    def remove(self, slot: int) -> None:
        """Stop watching an attempt."""
        del self._running[slot]

    def was_ended_with_allocation(self, code: int) -> bool:
        """Tell whether a signal to the whole allocation has ended a sample.

        Args:
            code: Exit code of the sample; a shell adds 128 to the number of a signal.
        """
        if not self._deadline.is_in_allocation:
            return False
        is_ending_signal = code in [ending for number in _ENDING_SIGNALS for ending in (-number, 128 + number)]
        return is_ending_signal and clock.wait_until(
            lambda: self.is_terminated or self.stopping.is_set(), SIGNAL_LIMIT_S
        )

    def kill_running(self) -> None:
        """Kill the running attempts; this uses no file."""
        for running in list(self._running.values()):
            running.attempt.end(at_once=True)

    def check_running(self) -> None:
        """Warn or end the attempts that must not continue; the worker calls this a few times per second."""
        is_over, is_warning = self._deadline.must_kill, self._deadline.must_warn
        to_warn: dict[signal.Signals, dict[int, RunningAttempt]] = {}
        for slot, running in list(self._running.items()):
            if self.stopping.is_set() or running.must_end():
                running.attempt.end()
            elif is_over:
                running.attempt.end(at_once=True)
            elif is_warning:
                to_warn.setdefault(running.signal, {})[slot] = running.attempt
        launching = {slot for slot, running in list(self._running.items()) if running.launches}
        for number, attempts in to_warn.items():
            self.launches.warn(attempts, launching, number)
