"""What can go wrong, in words for the person at the terminal.

Every error a user can cause or meet derives from `EnsembleError`; the edges (`maestro run`,
`maestro-celery`) print its message and nothing else. The docstring of each class is its message when
none is given.
"""

from __future__ import annotations

__all__ = [
    "AllocationError",
    "AllocationOverError",
    "BatchSystemAwayError",
    "BrokerError",
    "EnsembleError",
    "LedgerError",
    "SampleError",
    "SpecificationError",
    "StudyError",
    "UnsupportedMaestroError",
    "WorkerError",
]


class EnsembleError(Exception):
    """Something went wrong in the ensemble."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class SpecificationError(EnsembleError):
    """The specification cannot be used.

    The message reads ``file: block.key: what was found; what is allowed.``
    """

    @classmethod
    def at(cls, file: str, where: str, problem: str) -> SpecificationError:
        """Build the error for one key: `where` is its dotted path in `file`."""
        return cls(f"{file}: {where}: {problem}" if where else f"{file}: {problem}")


class SampleError(EnsembleError):
    """The samples cannot be generated or read."""


class BrokerError(EnsembleError):
    """The message broker cannot be reached."""


class WorkerError(EnsembleError):
    """A worker group cannot be started."""


class AllocationError(EnsembleError):
    """An allocation cannot be had."""


class AllocationOverError(AllocationError):
    """The allocation around this process has no time left for further samples."""


class BatchSystemAwayError(AllocationError):
    """The batch system does not answer now."""


class LedgerError(EnsembleError):
    """The ledger cannot be written."""


class StudyError(EnsembleError):
    """The directory is not a study of this plugin."""


class UnsupportedMaestroError(EnsembleError):
    """The installed Maestro is not one that this plugin supports."""
