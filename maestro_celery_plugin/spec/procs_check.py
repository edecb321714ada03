"""The check of processes and nodes: some batch systems require a process for each node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maestro_celery_plugin.spec.problems import Problem

__all__ = ["check_procs"]

# Batch types that refuse a request with fewer processes than nodes.
_NEED_PROCS = ("flux",)


def check_procs(kind: str, nodes: Any, procs: Any, where: str) -> Iterator[Problem]:
    """Check that there is a process for each node, if the batch system requires it; ignore values with tokens.

    Args:
        kind: The batch type.
        nodes: Value of `nodes`.
        procs: Value of `procs`.
        where: Path of the key.
    """
    counts = [str(value or "") for value in (nodes, procs)]
    if kind in _NEED_PROCS and all(map(str.isdigit, counts)) and int(counts[0]) > int(counts[1]):
        yield Problem(
            where,
            f"found {counts[1]} procs on {counts[0]} nodes; '{kind}' requires a process for each node. Set more "
            "`procs`, or fewer `nodes`.",
        )
