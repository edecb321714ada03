"""Memory that the processes of a worker share with its supervisor, from which they are forked.

Nothing here reads or writes a file, because the file system may not answer.
"""

from __future__ import annotations

import mmap
import struct

__all__ = ["SharedFlag", "shared_numbers"]


def shared_numbers(count: int) -> memoryview[float]:
    """Return memory for numbers, at first 0, which other processes see at once; a number is read and written whole."""
    return memoryview(mmap.mmap(-1, count * struct.calcsize("d"))).cast("d")


class SharedFlag:
    """A flag that any process of a worker can set."""

    def __init__(self) -> None:
        self._number = shared_numbers(1)

    def set(self) -> None:
        """Set the flag."""
        self._number[0] = 1.0

    @property
    def is_set(self) -> bool:
        """Whether a process has set the flag."""
        return bool(self._number[0])
