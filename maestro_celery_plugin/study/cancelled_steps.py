"""The step records that a user has cancelled one by one, or whose waiting samples a user has purged.

A study keeps cancelled ones until `resume --step` names them, and purged ones until it is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_json, write_atomically
from maestro_celery_plugin.study.file_version import version_of

__all__ = ["CancelledSteps", "purge_reason", "reason_of"]

_LOCK_LIMIT_S = 10.0


class CancelledSteps:
    """The names of these step records, in a file that the conductor follows.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int] | None = None
        self._names: frozenset[str] = frozenset()

    def names(self) -> frozenset[str]:
        """Return the names; read the file only if it has changed.

        Raises:
            OSError: the file cannot be read.
        """
        version = version_of(self._path)
        if version != self._version:
            self._names, self._version = self._read(), version
        return self._names

    def _read(self) -> frozenset[str]:
        """Return the stored names; none of a damaged file."""
        try:
            return frozenset(map(str, read_json(self._path)))
        except (FileNotFoundError, DamagedFileError, TypeError):
            return frozenset()

    def add(self, names: Iterable[str]) -> None:
        """Add names.

        Raises:
            OSError: they cannot be stored.
        """
        self._change(added=frozenset(names), removed=frozenset())

    def remove(self, names: Iterable[str]) -> None:
        """Remove names, because these step records run again.

        Raises:
            OSError: this cannot be stored.
        """
        self._change(added=frozenset(), removed=frozenset(names))

    def _change(self, *, added: frozenset[str], removed: frozenset[str]) -> None:
        if not added and not self.names() & removed:
            return
        with FileLock(self._path.with_suffix(".lock")).acquire(timeout=_LOCK_LIMIT_S):
            write_atomically(self._path, json.dumps(sorted((self._read() | added) - removed)))


def reason_of(name: str, root: Path) -> str:
    """Return why a step record is cancelled, as sentences for the user."""
    return (
        f"`maestro-celery cancel --step` has cancelled it; `maestro-celery resume --step {name} {root}` would run it "
        "after the end of the study."
    )


def purge_reason(root: Path) -> str:
    """Return why the waiting samples of a step record do not run, as a sentence for the user."""
    return f"`maestro-celery purge` has taken its waiting samples back; `maestro-celery resume {root}` runs them."
