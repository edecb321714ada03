"""A process of a worker: its slots, its heartbeat, its end."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.broker.app import TASK_NAME, count_waiting
from maestro_celery_plugin.broker.sender import Sender
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.machine import host_name, machine_id, node_name, usable_cpus
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.worker_facts import WorkerFacts, write_facts
from maestro_celery_plugin.study.worker_identity import PROCESS_MARKER, mark
from maestro_celery_plugin.worker.arguments import LEAVE_SIGNAL, WorkerArguments
from maestro_celery_plugin.worker.gate import gate
from maestro_celery_plugin.worker.idle_timeout import IdleTimeout
from maestro_celery_plugin.worker.launch_env import LaunchEnvironment, SampleEnvironment
from maestro_celery_plugin.worker.leave_request import LeaveRequest
from maestro_celery_plugin.worker.orphan_fence import OrphanFence
from maestro_celery_plugin.worker.range_consumer import RangeRequest
from maestro_celery_plugin.worker.range_task import UNCLAIMED_LIMIT, RangeTasks
from maestro_celery_plugin.worker.slots import Slots
from maestro_celery_plugin.worker.stall_watch import STALL_LIMIT_S, StallWatch

__all__ = ["WorkerProcess"]

LOGGER = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
# Interval between two checks of the session's files by a worker in an allocation, because there may be thousands of
# such workers. A worker outside of an allocation checks them in each round of the watch thread.
CHECK_INTERVAL_S = 1.0
_WATCH_S = 0.25
# Celery ends a worker whose samples take longer to end.
_EXIT_LIMIT_S = 5.0
_STALLED = (
    f"messages have waited for {STALL_LIMIT_S:.0f} s, and it has received none, because its connection to the broker "
    "has failed; a new worker replaces it"
)


class WorkerProcess:
    """A process of a worker.

    With the prefork pool, a worker has several processes; each has one slot and its own ledger files.

    Args:
        arguments: The arguments of the worker.
        supervisor: The supervisor process.
        app: The Celery application.

    Attributes:
        must_be_replaced: Whether the worker leaves because it has lost its broker, so that a new worker must start.
    """

    def __init__(self, arguments: WorkerArguments, supervisor: ProcessId, app: Celery) -> None:
        self._arguments, self._group, self._supervisor, self._app = arguments, arguments.group, supervisor, app
        self._session = session = arguments.session
        self._system = batch_system(self._group.batch.type)
        self._deadline = Deadline.of(self._system, self._group, os.environ)
        self._cores = (self._system.node_cores(os.environ) if self._system else None) or usable_cpus()
        self._environment = SampleEnvironment(self._system)
        self._environment.restore()
        self._session_id = session.id
        self._tasks: RangeTasks | None = None
        self._name = arguments.name
        self._leave_request = LeaveRequest(session, arguments.name)
        self._limit = arguments.heartbeat_limit
        self._ready = self._ending = self._is_terminated = self._has_facts = False
        self.must_be_replaced = False
        self._has_beat = threading.Event()
        self._pool_busy_at = clock.monotonic()
        self._started_at = clock.now()
        self._stall_watch = StallWatch(
            lambda: count_waiting(app, app.conf.task_queues), self._can_receive, lambda: gate.received
        )
        self._idle_timeout = IdleTimeout(session, arguments.allocation, self._group.idle_limit_s, self._deadline)

    def register_task(self) -> None:
        """Register the range task in the application."""

        @self._app.task(name=TASK_NAME, ignore_result=True, Request=RangeRequest)  # type: ignore[untyped-decorator]
        def run_range(*message: Any) -> None:
            self._receive(message)

    def _receive(self, message: tuple[Any, ...]) -> None:
        """Run the task of a message that the consumer has verified; the process of a pool verifies it again."""
        task = self._app.signer.decode(message)
        if task is None:
            LOGGER.error("Refused a message that does not belong to this session.")
        elif self._tasks is not None and self._await_heartbeat(self._tasks):
            self._tasks.run(task)

    def _await_heartbeat(self, tasks: RangeTasks) -> bool:
        """Wait for the first heartbeat of this process; return whether it may take samples.

        A conductor that begins reads the ledger and then the heartbeats: it would count this process as dead, and send
        its samples again.
        """
        while not self._has_beat.wait(_WATCH_S):
            if tasks.slots.stopping.is_set():
                return False
        return True

    def open(self, writer: str, slots: int) -> None:
        """Create the slots of this process; `writer` is the name of its ledger files."""
        self._name, self._has_beat = writer, threading.Event()  # a process of a pool has one of its own
        launches = LaunchEnvironment(writer, self._system, self._cores)
        sender = Sender(self._session, self._app)
        self._tasks = RangeTasks(writer, Slots(slots, self._deadline, launches, self._limit), sender.send)
        self.watch(slots)

    def open_in_pool(self, **_: Any) -> None:
        """Create the slot of a pool process."""
        writer = f"{self._arguments.name}.{os.getpid()}"
        self._environment.restore()
        os.environ[PROCESS_MARKER] = mark(self._session, writer)
        self._limit = self._arguments.pool_limits.claim(ProcessId.of(os.getpid()))
        self._ready = True
        self.open(writer, 1)

    @property
    def _is_pool_process(self) -> bool:
        """Whether this is a process of the worker's pool, and not its main process."""
        return self._name != self._arguments.name

    def mark_terminated(self, **_: Any) -> None:
        """Record that a signal ends Celery; the watch thread ends the samples."""
        self._is_terminated = True
        if self._tasks is not None:
            self._tasks.slots.is_terminated = True
        if self._tasks is not None and self._session.stop_requested:
            threading.Thread(target=self._exit_when_idle, args=(self._tasks,), name="exit", daemon=True).start()

    @staticmethod
    def _exit_when_idle(tasks: RangeTasks) -> None:
        """End this process as soon as its slots are free: the study has ended, and Celery would need up to a second."""
        tasks.slots.stopping.set()
        if clock.wait_until(lambda: not tasks.slots.busy, _EXIT_LIMIT_S, interval_s=0.01):
            _try(tasks.flush)
            os._exit(0)

    def mark_ready(self, **_: Any) -> None:
        """Record that Celery takes messages now."""
        self._ready = True
        if self._tasks is not None:  # with a pool of processes, new ones still need what Celery has stored
            self._environment.restore()
        self._stall_watch.start()

    # --- watching ---

    def watch(self, slots: int) -> None:
        """Start the thread that writes the heartbeat and decides when the process ends.

        The limit begins now, because the first heartbeat may already fail.
        """
        self._limit.renew(clock.since_boot())
        OrphanFence(self._supervisor, self._limit, self._kill_samples).start()
        threading.Thread(target=self._watch, args=(slots,), name="watch", daemon=True).start()

    def _kill_samples(self) -> None:
        if self._tasks is not None:
            self._tasks.slots.kill_running()

    def _watch(self, slots: int) -> None:
        beat, last_beat_at, last_poll_at, was_held = 0, 0.0, 0.0, False
        poll_s = CHECK_INTERVAL_S if self._arguments.allocation else _WATCH_S
        while True:
            now, is_held = clock.monotonic(), self._is_held()
            if is_held != was_held:
                self._log_hold(is_held=is_held)
            if now - last_beat_at > HEARTBEAT_S or is_held != was_held:
                beat, last_beat_at, was_held = beat + 1, now, is_held
                _try(functools.partial(self._beat, slots, beat))
            if self._deadline.is_draining or self._stall_watch.has_stalled:
                _try(gate.close)
            if now - last_poll_at >= poll_s:
                last_poll_at = now
                _try(self._end_if_necessary)
                _try(self._hold)
            if self._tasks is not None:
                _try(self._tasks.flush)
                _try(self._tasks.slots.check_running)
            clock.sleep(_WATCH_S)

    def _beat(self, slots: int, beat: int) -> None:
        """Write the heartbeat, unless another study has replaced the study of this worker."""
        since = clock.since_boot()
        if self._session.id != self._session_id:
            return
        heartbeat = self._heartbeat(slots, beat)
        self._session.heartbeats.write(heartbeat)
        self._has_beat.set()
        self._limit.renew(since)
        if self._conductor_is_here():
            self._limit.suspend()
        if not (self._has_facts or self._is_pool_process):
            write_facts(self._session, WorkerFacts.of(heartbeat))
            self._has_facts = True

    def _conductor_is_here(self) -> bool:
        """Tell whether the conductor runs on this machine; the main process of a worker finds out for its pool."""
        if self._is_pool_process:
            return self._arguments.heartbeat_limit.is_suspended
        self._idle_timeout.conductor.refresh()
        return self._idle_timeout.conductor.is_here

    def _end_if_necessary(self) -> None:
        reason = self._end_reason()
        if reason is not None:
            self._end(reason)

    def _is_held(self) -> bool:
        return self._tasks is not None and self._tasks.health.is_held

    def _log_hold(self, *, is_held: bool) -> None:
        words = "continues to take samples"
        if is_held:
            words = (
                "takes no samples for now: all of its last samples have failed within a second, or could not run. The "
                "conductor lets some of them run on another machine, if there is one, to find out whether this "
                "machine is broken"
            )
        LOGGER.warning("Worker '%s' on %s %s.", self._name, host_name(), words)

    def _hold(self) -> None:
        """Take no messages while this process, or a process of its pool, is held (`health.py`), or must leave."""
        heartbeats, is_leaving = self._session.heartbeats, self._leave_request.check()
        if self._tasks is not None:
            if self._tasks.health.is_held and heartbeats.take_acquittal(self._name):
                self._tasks.health.acquit()
            self._tasks.slots.is_leaving = is_leaving
            gate.hold(held=is_leaving or self._tasks.health.is_held)
        else:
            beats, unreadable = heartbeats.read(f"{self._name}.")
            is_held = any(beat.state is WorkerState.HELD for beat in beats) or (gate.is_held and bool(unreadable))
            gate.hold(held=is_leaving or is_held)

    def _heartbeat(self, slots: int, beat: int) -> Heartbeat:
        process = ProcessId.of(os.getpid())
        return Heartbeat(
            name=self._name,
            group=self._group.group,
            host=host_name(),
            node=node_name(),
            supervisor=(self._supervisor.pid, self._supervisor.start),
            process=(process.pid, process.start),
            slots=slots,
            beat=beat,
            state=self._state,
            allocation=self._arguments.allocation,
            ends_at=None if math.isinf(self._deadline.ends_at) else self._deadline.ends_at,
            refused_messages=gate.refused.total(),
            out_of_time=self._tasks.slots.out_of_time if self._tasks else (),
            machine=machine_id(),
            started_at=self._started_at,
        )

    @property
    def _state(self) -> WorkerState:
        if not self._ready and not (self._tasks is not None and self._tasks.slots.busy):
            return WorkerState.STARTING
        if self._stall_watch.has_stalled or (self._tasks is not None and self._tasks.slots.stopping.is_set()):
            return WorkerState.STOPPING
        if self._leave_request.is_active and not self._is_busy_in_pool:
            return WorkerState.STOPPING
        if self._deadline.is_draining:
            return WorkerState.DRAINING
        without_work = WorkerState.DISCONNECTED if self._stall_watch.is_cut_off else WorkerState.IDLE
        if self._tasks is None:
            return without_work
        if self._tasks.health.is_held:
            return WorkerState.HELD
        return WorkerState.BUSY if self._tasks.slots.busy else without_work

    @property
    def _is_busy_in_pool(self) -> bool:
        """Whether this is a process of a pool and runs a sample; the main process of the worker waits for its end."""
        return self._is_pool_process and self._tasks is not None and bool(self._tasks.slots.busy)

    def _has_left(self) -> bool:
        """Tell whether this worker was requested to leave, and no sample runs in it.

        The heartbeats of a pool show a sample that has just started some seconds later.
        """
        delay_s = 0.0 if self._tasks is not None else 2 * HEARTBEAT_S
        return self._leave_request.age_s > delay_s and self._idle_s() > delay_s

    def _end_reason(self) -> str | None:
        """Return why this process must end, and note whether a new worker must replace it; None when it continues."""
        if self._is_terminated:
            return "it was asked to stop"
        if self._tasks is not None and self._tasks.unclaimed >= UNCLAIMED_LIMIT:
            self._arguments.has_fault.set()
            return f"it could not claim {UNCLAIMED_LIMIT} messages in a row"
        if not self._supervisor.is_alive:
            return "its supervisor has died"
        if not self._session.path.exists():
            return "its session does not exist any more"
        if self._session.id != self._session_id:
            return "its study was launched again"
        if self._session.worker_stop_requested(self._arguments.name):
            return "it was asked to stop"
        if self._idle_s() > 0 and (self._stall_watch.has_stalled or self._broker_has_moved()):
            self.must_be_replaced = True
            return _STALLED if self._stall_watch.has_stalled else "the broker has moved"
        if self._is_pool_process:
            return None  # the main process of the worker decides
        if self._has_left():
            return "it was asked to leave after its running samples"
        return self._idle_timeout.leave_reason(self._idle_s(), out_of_time=self._is_out_of_time())

    def _is_out_of_time(self) -> bool:
        """Tell whether the time is too short for samples of a step record."""
        if self._tasks is not None:
            return bool(self._tasks.slots.out_of_time)
        return any(beat.out_of_time for beat in self._session.heartbeats.all(f"{self._name}."))

    def _can_receive(self) -> bool:
        """Tell whether this worker should receive messages: a slot is free, or it has no work although none is free."""
        return not (gate.is_closed or gate.is_held) and (gate.has_free_slot or self._idle_s() > STALL_LIMIT_S)

    def _broker_has_moved(self) -> bool:
        """Tell whether the broker of the session has another URL now, to which a new worker would connect."""
        broker = self._session.read_broker()
        return broker is not None and broker.url != self._app.url

    def _idle_s(self) -> float:
        """Return the seconds since this worker last had work."""
        if self._tasks is not None:
            slots = self._tasks.slots
            return 0.0 if slots.busy else clock.monotonic() - slots.last_work
        beats, unreadable = self._session.heartbeats.read(f"{self._name}.")
        if unreadable or any(beat.state is WorkerState.BUSY for beat in beats):
            self._pool_busy_at = clock.monotonic()
        return clock.monotonic() - self._pool_busy_at

    def _end(self, reason: str) -> None:
        """Stop taking samples, end the running samples, and stop Celery."""
        if self._ending:
            return
        # Of a pool, one process reports; a fault may concern only another one.
        if not self._is_pool_process or self._arguments.has_fault.is_set:
            LOGGER.warning("Worker '%s' on %s leaves: %s.", self._name, host_name(), reason)
        if self._tasks is not None:
            self._tasks.slots.stopping.set()
        if self._supervisor.is_alive:
            self._supervisor.signal(LEAVE_SIGNAL)  # the supervisor ends this process, with SIGKILL if necessary
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        self._ending = True  # last: after an error above, the next round tries again


def _try(action: Callable[[], object]) -> None:
    """Do one part of the watch thread's work; an error of one file must not keep a worker from its end."""
    try:
        action()
    except (OSError, EnsembleError) as cause:  # for example a full disk, or a session that cannot be read now
        LOGGER.warning("%s", cause)
    except Exception:  # an error in the plugin; without this thread, the worker would count as dead
        LOGGER.exception("An error occurred in the watch thread, which continues.")
