"""The worker's side of range tasks: its slots, what runs in them, and whether there is time for more."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.worker import range_task
from maestro_celery_plugin.worker.attempt import RunningAttempt
from maestro_celery_plugin.worker.launch_env import SampleLaunches
from maestro_celery_plugin.worker.range_task import RangeWork
from maestro_celery_plugin.worker.study_context import StudySide

__all__ = ["WorkerSide"]

# What a batch system sends to every process of an allocation that it ends, samples and workers alike.
# LSF sends SIGUSR2 at the time limit, and SIGINT before SIGTERM (bsub -W, bkill).
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL)
# So long after a sample's death by such a signal it shows whether it was meant for the worker, too.
SIGNAL_LIMIT_S = 2.0


class WorkerSide:
    """The slots of a worker process, and what is running in them.

    Args:
        writer: Names the process's ledger files.
        slots: How many samples run at a time.
        send: Puts a range task on a task queue; raises when the broker is away.
        deadline: When the allocation ends.
        launches: What samples that start parallel programs get; None where there is nothing to launch with.

    Attributes:
        deadline: When the allocation ends.
        launches: What samples that start parallel programs get.
        busy: How many slots work.
        last_work: When one began or ended to (monotonic).
        stopping: Set when no further sample shall start.
    """

    def __init__(
        self,
        writer: str,
        slots: int,
        send: Callable[[RangeTask, str], None],
        deadline: Deadline | None = None,
        launches: SampleLaunches | None = None,
    ) -> None:
        self.send = send
        self.deadline = deadline or Deadline()
        self.launches = launches or SampleLaunches(writer)
        self.busy = 0
        self.last_work = time.monotonic()
        self.stopping = threading.Event()
        self._writer = writer
        self._lock = threading.Lock()
        self._studies: dict[str, StudySide] = {}
        self._running: dict[int, tuple[RunningAttempt, RangeWork, int]] = {}
        self._mean_s: dict[tuple[str, int], float] = {}
        self._longest_s: dict[tuple[str, int], float] = {}
        self._refused: set[int] = set()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)

    def work(self, task: RangeTask) -> None:
        """Work on a range in a free slot."""
        with self._lock:
            if task.study not in self._studies:
                self._studies[task.study] = StudySide(Path(task.study), self._writer)
            study = self._studies[task.study]
        slot = self._free.get()
        self._count(+1)
        try:
            RangeWork(self, study, task, slot).run()
        finally:
            self._count(-1)
            self._free.put(slot)

    def _count(self, change: int) -> None:
        with self._lock:
            self.busy += change
            self.last_work = time.monotonic()

    def piece(self, task: RangeTask) -> int:
        """Return how many samples a slot keeps: what fits its budget, one while that is unknown."""
        mean_s = self._mean_s.get((task.study, task.record))
        return max(1, int(range_task.BUDGET_S / mean_s)) if mean_s else 1

    def learn(self, task: RangeTask, duration_s: float) -> None:
        """Take in how long a sample of a step record has taken."""
        key = task.study, task.record
        mean_s = self._mean_s.get(key, duration_s)
        self._mean_s[key] = max(1e-4, 0.9 * mean_s + 0.1 * duration_s)
        self._longest_s[key] = max(duration_s, self._longest_s.get(key, 0.0))

    def has_time_for(self, task: RangeTask, manifest: Manifest) -> bool:
        """Tell whether a sample of a step record may be started before the allocation ends.

        A record whose samples may not is noted, so that the conductor does not send them here again.
        """
        if not self.deadline.is_in_allocation:
            return True
        running = [r.elapsed_s for r, work, _ in list(self._running.values()) if work.record == task.record]
        longest_s = max((*running, self._longest_s.get((task.study, task.record), 0.0)))
        if self.deadline.fits(manifest.time_request_s, longest_s):
            return True
        self._refused.add(task.record)
        return False

    @property
    def refused(self) -> tuple[int, ...]:
        """Numbers of the step records whose samples are not started any more, for lack of time."""
        return tuple(sorted(self._refused))

    def shares_end(self, code: int) -> bool:
        """Tell whether a sample has ended by a signal that was meant for this worker, too.

        Args:
            code: Exit code of the sample; a shell adds 128 to the number of a signal.
        """
        if not self.deadline.is_in_allocation:
            return False
        is_suspicious = code in [sign for number in _ENDING_SIGNALS for sign in (-number, 128 + number)]
        return is_suspicious and self.stopping.wait(SIGNAL_LIMIT_S)

    def flush(self) -> None:
        """Make the ledger visible to other nodes; called a few times a second.

        Of a sample that runs for an hour, the others would else see the start only when it ends, and take it
        for lost.

        Raises:
            LedgerError: it could not be written.
        """
        with self._lock:
            studies = list(self._studies.values())
        for study in studies:
            study.ledger.flush()

    def note_running(self, slot: int, running: RunningAttempt, work: RangeWork, sample: int) -> None:
        """Keep an attempt in view while it runs."""
        self._running[slot] = running, work, sample

    def note_ended(self, slot: int) -> None:
        """Forget an attempt."""
        del self._running[slot]

    def check_running(self) -> None:
        """End the samples that shall not run any more; called again and again while there are some."""
        is_over, is_warning = self.deadline.is_over, self.deadline.is_warning
        to_be_warned: dict[signal.Signals, dict[int, RunningAttempt]] = {}
        for slot, (running, work, sample) in list(self._running.items()):
            if self.stopping.is_set() or work.must_end(sample):
                running.end()
            elif is_over:
                running.end(at_once=True)
            elif is_warning:
                to_be_warned.setdefault(work.signal, {})[slot] = running
        for number, attempts in to_be_warned.items():
            self.launches.warn(attempts, number)
