"""A worker: a supervisor process, and under it the Celery worker that runs samples.

    python -m maestro_celery_plugin.worker SESSION NAME GROUP IDLE_LIMIT_S QUEUES ARGS

The supervisor imports little and does nothing but wait. When the Celery worker has ended, however it
did, the supervisor ends what is left of its samples, so that no sample outlives the worker that has to
record its end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from maestro_celery_plugin.processes import ProcessId, die_with_parent, end_marked, host_name
from maestro_celery_plugin.session import Heartbeat, Session

if TYPE_CHECKING:
    from celery import Celery

    from maestro_celery_plugin.tasks import WorkerSide

__all__ = ["MARKER", "PROCESS_MARKER", "WorkerArguments", "main", "mark"]

LOGGER = logging.getLogger(__name__)

# Environment variables by which a dead worker's samples are found.
MARKER = "MAESTRO_CELERY_WORKER"
PROCESS_MARKER = "MAESTRO_CELERY_PROCESS"


def mark(session: Session, name: str) -> str:
    """Return the value of a marker: names of workers are unique in their session only."""
    return f"{session.path}:{name}"


HEARTBEAT_S = 2.0
_WATCH_S = 0.25
# A worker that was told to end gets this long for its samples' SIGTERM and SIGKILL.
_STOP_LIMIT_S = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """What a worker is started with.

    Attributes:
        session: The session's directory.
        name: The worker's name, unique in the session.
        group: Its worker group.
        idle_limit_s: Seconds without work after which it leaves when nobody conducts the study.
        queues: Task queues it serves.
        args: Options of `celery worker`.
    """

    session: Path
    name: str
    group: str
    idle_limit_s: float
    queues: tuple[str, ...]
    args: str

    def command(self) -> list[str]:
        """Return the command line that starts the worker."""
        values = [str(self.session), self.name, self.group, str(self.idle_limit_s), ",".join(self.queues), self.args]
        return [sys.executable, "-m", "maestro_celery_plugin.worker", "--", *values]

    @classmethod
    def from_command_line(cls) -> WorkerArguments:
        """Read the arguments of this process."""
        parser = argparse.ArgumentParser(description="Run a worker of a session.")
        for name in ("session", "name", "group", "idle_limit_s", "queues", "args"):
            parser.add_argument(name)
        given = parser.parse_args()
        return cls(
            session=Path(given.session),
            name=given.name,
            group=given.group,
            idle_limit_s=float(given.idle_limit_s),
            queues=tuple(given.queues.split(",")),
            args=given.args,
        )


def main() -> NoReturn:
    """Start the Celery worker, wait for its end, and clear up after it."""
    arguments = WorkerArguments.from_command_line()
    session = Session(arguments.session)
    os.environ[MARKER] = mark(session, arguments.name)
    supervisor = ProcessId.of(os.getpid())
    child = os.fork()
    if child == 0:
        die_with_parent()
        _run_celery(arguments, supervisor)
    _forward_signals(session, arguments.name, child)
    status = _wait(child)
    end_marked(MARKER, mark(session, arguments.name))
    session.remove_heartbeat(arguments.name)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _forward_signals(session: Session, name: str, child: int) -> None:
    """Pass SIGTERM on, and kill the child when it has not ended in time."""

    def end(number: int, frame: FrameType | None) -> None:
        session.request_worker_stop(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        signal.alarm(_STOP_LIMIT_S)

    def kill(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGALRM, kill)


def _wait(child: int) -> int:
    while True:
        with contextlib.suppress(InterruptedError):
            return os.waitpid(child, 0)[1]


def _run_celery(arguments: WorkerArguments, supervisor: ProcessId) -> NoReturn:
    """Run the Celery worker in this process; does not return."""
    import kombu.transport.redis
    from celery.signals import worker_ready

    from maestro_celery_plugin import intake
    from maestro_celery_plugin.app import make_app, queue_for
    from maestro_celery_plugin.worker_options import parse_worker_args

    # Messages that were not acknowledged when the broker went away need not be put back: the ledger
    # knows what has to run. kombu fails in doing so (restore_unacked on a closed channel, kombu 5.5-5.7).
    kombu.transport.redis.Channel.do_restore = False
    session = Session(arguments.session)
    options = parse_worker_args(arguments.args)
    app = make_app(session)
    app.conf.task_queues = [queue_for(session, name) for name in arguments.queues]
    node = _Node(arguments, session, supervisor, app)
    node.register_task()
    intake.install(app, options.slots)
    worker_ready.connect(node.mark_ready, weak=False)
    if options.pool == "prefork":
        node.watch(slots=0)
        _in_pool_processes(node)
    else:
        node.open(arguments.name, options.slots)
    ours = ["-n", f"{arguments.name}@%h", "-P", options.pool, "-c", str(options.slots), "-l", "WARNING"]
    app.worker_main(["worker", *ours, "--without-gossip", "--without-mingle", *options.args])
    raise SystemExit(0)


class _Node:
    """This process's part of a worker: its slots, its heartbeat, its end."""

    def __init__(self, arguments: WorkerArguments, session: Session, supervisor: ProcessId, app: Celery) -> None:
        self._arguments, self._session, self._supervisor, self._app = arguments, session, supervisor, app
        self._signer = session.signer()
        self._side: WorkerSide | None = None
        self._name = arguments.name
        self._ready = False
        self._pool_busy_at = time.monotonic()

    def register_task(self) -> None:
        """Make the range task known to the application."""
        from maestro_celery_plugin.app import TASK_NAME
        from maestro_celery_plugin.intake import RangeRequest

        @self._app.task(  # type: ignore[untyped-decorator]
            name=TASK_NAME,
            ignore_result=True,
            Request=RangeRequest,
            Strategy="maestro_celery_plugin.intake:gated_strategy",
        )
        def run_range(*message: Any) -> None:
            self._receive(message)

    def _receive(self, message: tuple[Any, ...]) -> None:
        """Check a message and work on it; one that is not the session's is refused and logged."""
        from maestro_celery_plugin.tasks import RangeTask

        kinds = (str, str, int, int, int, int, str)
        if [type(value) for value in message] != list(kinds) or not self._signer.fits(message[-1], *message[:-1]):
            LOGGER.error("refused a message that is not this session's")
            return
        if self._side is not None:
            self._side.work(RangeTask(*message[:-1]))

    def open(self, writer: str, slots: int) -> None:
        """Make the slots of this process; `writer` names its ledger files."""
        from maestro_celery_plugin.dispatch import Dispatcher
        from maestro_celery_plugin.tasks import WorkerSide

        dispatcher = Dispatcher(self._session, self._app)
        self._name = writer
        self._side = WorkerSide(writer, slots, dispatcher.send)
        self.watch(slots)

    def watch(self, slots: int) -> None:
        """Start the thread that writes the heartbeat and sees to the end."""
        threading.Thread(target=self._watch, args=(slots,), name="watch", daemon=True).start()

    def mark_ready(self, **_: Any) -> None:
        """Note that Celery takes messages now."""
        self._ready = True

    def _watch(self, slots: int) -> None:
        beat, last_beat_at = 0, 0.0
        conductor = _Change(self._session.read_conductor_beat)
        while True:
            if time.monotonic() - last_beat_at > HEARTBEAT_S:
                beat, last_beat_at = beat + 1, time.monotonic()
                self._write_heartbeat(slots, beat)
            if self._shall_end(conductor):
                self._end()
            if self._side is not None:
                self._side.check_running()
            time.sleep(_WATCH_S)

    def _write_heartbeat(self, slots: int, beat: int) -> None:
        process = ProcessId.of(os.getpid())
        with contextlib.suppress(OSError):  # a full disk must not end the worker
            self._session.write_heartbeat(
                Heartbeat(
                    name=self._name,
                    group=self._arguments.group,
                    host=host_name(),
                    supervisor=(self._supervisor.pid, self._supervisor.start),
                    process=(process.pid, process.start),
                    slots=slots,
                    beat=beat,
                    state=self._state,
                )
            )

    @property
    def _state(self) -> str:
        side = self._side
        if not self._ready:
            return "starting"
        if side is None:
            return "idle"
        return "stopping" if side.stopping.is_set() else "busy" if side.busy else "idle"

    def _idle_s(self) -> float:
        """Return for how long this worker has had nothing to do."""
        if self._side is not None:
            return 0.0 if self._side.busy else time.monotonic() - self._side.last_work
        prefix = f"{self._name}."
        if any(beat.state == "busy" for beat in self._session.heartbeats() if beat.name.startswith(prefix)):
            self._pool_busy_at = time.monotonic()
        return time.monotonic() - self._pool_busy_at

    def _shall_end(self, conductor: _Change) -> bool:
        if self._session.worker_stop_requested(self._arguments.name) or not self._supervisor.is_alive:
            return True
        is_pool_process = self._name != self._arguments.name
        limit_s = self._arguments.idle_limit_s
        return not is_pool_process and conductor.unchanged_s() > limit_s and self._idle_s() > limit_s

    def _end(self) -> None:
        """Stop taking samples, end those that run, and let Celery end."""
        if self._side is None:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._side.stopping.is_set():
            self._side.stopping.set()
            self._supervisor.signal(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


class _Change:
    """Tells for how long a value has not changed, by this machine's clock."""

    def __init__(self, read: Any) -> None:
        self._read, self._value, self._since = read, read(), time.monotonic()

    def unchanged_s(self) -> float:
        """Return the seconds since the last change."""
        value = self._read()
        if value != self._value:
            self._value, self._since = value, time.monotonic()
        return time.monotonic() - self._since


def _in_pool_processes(node: _Node) -> None:
    """With the prefork pool, each of its processes has one slot and ledger files of its own."""
    from celery.signals import worker_process_init

    def open_in_child(**_: Any) -> None:
        writer = f"{node._arguments.name}.{os.getpid()}"
        os.environ[PROCESS_MARKER] = mark(node._session, writer)
        node.mark_ready()
        node.open(writer, 1)

    worker_process_init.connect(open_in_child, weak=False)


if __name__ == "__main__":
    main()
