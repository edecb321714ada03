"""The version of a file that another process replaces, so that a process reads it only when it has changed."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["version_of"]


def version_of(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; None without a file.

    Raises:
        OSError: the file cannot be opened now.
    """
    try:
        # A network file system may show an old file until it is opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return status.st_mtime_ns, status.st_ino
