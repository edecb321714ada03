"""The Celery worker of a worker process: its application, its heartbeat, its end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import kombu.transport.redis
from celery import Celery
from celery.signals import worker_process_init, worker_ready

from maestro_celery_plugin import intake
from maestro_celery_plugin.app import TASK_NAME, make_app, queue_for
from maestro_celery_plugin.dispatch import Dispatcher
from maestro_celery_plugin.processes import ProcessId, host_name
from maestro_celery_plugin.session import Heartbeat, Session
from maestro_celery_plugin.tasks import RangeTask, WorkerSide
from maestro_celery_plugin.worker import PROCESS_MARKER, WorkerArguments, mark
from maestro_celery_plugin.worker_options import parse_worker_args

__all__ = ["run"]

LOGGER = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
_WATCH_S = 0.25


def run(arguments: WorkerArguments, supervisor: ProcessId) -> NoReturn:
    """Run the Celery worker in this process; does not return.

    Args:
        arguments: What the worker was started with.
        supervisor: The process that watches over it.
    """
    # Messages that were not acknowledged when the broker went away need not be put back: the ledger
    # knows what has to run. kombu fails in doing so (restore_unacked on a closed channel, kombu 5.5-5.7).
    kombu.transport.redis.Channel.do_restore = False
    session = Session(arguments.session)
    options = parse_worker_args(arguments.args)
    app = make_app(session)
    app.conf.task_queues = [queue_for(session, name) for name in arguments.queues]
    process = _WorkerProcess(arguments, session, supervisor, app)
    process.register_task()
    intake.install(app, options.slots)
    worker_ready.connect(process.mark_ready, weak=False)
    if options.pool == "prefork":
        process.watch(slots=0)
        worker_process_init.connect(process.open_in_pool, weak=False)
    else:
        process.open(arguments.name, options.slots)
    ours = ["-n", f"{arguments.name}@%h", "-P", options.pool, "-c", str(options.slots), "-l", "WARNING"]
    app.worker_main(["worker", *ours, "--without-gossip", "--without-mingle", *options.args])
    raise SystemExit(0)


class _WorkerProcess:
    """This process's part of a worker: its slots, its heartbeat, its end.

    With the prefork pool, each of its processes has one slot and ledger files of its own.
    """

    def __init__(self, arguments: WorkerArguments, session: Session, supervisor: ProcessId, app: Celery) -> None:
        self._arguments, self._session, self._supervisor, self._app = arguments, session, supervisor, app
        self._signer = session.signer()
        self._side: WorkerSide | None = None
        self._name = arguments.name
        self._ready = self._ending = False
        self._pool_busy_at = time.monotonic()

    def register_task(self) -> None:
        """Make the range task known to the application."""

        @self._app.task(  # type: ignore[untyped-decorator]
            name=TASK_NAME,
            ignore_result=True,
            Request=intake.RangeRequest,
            Strategy="maestro_celery_plugin.intake:gated_strategy",
        )
        def run_range(*message: Any) -> None:
            self._receive(message)

    def _receive(self, message: tuple[Any, ...]) -> None:
        """Check a message and work on it; one that is not the session's is refused and logged."""
        kinds = (str, str, int, int, int, int, str)
        if [type(value) for value in message] != list(kinds) or not self._signer.fits(message[-1], *message[:-1]):
            LOGGER.error("refused a message that is not this session's")
            return
        if self._side is not None:
            self._side.work(RangeTask(*message[:-1]))

    def open(self, writer: str, slots: int) -> None:
        """Make the slots of this process; `writer` names its ledger files."""
        self._name = writer
        self._side = WorkerSide(writer, slots, Dispatcher(self._session, self._app).send)
        self.watch(slots)

    def open_in_pool(self, **_: Any) -> None:
        """Make the slot of a pool process."""
        writer = f"{self._arguments.name}.{os.getpid()}"
        os.environ[PROCESS_MARKER] = mark(self._session, writer)
        self._ready = True
        self.open(writer, 1)

    def mark_ready(self, **_: Any) -> None:
        """Note that Celery takes messages now."""
        self._ready = True

    # --- watching ---

    def watch(self, slots: int) -> None:
        """Start the thread that writes the heartbeat and sees to the end."""
        threading.Thread(target=self._watch, args=(slots,), name="watch", daemon=True).start()

    def _watch(self, slots: int) -> None:
        beat, last_beat_at = 0, 0.0
        conductor = _Change(self._session.read_conductor_beat)
        while True:
            try:
                if time.monotonic() - last_beat_at > HEARTBEAT_S:
                    beat, last_beat_at = beat + 1, time.monotonic()
                    self._session.write_heartbeat(self._heartbeat(slots, beat))
                if self._shall_end(conductor):
                    self._end()
                if self._side is not None:
                    self._side.check_running()
            except OSError as cause:  # a full disk must not end the worker
                LOGGER.warning("%s", cause)
            time.sleep(_WATCH_S)

    def _heartbeat(self, slots: int, beat: int) -> Heartbeat:
        process = ProcessId.of(os.getpid())
        return Heartbeat(
            name=self._name,
            group=self._arguments.group,
            host=host_name(),
            supervisor=(self._supervisor.pid, self._supervisor.start),
            process=(process.pid, process.start),
            slots=slots,
            beat=beat,
            state=self._state,
        )

    @property
    def _state(self) -> str:
        if not self._ready:
            return "starting"
        if self._side is None:
            return "idle"
        return "stopping" if self._side.stopping.is_set() else "busy" if self._side.busy else "idle"

    def _shall_end(self, conductor: _Change) -> bool:
        if self._session.worker_stop_requested(self._arguments.name) or not self._session.path.exists():
            return True
        if not self._supervisor.is_alive:
            return True
        if self._broker_has_moved() and self._idle_s() > 0:
            return True
        is_pool_process = self._name != self._arguments.name
        limit_s = self._arguments.idle_limit_s
        return not is_pool_process and conductor.unchanged_s() > limit_s and self._idle_s() > limit_s

    def _broker_has_moved(self) -> bool:
        """Whether the session's broker is elsewhere now: a worker that begins then finds it, this one does not."""
        broker = self._session.read_broker()
        return broker is not None and broker["url"] != self._app.url

    def _idle_s(self) -> float:
        """Return for how long this worker has had nothing to do."""
        if self._side is not None:
            return 0.0 if self._side.busy else time.monotonic() - self._side.last_work
        prefix = f"{self._name}."
        if any(beat.state == "busy" for beat in self._session.heartbeats() if beat.name.startswith(prefix)):
            self._pool_busy_at = time.monotonic()
        return time.monotonic() - self._pool_busy_at

    def _end(self) -> None:
        """Stop taking samples, end those that run, and let Celery end."""
        if self._ending:
            return
        self._ending = True
        if self._side is not None:
            self._side.stopping.set()
        if self._supervisor.is_alive:
            self._supervisor.signal(signal.SIGTERM)  # which passes it on, and sees to the end
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(os.getpid(), signal.SIGTERM)


class _Change:
    """Tells for how long a value has not changed, by this machine's clock."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read, self._value, self._since = read, read(), time.monotonic()

    def unchanged_s(self) -> float:
        """Return the seconds since the last change."""
        value = self._read()
        if value != self._value:
            self._value, self._since = value, time.monotonic()
        return time.monotonic() - self._since
