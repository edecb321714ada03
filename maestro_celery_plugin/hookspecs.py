"""Extension points. A third party implements them in a package with a ``maestro_celery`` entry point.

    [project.entry-points.maestro_celery]
    hdf5 = "my_package.samples"

Our own readers register through the same manager (`plugins.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from maestro_celery_plugin.batch.base import BatchSystem

__all__ = [
    "HOOK_NAMESPACE",
    "AttemptFinished",
    "SampleTable",
    "attempt_finished",
    "batch_system",
    "hookimpl",
    "open_samples",
]

HOOK_NAMESPACE = "maestro_celery"

hookspec = pluggy.HookspecMarker(HOOK_NAMESPACE)
hookimpl = pluggy.HookimplMarker(HOOK_NAMESPACE)


class SampleTable(Protocol):
    """Rows of text, read one at a time from a file that may be larger than memory."""

    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    def width(self) -> int:
        """The number of columns."""

    def row(self, index: int) -> Sequence[str]:
        """Return the values of one row as they are put into scripts; safe to call from several threads."""


class AttemptFinished(Protocol):
    """One execution of one sample, after its end."""

    record: str
    sample: int
    code: int
    duration_s: float


@hookspec(firstresult=True)
def open_samples(path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
    """Open a sample table, or return None when the file is not of a kind this plugin reads.

    Called in `maestro run` (once, to check and to index) and in every worker.

    Args:
        path: The file; its suffix tells the kind.
        labels: The column labels of the specification, in its order.
        cache: A directory for an index, kept as long as the study.

    Raises:
        SampleError: the file is of this kind, but cannot be used.
    """


@hookspec
def batch_system() -> BatchSystem:  # type: ignore[empty-body]
    """Return what knows one more batch system, which a specification names by its `type`.

    Called in `maestro run`, in the conductor and in workers; see `batch_systems.BatchSystem`.
    """


@hookspec
def attempt_finished(attempt: AttemptFinished) -> None:
    """Tell that an attempt has ended; called in the worker, after the ledger has it."""
