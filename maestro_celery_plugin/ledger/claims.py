"""Claims: which writer has taken a message. A claim is never withdrawn.

A claim is a symbolic link, whose target is the name of its owner:

    claims/<study>/<record>/<bucket>/<epoch>.<series>.<start>-<stop> -> <writer>:<token>

The creation of a link is exclusive and atomic, also on NFS, and the link names its owner from the first moment. So a
claim does not depend on what the caches of a network file system show, on the time between two operations, or on
files that a sample may delete. The coordinator takes back a message that may be lost by claiming it itself.
"""

from __future__ import annotations

import errno
import secrets
from pathlib import Path
from typing import NamedTuple

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.store import STORE, Store

__all__ = ["Claims", "MessageName", "owner_text"]

# Samples per directory, so that no directory has too many links.
_BUCKET = 4096


class MessageName(NamedTuple):
    """The name of a message: samples [start, stop) of a step record under an epoch. No two messages have one name.

    A slot that has kept parts of its range may send the same samples later. Such messages are of a new series, because
    the claims of the kept parts are for ever.
    """

    record: int
    epoch: int
    start: int
    stop: int
    series: int = 0


def owner_text(writer: str) -> str:
    """Return the text of an owner: the writer, and a random token that tells its tries apart."""
    return f"{writer}:{secrets.token_hex(4)}"


class Claims:
    """The claims of one study.

    Args:
        directory: The directory of the claims of all studies that were launched in this workspace.
        study: Number of the study.
        store: The file operations.
    """

    def __init__(self, directory: Path, study: int, store: Store = STORE) -> None:
        self._directory, self._store = directory / f"{study:016x}", store

    def prepare(self, record: int) -> None:
        """Make the directory of a step record; only the coordinator calls this method.

        Raises:
            OSError: the directory cannot be made.
        """
        (self._directory / str(record)).mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """Check that the file system has symbolic links.

        Raises:
            StudyError: it has none.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        probe = self._directory / "probe"
        try:
            probe.unlink(missing_ok=True)
            probe.symlink_to("probe")
            probe.unlink()
        except OSError as cause:
            raise StudyError(
                f"The file system of '{self._directory.parent}' cannot make symbolic links ({cause.strerror}), with "
                "which workers claim samples; use another file system for the study (--out or OUTPUT_PATH)."
            ) from cause

    def claim(self, name: MessageName, owner: str) -> bool:
        """Claim a message; return whether this owner is the first to claim it.

        Args:
            name: The message.
            owner: The owner, from `owner_text`; a call with the same text repeats an earlier call.

        Raises:
            FileNotFoundError: the study does not exist any more.
            OSError: it is not known whether the message is claimed; call again with the same owner.
        """
        try:
            self._link(owner, name)
        except FileExistsError:
            # If the answer to a request is lost, NFS repeats the request, and finds the link of the first one.
            return self._target(name) == owner
        return True

    def owner(self, name: MessageName) -> str | None:
        """Return the writer that has claimed a message, or an empty text if it is unknown; None if nobody has.

        Raises:
            OSError: the claim cannot be read now.
        """
        try:
            return self._target(name).rpartition(":")[0]
        except FileNotFoundError:
            return None

    def _target(self, name: MessageName) -> str:
        """Return the target of a claim; an empty text if a copy of the study has a file in place of the link."""
        try:
            return self._store.target(self._path(name))
        except OSError as error:
            if error.errno != errno.EINVAL:  # readlink(2): no symbolic link
                raise
            return ""

    def _path(self, name: MessageName) -> str:
        return f"{self._bucket(name)}/{name.epoch}.{name.series}.{name.start}-{name.stop}"

    def _bucket(self, name: MessageName) -> str:
        return f"{self._directory}/{name.record}/{name.start // _BUCKET}"

    def _link(self, owner: str, name: MessageName) -> None:
        try:
            self._store.link(owner, self._path(name))
        except FileNotFoundError:
            self._store.make_directory(self._bucket(name))  # not its parent, which only the coordinator makes
            self._store.link(owner, self._path(name))
