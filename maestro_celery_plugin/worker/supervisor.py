"""The supervisor of a worker, and its child, the Celery worker that runs samples.

    python -m maestro_celery_plugin.worker [--name NAME] [--allocation NAME/NUMBER] SESSION GROUP

The supervisor does not import Celery; it waits. When the Celery worker has ended for any reason, the supervisor ends
the samples that still run, so that no sample outlives the worker that records its end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from maestro_celery_plugin import clock
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.processes import (
    ProcessId,
    adopt_orphans,
    die_with_parent,
    end_descendants,
    end_marked,
    exit_at_once,
    forget_variable,
)
from maestro_celery_plugin.study.sample_commands import add_to_path
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, SESSION_VARIABLE, STUDY_VARIABLE, Session
from maestro_celery_plugin.study.worker_identity import EXIT_REPLACE, MARKER, mark
from maestro_celery_plugin.worker.arguments import LEAVE_SIGNAL, WorkerArguments
from maestro_celery_plugin.worker.heartbeat_limit import HEARTBEAT_LIMIT_S, HeartbeatLimit
from maestro_celery_plugin.worker.own_name import claim_name_and_log
from maestro_celery_plugin.worker.pool_watch import PoolWatch

__all__ = ["main"]

# Time in which a worker that has received SIGTERM must end its samples, first with SIGTERM, then with SIGKILL.
_STOP_LIMIT_S = 8
# Time between SIGTERM and SIGKILL for processes that a dead worker has left behind. Either they have received SIGTERM
# before, or no other process will end them.
KILL_GRACE_S = 1.0
# A new worker replaces a worker that was killed, has lost its broker, or could not claim messages, up to this number of
# workers in sequence.
_MAX_WORKERS = 20
# Time before a new worker replaces one that could not claim messages, or could not write its heartbeat; it doubles each
# time, up to a limit. The file system of the machine may answer again. The conductor cancels an allocation without
# workers after a longer time.
_FAULT_DELAY_S = 5.0
_FAULT_DELAY_LIMIT_S = 60.0
# Interval between two checks of the heartbeat limit of the worker.
_CHECK_INTERVAL_S = 1.0
# A user may start a worker before the conductor has stored the configuration of the group.
GROUP_LIMIT_S = 30.0
# LSF sends SIGUSR2 at the time limit, and SIGINT before SIGTERM (bsub -W, bkill).
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_SIGNALS = (*_END_SIGNALS, LEAVE_SIGNAL, signal.SIGALRM)


def main() -> NoReturn:
    """Run a worker of a session."""
    parser = argparse.ArgumentParser(prog="python -m maestro_celery_plugin.worker", description=main.__doc__)
    parser.add_argument("session", type=Path)
    parser.add_argument("group")
    parser.add_argument("--name", default="")
    parser.add_argument("--allocation", default="")
    options = parser.parse_args()
    session = Session(options.session)
    forget_variable(ENVIRONMENT_VARIABLE)  # a batch system may pass it on from the environment of the submission
    if os.access(session.path, os.X_OK):  # it exists, and belongs to this user
        clock.wait_until(lambda: session.has_group(options.group), GROUP_LIMIT_S, interval_s=0.2)
    try:
        group = session.read_group(options.group)
        session.apply_environment()  # a batch system may not pass on what the conductor has
        add_to_path(session.path)
        # Those of the study that has begun the session; samples of others have variables of their own.
        os.environ.update({SESSION_VARIABLE: str(session.path), STUDY_VARIABLE: str(session.path.parent.parent)})
        adopt_orphans()
        supervisor = _Supervisor(session)
        supervisor.handle_signals()
        code = _run_workers(supervisor, group, options.name, options.allocation)
    except (StudyError, OSError) as error:
        sys.exit(f"error: worker on {host_name()}: {error}")
    # SIGTERM requests the end. If it kills a worker that has no handler for it yet, this is not an error.
    exit_at_once(0 if code == -signal.SIGTERM else code & 0xFF)


def _run_workers(supervisor: _Supervisor, group: GroupConfig, name: str, allocation: str) -> int:
    """Run a worker, and the workers that must replace it; return the exit code of the last one.

    Args:
        supervisor: The supervisor.
        group: The configuration of the worker group.
        name: Name of the worker. The conductor, which has given it, starts the next worker itself, with another name.
            Empty for workers that claim their names.
        allocation: The allocation of the workers; empty without one.

    Raises:
        OSError: the first worker cannot start.
    """
    code = number = faults = 0
    for _ in range(1 if name else _MAX_WORKERS):
        if faults and not supervisor.pause(min(_FAULT_DELAY_S * 2 ** (faults - 1), _FAULT_DELAY_LIMIT_S)):
            break
        try:
            worker = name or claim_name_and_log(supervisor.session, group.group, allocation)
            number = number or int(worker.rpartition("-")[2])
            arguments = WorkerArguments(
                session=supervisor.session, group=group, name=worker, allocation=allocation, number=number
            )
            code = supervisor.run(arguments)
        except OSError:
            if not faults:
                raise
            faults += 1  # the fault of the machine has not passed yet
            continue
        has_fault = supervisor.lost_heartbeat or arguments.has_fault.is_set
        if not supervisor.must_restart(code, in_allocation=bool(allocation), has_fault=has_fault):
            break
        faults = faults + 1 if has_fault else 0
    return code


class _Supervisor:
    """Runs Celery workers one after the other; its signal handlers end the present one.

    A handler may run between any two lines of this class. It sends signals first, and raises no error: neither a full
    disk nor a removed session may keep a worker alive.

    Args:
        session: The session.

    Attributes:
        child: The process number of the present worker; 0 while there is none.
        doomed: The worker that the alarm kills. A later worker must not die by the alarm of an earlier one.
        name: The name of the present worker.
        end_requested: Whether this supervisor must end, so that no further worker may start.
        leaving: Whether the present worker leaves by its own decision.
        lost_heartbeat: Whether the present worker was killed because it could not write its heartbeat.
        session_id: Identity of the session; a later launch in the same directory has another one.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.session_id = session, session.id
        self.child = self.doomed = 0
        self.name = ""
        self.end_requested = self.leaving = self.lost_heartbeat = False

    def handle_signals(self) -> None:
        """Install the signal handlers, which stay until this process ends."""
        for number in _END_SIGNALS:
            signal.signal(number, self._on_end)
        signal.signal(LEAVE_SIGNAL, self._on_leave)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self.end_requested = True
        self._end_child()

    def _on_leave(self, number: int, frame: FrameType | None) -> None:
        self.leaving = True
        self._end_child()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self.child and self.child == self.doomed:
            with contextlib.suppress(OSError):
                os.kill(self.child, signal.SIGKILL)

    def _end_child(self) -> None:
        """Send SIGTERM to the worker, and let the alarm kill it if it does not end in time."""
        if not self.child:
            return
        with contextlib.suppress(OSError):
            os.kill(self.child, signal.SIGTERM)
        if self.doomed != self.child:  # a further signal does not prolong the time
            self.doomed = self.child
            signal.alarm(_STOP_LIMIT_S)
        # For the processes of a worker's pool. In a thread, because a file system that does not answer would block this
        # handler, and with it the alarm.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._request_stop, args=(self.name,), daemon=True).start()

    def _request_stop(self, name: str) -> None:
        with contextlib.suppress(OSError, StudyError):
            if self.session.id == self.session_id:
                self.session.request_worker_stop(name)

    def _remove_heartbeat(self) -> None:
        """Remove the heartbeat of a worker that has ended.

        The heartbeat of a worker that could not write it stays: the conductor then finds that the machine is the cause.
        A later launch in the same directory has its own worker of the same name.
        """
        with contextlib.suppress(StudyError):  # the session was removed
            if not self.lost_heartbeat and self.session.id == self.session_id:
                self.session.heartbeats.remove(self.name)

    def must_restart(self, code: int, *, in_allocation: bool, has_fault: bool) -> bool:
        """Tell whether a new worker must replace a worker.

        An allocation needs a new worker if this one was killed. A worker that has lost its broker, or could not claim
        messages or write its heartbeat, is always replaced.
        """
        was_killed = code < 0 and in_allocation and not self.leaving
        return (was_killed or has_fault or self.lost_heartbeat or code == EXIT_REPLACE) and not self._must_end

    @property
    def _must_end(self) -> bool:
        """Whether no further worker may start; while the file system does not answer, only a signal requests this."""
        try:
            return self.end_requested or self.session.stop_requested or not self.session.path.exists()
        except OSError:
            return self.end_requested

    def pause(self, seconds: float) -> bool:
        """Wait before the next worker starts; return False if no further worker may start."""
        what = "write its heartbeat" if self.lost_heartbeat else "claim messages"
        with contextlib.suppress(OSError):
            print(
                f"worker on {host_name()}: '{self.name}' could not {what}. A new worker replaces it in "
                f"{seconds:.0f} s.",
                file=sys.stderr,
                flush=True,
            )
        return not clock.wait_until(lambda: self._must_end, seconds, interval_s=0.5)

    def run(self, arguments: WorkerArguments) -> int:
        """Run a Celery worker to its end, and end its samples; return its exit code.

        Raises:
            OSError: the worker cannot start.
        """
        self.name, self.doomed = arguments.name, 0
        self.leaving = self.lost_heartbeat = False
        if self.end_requested:
            return 0
        os.environ[MARKER] = mark(self.session, self.name)
        child = self._start(arguments)
        has_ended = threading.Event()
        threading.Thread(
            target=self._watch_heartbeat, args=(arguments.heartbeat_limit, child, has_ended), daemon=True
        ).start()
        pool_watch = PoolWatch(self.session, self.session_id, self.name, arguments.pool_limits)
        pool_watch.start()
        status = self._wait(child)
        has_ended.set()
        signal.alarm(0)
        _try("its processes", end_descendants)
        _try("its samples", lambda: end_marked(MARKER, mark(self.session, self.name), grace_s=KILL_GRACE_S))
        _try("its heartbeat", self._remove_heartbeat)
        pool_watch.end(keep_heartbeats=self.lost_heartbeat)
        return os.waitstatus_to_exitcode(status)

    def _start(self, arguments: WorkerArguments) -> int:
        """Start the Celery worker; a signal that arrives meanwhile waits until it can be forwarded."""
        supervisor = ProcessId.of(os.getpid())
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            child = os.fork()
            if child == 0:
                _restore_signals()
                die_with_parent(supervisor.pid)
                from maestro_celery_plugin.worker.celery_worker import run

                run(arguments, supervisor)
            self.child = child
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        # Another thread may have received a signal meanwhile, whose handler then has run here without a child.
        if self.end_requested or self.leaving:
            self._end_child()
        return child

    def _watch_heartbeat(self, limit: HeartbeatLimit, child: int, has_ended: threading.Event) -> None:
        """Kill the worker when it could not write its heartbeat for too long; then its samples end with it."""
        while not has_ended.wait(_CHECK_INTERVAL_S):
            if limit.is_exceeded and self.child == child:
                self.lost_heartbeat = True
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
                # Now: a worker that waits for a file system ends only when that answers. In a thread: so may a sample.
                marker = mark(self.session, self.name)
                threading.Thread(target=_end_samples, args=(marker,), name="end of samples", daemon=True).start()
                # Last: the log is on the file system that may not answer.
                with contextlib.suppress(OSError):
                    print(
                        f"worker on {host_name()}: '{self.name}' could not write its heartbeat for "
                        f"{HEARTBEAT_LIMIT_S:.0f} s. It was killed, because its samples will run again elsewhere.",
                        file=sys.stderr,
                        flush=True,
                    )
                return

    def _wait(self, child: int) -> int:
        """Wait for the end of the child, and reap adopted orphans; return the status of the child."""
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == child:
                self.child = 0
                return status


def _end_samples(marker: str) -> None:
    """End the samples of a worker that may count as dead soon."""
    with contextlib.suppress(OSError, psutil.Error):
        end_marked(MARKER, marker, grace_s=KILL_GRACE_S)


def _restore_signals() -> None:
    """Give a new process the handlers of a program that has just started, and deliver signals to it again."""
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _try(what: str, action: Callable[[], object]) -> None:
    """Do one part of the cleanup after a worker; an error is reported, because the other parts must follow."""
    try:
        action()
    except (OSError, psutil.Error) as error:
        with contextlib.suppress(OSError):  # the log may be on the file system with the fault
            print(f"worker on {host_name()}: {what} cannot be removed: {error}", file=sys.stderr, flush=True)
