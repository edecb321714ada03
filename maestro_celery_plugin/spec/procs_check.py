"""The check of processes and nodes: some batch systems require a process for each node."""

from __future__ import annotations

from typing import Any

from maestro_celery_plugin.errors import SpecificationError

__all__ = ["check_procs"]

# Batch types that refuse a request with fewer processes than nodes.
_NEED_PROCS = ("flux",)


def check_procs(kind: str, nodes: Any, procs: Any, file: str, where: str) -> None:
    """Check that there is a process for each node, if the batch system requires it; ignore values with tokens.

    Args:
        kind: The batch type.
        nodes: Value of `nodes`.
        procs: Value of `procs`.
        file: Name of the specification, for messages.
        where: Path of the key.

    Raises:
        SpecificationError: there are fewer processes than nodes.
    """
    counts = [str(value or "") for value in (nodes, procs)]
    if kind in _NEED_PROCS and all(map(str.isdigit, counts)) and int(counts[0]) > int(counts[1]):
        raise SpecificationError.at(
            file,
            where,
            f"found {counts[1]} procs on {counts[0]} nodes; '{kind}' requires a process for each node. Set more "
            "`procs`, or fewer `nodes`.",
        )
