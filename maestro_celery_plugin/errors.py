"""The errors of the package, each with a message for the user.

Every error that a user can cause or see derives from `EnsembleError`; the commands (`maestro run`,
`maestro-celery`) print its message without a traceback. The docstring of a class is its default message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "AllocationError",
    "AllocationExpiredError",
    "BatchSystemUnavailableError",
    "BrokerError",
    "BrokerUnavailableError",
    "ConfigurationError",
    "DamagedFileError",
    "EnsembleError",
    "ExpressionError",
    "ExtensionError",
    "LedgerError",
    "MissingPackageError",
    "SampleError",
    "SpecificationError",
    "StudyError",
    "StudyTimeoutError",
    "UnsupportedMaestroError",
    "WorkerError",
    "nearest",
]


class EnsembleError(Exception):
    """The ensemble has failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class SpecificationError(EnsembleError):
    """The specification cannot be used.

    The message reads ``file: block.key: what was found; what is allowed.``
    """

    where = ""
    problem = ""

    @classmethod
    def at(cls, file: str, where: str, problem: str) -> SpecificationError:
        """Return the error for one key: `where` is its dotted path in `file`."""
        error = cls(f"{file}: {where}: {problem}" if where else f"{file}: {problem}")
        error.where, error.problem = where, problem
        return error


class SampleError(EnsembleError):
    """The samples cannot be generated or read."""


class BrokerError(EnsembleError):
    """The message broker cannot be reached."""


class BrokerUnavailableError(BrokerError):
    """The message broker does not answer now."""


class ConfigurationError(EnsembleError):
    """The user's configuration cannot be used."""


class WorkerError(EnsembleError):
    """A worker group cannot be started."""


class AllocationError(EnsembleError):
    """An allocation cannot be opened."""


class AllocationExpiredError(AllocationError):
    """The allocation around this process has no time left for more samples."""


class BatchSystemUnavailableError(AllocationError):
    """The batch system does not answer now."""


class ExtensionError(EnsembleError):
    """An extension cannot be used."""


class LedgerError(EnsembleError):
    """The ledger cannot be written."""


class ExpressionError(EnsembleError):
    """The condition or the name of a column cannot be used."""


class MissingPackageError(EnsembleError):
    """A package that this command needs is not installed."""


class StudyError(EnsembleError):
    """The directory is not a study of this plugin."""


class StudyTimeoutError(EnsembleError, TimeoutError):
    """The study has not ended in time."""


class DamagedFileError(StudyError, ValueError):
    """A file of the study is damaged."""

    problem = ""

    @classmethod
    def at(cls, path: Path, problem: str, remedy: str = "") -> DamagedFileError:
        """Return the error for one file: what was found, and what a user can do."""
        remedy = remedy or "restore it from a backup, or launch the study again"
        error = cls(f"'{path}' is damaged: {problem}; {remedy}.")
        error.problem = problem
        return error


class UnsupportedMaestroError(EnsembleError):
    """The plugin does not support the installed version of Maestro."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return a hint: the allowed name that is most similar to a word, or all allowed names."""
    names = sorted(allowed)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    if close:
        return f"did you mean '{close[0]}'?"
    return "allowed: " + ", ".join(f"'{name}'" for name in names) + "." if names else "no name is defined here."
