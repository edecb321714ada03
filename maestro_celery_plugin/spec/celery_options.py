"""The options of `celery worker` in the ``args`` of a worker group, which are checked when a specification is loaded.

Celery's own parser reads the options; this module lists the options that a specification must not set.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from typing import Any

from maestro_celery_plugin.machine import usable_cpus
from maestro_celery_plugin.spec.problems import Problem

__all__ = ["CeleryOptions", "check_celery_options", "parse_celery_options"]

POOLS = ("threads", "solo", "prefork")

# Celery's name of an option → the reason why `args` must not set it.
_RESERVED_WORKER_OPTIONS = {
    "hostname": "the plugin names the workers",
    "queues": "the task queues follow from `steps` or `task_queues`",
    "exclude_queues": "the task queues follow from `steps` or `task_queues`",
    "include": "workers run the study's steps only",
    "detach": "the plugin starts and ends the workers",
    "pidfile": "the plugin starts and ends the workers",
    "statedb": "the ledger keeps the state",
    "purge": "it would delete the messages of the study",
    "beat": "the plugin has no periodic tasks",
    "autoscale": "the number of slots is fixed; use --concurrency",
    "time_limit": "samples end by themselves or with their allocation",
    "soft_time_limit": "samples end by themselves or with their allocation",
    "max_tasks_per_child": "each sample is a separate process",
    "max_memory_per_child": "each sample is a separate process",
    "uid": "workers run as the user who starts the study",
    "gid": "workers run as the user who starts the study",
}
# The same for options of `celery` itself, which the parser of worker options does not accept.
_RESERVED_CELERY_OPTIONS = {
    "--help": "it does not start a worker",
    "-A": "workers run the application of the plugin",
    "--app": "workers run the application of the plugin",
    "-b": "the broker is chosen with `maestro run --broker`",
    "--broker": "the broker is chosen with `maestro run --broker`",
    "--result-backend": "the plugin uses no result backend",
    "--loader": "workers run the application of the plugin",
    "--config": "the plugin configures the workers",
    "--workdir": "workers run in the study's directory",
}


@dataclasses.dataclass(frozen=True)
class CeleryOptions:
    """The parsed ``args`` of a worker group.

    Attributes:
        slots: How many samples a worker runs in parallel.
        pool: Celery's pool.
        others: The other options, as arguments of Celery's class `Worker`.
        has_concurrency: Whether `args` sets the number of slots.
    """

    slots: int
    pool: str
    has_concurrency: bool
    others: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_celery_options(args: str, where: str) -> Iterator[Problem]:
    """Check the ``args`` of a worker group: each option exists, has a valid value, and may be set."""
    try:
        parse_celery_options(args)
    except ValueError as cause:
        yield Problem(where, str(cause))


def parse_celery_options(args: str) -> CeleryOptions:
    """Parse ``args`` as Celery does.

    Raises:
        ValueError: an option is not allowed; the message contains the reason.
    """
    words = shlex.split(args)
    if slots := _only_slots(words):
        return CeleryOptions(slots=slots, pool="threads", has_concurrency=True)
    for option in (word.partition("=")[0] for word in words):
        if option in _RESERVED_CELERY_OPTIONS:
            raise ValueError(f"the option {option} cannot be set here: {_RESERVED_CELERY_OPTIONS[option]}.")
    values = _parsed(words)
    for name in values:
        if name in _RESERVED_WORKER_OPTIONS:
            raise ValueError(
                f"the option --{name.replace('_', '-')} cannot be set here: {_RESERVED_WORKER_OPTIONS[name]}."
            )
    pool = values.pop("pool", "threads")
    if pool not in POOLS:
        raise ValueError(f"found the pool '{pool}'; one of {', '.join(POOLS)} is needed.")
    slots = values.pop("concurrency", None)
    if slots is not None and not (str(slots).isdigit() and int(slots) > 0):
        raise ValueError(f"found --concurrency {slots}; a number of at least 1 is needed.")
    return CeleryOptions(
        slots=1 if pool == "solo" else int(slots or usable_cpus()),
        pool=pool,
        has_concurrency=pool == "solo" or slots is not None,
        # A worker of this package never prefetches (`worker/prefetch.py`).
        others={name: value for name, value in values.items() if name != "disable_prefetch"},
    )


def _only_slots(words: list[str]) -> int | None:
    """Return the number of slots if the options set nothing else; None otherwise.

    This is what most worker groups have, and Celery's parser takes longer to import than a specification to load.
    """
    found = re.fullmatch(r"(?:-c |--concurrency[ =])([1-9][0-9]{0,5})", " ".join(words))
    return int(found[1]) if found else None


def _parsed(words: list[str]) -> dict[str, Any]:
    """Return the values of the options in ``args`` by their names, as Celery's parser converts them."""
    import click
    from celery.bin.worker import worker

    context = click.Context(worker, info_name="celery worker")
    try:
        values, extra, order = worker.make_parser(context).parse_args(list(words))
        if extra:
            raise click.UsageError(f"unexpected argument '{extra[0]}'")
        given = {str(parameter.name): parameter for parameter in order if parameter.name in values}
        # Celery needs a running application to convert the other options.
        converted = {
            name: parameter.type_cast_value(context, values[name])
            for name, parameter in given.items()
            if name not in _RESERVED_WORKER_OPTIONS and name != "pool"
        }
    except click.ClickException as cause:
        message = cause.format_message().rstrip(".")
        raise ValueError(message if message.endswith(("?", "?)")) else f"{message}.") from cause
    return {name: converted.get(name, values[name]) for name in given}
