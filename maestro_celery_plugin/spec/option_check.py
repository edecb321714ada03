"""The check of `batch.args`: options that a batch script can have."""

from __future__ import annotations

from collections.abc import Iterator

from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.spec.problems import Problem

__all__ = ["check_options"]


def check_options(settings: EnsembleSettings) -> Iterator[Problem]:
    """Check the options of the study, which its native steps also have, and those of each worker group.

    Each must be valid, and not one that another key sets.
    """
    blocks = {"batch": (settings.batch.type, settings.batch.args)}
    for name, group in settings.resources.workers.items():
        own = group.batch or {}
        blocks[f"merlin.resources.workers.{name}.batch"] = own.get("type", settings.batch.type), own.get("args")
    for where, (kind, args) in blocks.items():
        system = batch_system(kind)
        if not args or system is None:
            continue
        if system.directives is not None:
            text = system.directives.problem(args)
        else:
            text = f"found '{args}'; '{kind}' needs a block of keys here" if isinstance(args, str) else None
        if text is not None:
            yield Problem(f"{where}.args", f"{text}.")
