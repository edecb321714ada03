"""The Celery worker of a worker: its application, its options, its start."""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import os
import signal
import sys
from typing import NoReturn

from celery.signals import worker_process_init, worker_ready, worker_shutting_down
from celery.utils.nodenames import host_format

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.packing import fewest_slots, worker_slots
from maestro_celery_plugin.broker.app import make_app, queue_for
from maestro_celery_plugin.broker.choice import check_reachable
from maestro_celery_plugin.errors import BrokerUnavailableError, EnsembleError, WorkerError
from maestro_celery_plugin.files import share_clock
from maestro_celery_plugin.machine import host_name, usable_cpus
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.spec.celery_options import CeleryOptions, parse_celery_options
from maestro_celery_plugin.study.session import BrokerLocation, Session
from maestro_celery_plugin.study.worker_identity import EXIT_NO_BROKER, EXIT_REPLACE
from maestro_celery_plugin.worker import prefetch
from maestro_celery_plugin.worker.arguments import WorkerArguments
from maestro_celery_plugin.worker.worker_process import WorkerProcess

__all__ = ["run"]

LOGGER = logging.getLogger(__name__)

# A worker waits this long for a broker that is being started or started again. The conductor cancels an allocation
# without a worker later (`allocation_source.EMPTY_LIMIT_S`).
BROKER_LIMIT_S = 120.0
_BROKER_INTERVAL_S = 1.0
# kombu's BRPOP waits for a second in the server, and is read only when the answer has arrived.
SOCKET_TIMEOUT_S = 5.0


def run(arguments: WorkerArguments, supervisor: ProcessId) -> NoReturn:
    """Run the Celery worker in this process, and exit when it ends.

    Args:
        arguments: The arguments of the worker.
        supervisor: The supervisor process.
    """
    session, group = arguments.session, arguments.group
    signal.signal(signal.SIGUSR2, lambda number, frame: None)  # the warning of LSF, which the supervisor handles
    try:
        args = _celery_options(arguments)
        share_clock(session.path)
        _await_broker(session, arguments.name)
        app = make_app(session, SOCKET_TIMEOUT_S)
    except EnsembleError as error:
        LOGGER.error("Worker '%s' on %s: %s", arguments.name, host_name(), error)
        raise SystemExit(EXIT_NO_BROKER if isinstance(error, BrokerUnavailableError) else 1) from error
    if not args.slots:
        LOGGER.warning(
            "Worker '%s' on %s leaves: its allocation has fewer slots than workers.", arguments.name, host_name()
        )
        raise SystemExit(0)
    app.conf.task_queues = [queue_for(session, name) for name in group.queues]
    process = WorkerProcess(arguments, supervisor, app)
    process.register_task()
    prefetch.install(app, args.slots)
    worker_ready.connect(process.mark_ready, weak=False)
    worker_shutting_down.connect(process.mark_terminated, weak=False)
    if args.pool == "prefork":
        process.watch(slots=0)
        worker_process_init.connect(process.open_in_pool, weak=False)
    else:
        process.open(arguments.name, args.slots)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what extensions print is in the log at once, and at a sudden end
    queues = ", ".join(group.queues)
    print(f"worker '{arguments.name}' on {host_name()}: {args.slots} slots for the task queues {queues}")
    # As the command `celery worker`, which imports all other commands first and so takes longer than the rest here.
    settings = {"loglevel": "WARNING", "without_gossip": True, "without_mingle": True, "quiet": True, "no_color": True}
    name = host_format(f"{arguments.name}@%h")
    app.Worker(hostname=name, pool=args.pool, concurrency=args.slots, **{**settings, **args.others}).start()
    raise SystemExit(EXIT_REPLACE if process.must_be_replaced else 0)


def _await_broker(session: Session, name: str) -> None:
    """Wait until the broker answers: it may start after the worker, or be away while its server is started again.

    Args:
        session: The session.
        name: Name of the worker, for the log.

    Raises:
        BrokerUnavailableError: the broker does not answer in time, or the worker must end.
        BrokerError: the broker refuses the password.
    """
    deadline, is_first = clock.monotonic() + BROKER_LIMIT_S, True
    while True:
        broker = session.read_broker()
        try:
            check_reachable(session, host_name())
            return
        except BrokerUnavailableError as error:
            if clock.monotonic() >= deadline or session.stop_requested or not session.path.exists():
                raise
            if is_first and broker is not None:
                LOGGER.warning("Worker '%s' waits up to %.0f s for its broker: %s", name, BROKER_LIMIT_S, error)
        is_first = False
        # The conductor starts the private broker and the workers at the same time.
        clock.wait_until(functools.partial(_has_moved, session, broker), _BROKER_INTERVAL_S)


def _has_moved(session: Session, broker: BrokerLocation | None) -> bool:
    return session.read_broker() != broker


def _celery_options(arguments: WorkerArguments) -> CeleryOptions:
    """Return the parsed options of `celery worker`.

    In an allocation, a group without `--concurrency` has as many slots as samples fit into the whole allocation; the
    step with the fewest slots decides. The workers share these slots.

    Raises:
        WorkerError: no sample fits.
    """
    group = arguments.group
    args = parse_celery_options(group.args)
    system = batch_system(group.batch.type)
    if args.has_concurrency or system is None:
        return args
    cores, gpus = system.node_cores(os.environ) or usable_cpus(), group.batch.gpus
    steps = [needs.planned(gpus_are_per_process=system.gpus_are_per_process) for needs in group.needs]
    needs, slots = fewest_slots(steps, group.nodes, cores, gpus, shares_nodes=system.shares_nodes)
    if not slots:
        raise WorkerError(
            f"a sample of the group '{group.group}' needs {needs.text}; its allocation has {group.nodes} nodes of "
            f"{cores} cores{f' and {gpus} GPUs' if gpus is not None else ''}. Request less in the step, or set more "
            "`nodes` for the group."
        )
    # Worker numbers continue after a restart of the batch job, and after workers that a user has started.
    workers = system.worker_count(group)
    return dataclasses.replace(args, slots=worker_slots(slots, workers, 1 + (arguments.number - 1) % workers))
