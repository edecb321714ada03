"""Maestro's own adapter for native steps, with the keys of the user's batch block."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator
from pathlib import Path

from maestrowf.interfaces import ScriptAdapterFactory

from maestro_celery_plugin.batch.maestro_adapter import OpenAdapter, open_adapter
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.plugins import batch_system

__all__ = ["insert_options", "open_native"]


@contextlib.contextmanager
def open_native(batch: BatchSettings, shell: str | None = None) -> Iterator[OpenAdapter]:
    """Yield Maestro's own adapter for a batch block, with the user's keys and the keys that it requires.

    Args:
        batch: The batch block.
        shell: Interpreter of the scripts; None for the `shell` of the block.

    Raises:
        BatchSystemUnavailableError: the adapter cannot connect to the batch system now.
        AllocationError: Maestro has no adapter for the block's `type`, or the adapter cannot be used.
    """
    system = batch_system(batch.type)
    keywords = {"shell": _shebang(shell or batch.shell)}
    if system is None:
        yield OpenAdapter(ScriptAdapterFactory.get_adapter("local")(**keywords))
        return
    # Maestro's adapters query the jobs of $USER (slurmscriptadapter.py:278), which cron does not set.
    os.environ.setdefault("USER", getpass.getuser())
    keys = {key: value for key, value in conversion.to_dict(batch).items() if key != "type"}
    if batch.nodes == "all":  # for an allocation of workers; a batch job needs a number
        del keys["nodes"]
    with open_adapter(system, keys | system.adapter_arguments(batch) | keywords) as opened:
        yield opened


def insert_options(batch: BatchSettings, result: tuple[bool, str, str | None]) -> None:
    """Insert the options of `batch.args` into the scripts that an adapter has written, if they are for a batch job."""
    system = batch_system(batch.type)
    is_scheduled, *scripts = result
    if is_scheduled and batch.args and system is not None and system.directives is not None:
        for script in map(Path, dict.fromkeys(filter(None, scripts))):
            script.write_text(system.directives.insert(script.read_text(), batch.args))


def _shebang(shell: str) -> str:
    """Return an interpreter in a form for ``#!``, where the kernel needs a path."""
    return shell if "/" in shell.split()[0] else f"/usr/bin/env -S {shell}"
