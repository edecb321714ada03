"""Options of `celery worker` in a worker group's ``args``: checked when the specification is loaded.

Celery's own command line parser decides what an option means; here is only what must not be given.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from typing import Any

from maestro_celery_plugin.errors import SpecificationError

__all__ = ["WorkerOptions", "check_worker_args", "parse_worker_args", "usable_cpus"]

POOLS = ("threads", "solo", "prefork")

# Celery's name of the option → why it is not for `args`.
_OURS = {
    "hostname": "worker names are given by the plugin",
    "queues": "the task queues follow from `steps` or `task_queues`",
    "exclude_queues": "the task queues follow from `steps` or `task_queues`",
    "include": "workers run the study's steps only",
    "detach": "the plugin starts and ends its workers",
    "pidfile": "the plugin starts and ends its workers",
    "statedb": "the ledger keeps the state",
    "purge": "it would throw the study's own messages away",
    "beat": "there are no periodic tasks",
    "autoscale": "slots are fixed; use --concurrency",
    "time_limit": "samples end by themselves or with their allocation",
    "soft_time_limit": "samples end by themselves or with their allocation",
    "max_tasks_per_child": "samples are processes of their own",
    "max_memory_per_child": "samples are processes of their own",
    "uid": "workers run as you",
    "gid": "workers run as you",
}
# The same for what Celery's parser of worker options does not know by name: options of `celery` itself.
_BEFORE_WORKER = {
    "--help": "it starts no worker",
    "-A": "workers run the plugin's application",
    "--app": "workers run the plugin's application",
    "-b": "the broker is chosen with `maestro run --broker`",
    "--broker": "the broker is chosen with `maestro run --broker`",
    "--result-backend": "there is none",
    "--loader": "workers run the plugin's application",
    "--config": "workers are configured by the plugin",
    "--workdir": "workers run in the study's directory",
}


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """A worker group's options.

    Attributes:
        slots: How many samples a worker runs at a time.
        pool: Celery's pool.
        args: What is handed to `celery worker`.
        has_concurrency: Whether the number of slots is the user's.
    """

    slots: int
    pool: str
    args: tuple[str, ...]
    has_concurrency: bool


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_worker_args(args: str, file: str, where: str) -> None:
    """Make sure that `args` can be given to workers.

    Raises:
        SpecificationError: an option is unknown, has a wrong value, or is not for users to set.
    """
    try:
        parse_worker_args(args)
    except ValueError as cause:
        raise SpecificationError.at(file, where, str(cause)) from cause


def parse_worker_args(args: str) -> WorkerOptions:
    """Read `args` as Celery would.

    Raises:
        ValueError: they cannot be given to workers; its text says why.
    """
    words = shlex.split(args)
    for option in (word.partition("=")[0] for word in words):
        if option in _BEFORE_WORKER:
            raise ValueError(f"the option {option} cannot be set here: {_BEFORE_WORKER[option]}.")
    values, given = _parsed(words)
    for name in given:
        if name in _OURS:
            raise ValueError(f"the option --{name.replace('_', '-')} cannot be set here: {_OURS[name]}.")
    pool = values["pool"] if "pool" in given else "threads"
    if pool not in POOLS:
        raise ValueError(f"found the pool '{pool}'; one of {', '.join(POOLS)} is needed.")
    slots = values["concurrency"] if "concurrency" in given else None
    if slots is not None and not (str(slots).isdigit() and int(slots) > 0):
        raise ValueError(f"found --concurrency {slots}; a number of at least 1 is needed.")
    return WorkerOptions(
        slots=1 if pool == "solo" else int(slots or usable_cpus()),
        pool=pool,
        args=tuple(words),
        has_concurrency=pool == "solo" or slots is not None,
    )


def _parsed(words: list[str]) -> tuple[dict[str, Any], set[str]]:
    """Return the values of Celery's parser and the names of the options that were given."""
    import click
    from celery.bin.worker import worker

    context = click.Context(worker, info_name="celery worker")
    try:
        values, extra, order = worker.make_parser(context).parse_args(list(words))
        if extra:
            raise click.UsageError(f"unexpected word '{extra[0]}'")
        given = {str(parameter.name): parameter for parameter in order if parameter.name in values}
        for name, parameter in given.items():
            if name not in _OURS and name != "pool":  # these need a running application to be converted
                parameter.type_cast_value(context, values[name])
    except click.ClickException as cause:
        message = cause.format_message().rstrip(".")
        raise ValueError(message if message.endswith(("?", "?)")) else f"{message}.") from cause
    return values, set(given)
