"""The check of `batch.args`: options that a batch script can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.plugins import batch_system

__all__ = ["check_options"]


def check_options(kind: str, args: Mapping[str, Any] | str, file: str, where: str) -> None:
    """Check the options of a batch type.

    Args:
        kind: The batch type.
        args: Value of `args`.
        file: Name of the specification, for messages.
        where: Path of the key.

    Raises:
        SpecificationError: an option is invalid, or another key sets it.
    """
    system = batch_system(kind)
    if system is None:
        return
    if system.directives is None:
        problem = f"found '{args}'; '{kind}' needs a block of keys here" if isinstance(args, str) else None
    else:
        problem = system.directives.problem(args)
    if problem is not None:
        raise SpecificationError.at(file, where, f"{problem}.")
