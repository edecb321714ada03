"""The hooks: the extension points of the package. An extension implements some of them.

An extension is a package with an entry point in the group ``maestro_celery``:

    [project.entry-points.maestro_celery]
    hdf5 = "my_package.samples"

It imports all names that it needs from the package `maestro_celery_plugin`. `plugins.py` registers the readers and
batch systems of this package through the same hooks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pluggy

from maestro_celery_plugin.batch.base import BatchSystem
from maestro_celery_plugin.samples.table import SampleTable

__all__ = ["HOOK_NAMESPACE", "Attempt", "attempt_finished", "batch_system", "hookimpl", "open_samples"]

HOOK_NAMESPACE = "maestro_celery"

hookspec = pluggy.HookspecMarker(HOOK_NAMESPACE)
hookimpl = pluggy.HookimplMarker(HOOK_NAMESPACE)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One execution of one sample, after its end.

    Attributes:
        record: Name of the step record.
        sample: Index of the sample.
        code: Exit code; negative for a signal, as in `subprocess`.
        duration_s: Wall time in seconds.
        was_ended: Whether the worker has ended the attempt, so that the code does not describe the sample.
    """

    record: str
    sample: int
    code: int
    duration_s: float
    was_ended: bool


@hookspec(firstresult=True)
def open_samples(path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
    """Open a sample table, or return None when the extension does not read files of this kind.

    `maestro run` calls this hook once, to check and index the table; each worker calls it again.

    Args:
        path: The file, or the study's copy of it with the same name; its suffix shows the kind.
        labels: The column labels of the specification, in their order.
        cache: A directory for an index; it exists as long as the study.

    Raises:
        SampleError: the file is of this kind, but cannot be used.
    """


@hookspec
def batch_system() -> BatchSystem | None:
    """Return an additional batch system, which a specification selects by its `type`; None for none on this machine.

    A batch system with the `type` of a built-in one replaces it.

    The package calls this hook in `maestro run`, in the conductor and in workers; `BatchSystem` defines the interface.
    """


@hookspec
def attempt_finished(attempt: Attempt) -> None:
    """Receive an attempt that has ended; the worker calls this hook after it has written the ledger."""
