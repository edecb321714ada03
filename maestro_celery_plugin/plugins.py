"""The plugin manager: our own parts and those of third parties, registered the same way."""

from __future__ import annotations

import functools

import pluggy

from maestro_celery_plugin import hookspecs
from maestro_celery_plugin.batch.flux import Flux
from maestro_celery_plugin.batch.lsf import Lsf, LsfSrun
from maestro_celery_plugin.batch.slurm import Slurm
from maestro_celery_plugin.samples.npy import NpyReader
from maestro_celery_plugin.samples.text import CsvReader, TabReader

__all__ = ["plugin_manager"]


@functools.lru_cache(maxsize=1)
def plugin_manager() -> pluggy.PluginManager:
    """Return the manager with all parts registered; built once per process."""
    manager = pluggy.PluginManager(hookspecs.HOOK_NAMESPACE)
    manager.add_hookspecs(hookspecs)
    for part in (NpyReader(), CsvReader(), TabReader(), Slurm(), Lsf(), LsfSrun(), Flux()):
        manager.register(part, name=type(part).__name__)
    manager.load_setuptools_entrypoints(hookspecs.HOOK_NAMESPACE)
    manager.check_pending()
    return manager
