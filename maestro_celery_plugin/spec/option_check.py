"""The check of `batch.args`: options that a batch script can have."""

from __future__ import annotations

from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.plugins import batch_system

__all__ = ["check_options"]


def check_options(settings: EnsembleSettings, file: str) -> None:
    """Check the options of the study, which its native steps also have, and those of each worker group.

    Args:
        settings: The settings of the study.
        file: Name of the specification, for messages.

    Raises:
        SpecificationError: an option is invalid, or another key sets it.
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
            problem = system.directives.problem(args)
        else:
            problem = f"found '{args}'; '{kind}' needs a block of keys here" if isinstance(args, str) else None
        if problem is not None:
            raise SpecificationError.at(file, f"{where}.args", f"{problem}.")
