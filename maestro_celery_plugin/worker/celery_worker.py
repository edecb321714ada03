"""The Celery worker of a worker process: its application, its heartbeat, its end."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import signal
import threading
import time
from typing import Any, NoReturn

import kombu.transport.redis
from celery import Celery
from celery.signals import worker_process_init, worker_ready

from maestro_celery_plugin.batch.base import batch_system
from maestro_celery_plugin.batch.deadline import Deadline
from maestro_celery_plugin.batch.packing import share, tightest
from maestro_celery_plugin.broker.app import TASK_NAME, make_app, queue_for
from maestro_celery_plugin.broker.choice import check_reachable
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.sender import Dispatcher
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.errors import EnsembleError, LedgerError, WorkerError
from maestro_celery_plugin.processes import ProcessId, host_name, wait_until
from maestro_celery_plugin.spec.worker_args import WorkerOptions, parse_worker_args, usable_cpus
from maestro_celery_plugin.study.session import Heartbeat
from maestro_celery_plugin.worker import prefetch
from maestro_celery_plugin.worker.__main__ import MOVED, PROCESS_MARKER, WorkerArguments, mark
from maestro_celery_plugin.worker.idle_timeout import WorkerStay
from maestro_celery_plugin.worker.launch_env import SampleLaunches
from maestro_celery_plugin.worker.slots import WorkerSide

__all__ = ["run"]

LOGGER = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
# Workers that are started by hand may be earlier than the conductor, which starts the broker.
BROKER_LIMIT_S = 30.0
# Workers in allocations, of which there may be thousands, look at the session's files so often, others at each watch.
LOOK_S = 1.0
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
    session, terms = arguments.session, arguments.terms
    signal.signal(signal.SIGUSR2, lambda number, frame: None)  # LSF's warning; the supervisor takes it
    try:
        options = _options(arguments)
        wait_until(lambda: session.read_broker() is not None, BROKER_LIMIT_S, interval_s=0.2)
        app = make_app(session)
        check_reachable(session, host_name())
    except EnsembleError as error:
        LOGGER.error("worker '%s' on %s: %s", arguments.name, host_name(), error)
        raise SystemExit(1) from error
    if not options.slots:
        LOGGER.warning("worker '%s' on %s: the slots of the allocation are on other nodes", arguments.name, host_name())
        raise SystemExit(0)
    app.conf.task_queues = [queue_for(session, name) for name in terms.queues]
    process = _WorkerProcess(arguments, supervisor, app)
    process.register_task()
    prefetch.install(app, options.slots)
    worker_ready.connect(process.mark_ready, weak=False)
    if options.pool == "prefork":
        process.watch(slots=0)
        worker_process_init.connect(process.open_in_pool, weak=False)
    else:
        process.open(arguments.name, options.slots)
    ours = ["-n", f"{arguments.name}@%h", "-P", options.pool, "-c", str(options.slots), "-l", "WARNING"]
    queues = ", ".join(terms.queues)
    print(f"worker '{arguments.name}' on {host_name()}: {options.slots} slots for the task queues {queues}", flush=True)
    app.worker_main(["--quiet", "worker", *ours, "--without-gossip", "--without-mingle", *options.args])
    raise SystemExit(MOVED if process.has_moved else 0)


def _options(arguments: WorkerArguments) -> WorkerOptions:
    """Return the options of `celery worker`.

    In an allocation, slots that `args` does not give are this worker's share of the samples that fit into
    the whole allocation side by side: those of the step of which the fewest fit.

    Raises:
        WorkerError: not even one sample fits.
    """
    terms = arguments.terms
    options = parse_worker_args(terms.args)
    system = batch_system(terms.batch_type)
    if options.has_concurrency or system is None:
        return options
    cores = system.node_cores(os.environ) or usable_cpus()
    steps = [StepNeeds(**needs) for needs in terms.needs]
    needs, slots = tightest(steps, terms.nodes, cores, terms.gpus, shares_nodes=system.shares_nodes)
    if not slots:
        gpus = f" and {terms.gpus} GPUs" if terms.gpus is not None else ""
        raise WorkerError(
            f"a sample of the group '{terms.group}' needs {needs.text}; its allocation has {terms.nodes} nodes of "
            f"{cores} cores{gpus}. Ask for fewer in the step, or give the group more `nodes`."
        )
    # A job that starts again, or workers started by hand once more, find lower numbers taken.
    number = 1 + (arguments.number - 1) % terms.workers
    return dataclasses.replace(options, slots=share(slots, terms.workers, number))


class _WorkerProcess:
    """This process's part of a worker: its slots, its heartbeat, its end.

    With the prefork pool, each of its processes has one slot and ledger files of its own.
    """

    def __init__(self, arguments: WorkerArguments, supervisor: ProcessId, app: Celery) -> None:
        self._arguments, self._terms, self._supervisor, self._app = arguments, arguments.terms, supervisor, app
        self._session = session = arguments.session
        self._deadline = Deadline.of(arguments.terms, os.environ)
        self._system = batch_system(arguments.terms.batch_type)
        self._cores = (self._system.node_cores(os.environ) if self._system else None) or usable_cpus()
        for name in self._system.step_variables if self._system else ():
            os.environ.pop(name, None)
        self._signer = session.signer()
        self._side: WorkerSide | None = None
        self._name = arguments.name
        self._ready = self._ending = False
        self.has_moved = False
        self._pool_busy_at = time.monotonic()
        self._stay = WorkerStay(session, arguments.allocation, self._terms.idle_limit_s, self._deadline)

    def register_task(self) -> None:
        """Make the range task known to the application."""

        @self._app.task(  # type: ignore[untyped-decorator]
            name=TASK_NAME,
            ignore_result=True,
            Request=prefetch.RangeRequest,
            Strategy="maestro_celery_plugin.worker.prefetch:gated_strategy",
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
        launches = SampleLaunches(writer, self._system, self._cores)
        self._side = WorkerSide(writer, slots, Dispatcher(self._session, self._app).send, self._deadline, launches)
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
        beat, last_beat_at, last_look_at = 0, 0.0, 0.0
        look_s = LOOK_S if self._arguments.allocation else _WATCH_S
        while True:
            try:
                now = time.monotonic()
                if now - last_beat_at > HEARTBEAT_S:
                    beat, last_beat_at = beat + 1, now
                    self._session.write_heartbeat(self._heartbeat(slots, beat))
                if self._deadline.is_draining:
                    prefetch.close()
                if now - last_look_at >= look_s:
                    last_look_at = now
                    why = self._why_end()
                    if why is not None:
                        self._end(why)
                if self._side is not None:
                    self._side.flush()
                    self._side.check_running()
            except (OSError, LedgerError) as cause:  # a full disk must not end the worker
                LOGGER.warning("%s", cause)
            except Exception:  # a fault of ours: without this thread the worker would be taken for dead
                LOGGER.exception("the watch over the samples has failed; it goes on")
            time.sleep(_WATCH_S)

    def _heartbeat(self, slots: int, beat: int) -> Heartbeat:
        process = ProcessId.of(os.getpid())
        return Heartbeat(
            name=self._name,
            group=self._terms.group,
            host=host_name(),
            node=os.environ.get("SLURMD_NODENAME", host_name()),
            supervisor=(self._supervisor.pid, self._supervisor.start),
            process=(process.pid, process.start),
            slots=slots,
            beat=beat,
            state=self._state,
            allocation=self._arguments.allocation,
            ends_at=None if math.isinf(self._deadline.ends_at) else self._deadline.ends_at,
            refuses=self._side.refused if self._side else (),
        )

    @property
    def _state(self) -> str:
        if not self._ready:
            return "starting"
        if self._side is None:
            return "draining" if self._deadline.is_draining else "idle"
        if self._side.stopping.is_set():
            return "stopping"
        if self._deadline.is_draining:
            return "draining"
        return "busy" if self._side.busy else "idle"

    def _why_end(self) -> str | None:
        """Return why this process shall end, by the session's files and what it has to do; None if it shall not."""
        if not self._session.path.exists():
            return "its session is not there any more"
        if self._session.worker_stop_requested(self._arguments.name):
            return "it was told to end"
        if not self._supervisor.is_alive:
            return "its supervisor has died"
        if self._broker_has_moved() and self._idle_s() > 0:
            self.has_moved = True
            return "the broker is elsewhere now"
        if self._name != self._arguments.name:
            return None  # a pool process: its worker decides
        return self._stay.why_leave(self._idle_s(), refuses=self._refuses())

    def _refuses(self) -> bool:
        """Whether there is work that this worker does not start any more, for lack of time."""
        if self._side is not None:
            return bool(self._side.refused)
        return any(beat.refuses for beat in self._session.heartbeats(f"{self._name}."))

    def _broker_has_moved(self) -> bool:
        """Whether the session's broker is elsewhere now: a worker that begins then finds it, this one does not."""
        broker = self._session.read_broker()
        return broker is not None and broker["url"] != self._app.url

    def _idle_s(self) -> float:
        """Return for how long this worker has had nothing to do."""
        if self._side is not None:
            return 0.0 if self._side.busy else time.monotonic() - self._side.last_work
        if any(beat.state == "busy" for beat in self._session.heartbeats(f"{self._name}.")):
            self._pool_busy_at = time.monotonic()
        return time.monotonic() - self._pool_busy_at

    def _end(self, why: str) -> None:
        """Stop taking samples, end those that run, and let Celery end."""
        if self._ending:
            return
        self._ending = True
        if self._name == self._arguments.name:
            LOGGER.warning("worker '%s' on %s leaves: %s", self._name, host_name(), why)
        if self._side is not None:
            self._side.stopping.set()
        if self._supervisor.is_alive:
            self._supervisor.signal(signal.SIGTERM)  # which passes it on, and sees to the end
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(os.getpid(), signal.SIGTERM)
