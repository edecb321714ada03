"""Arrays in `.npy` files: they are stored durably, and read in parts with pread(2).

A memory map would kill its process with SIGBUS if the file system has an error, or if another process has truncated the
file (mmap(2)); pread(2) reports an error.
"""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.files import open_regular, replaced

__all__ = ["Array", "NpyFile", "read_header", "write_npy"]

Array = np.ndarray[Any, Any]


def write_npy(path: Path, array: Array) -> None:
    """Store an array; a reader sees either the earlier file or the whole array, also after a power cut.

    Raises:
        OSError: the file cannot be written.
    """
    array = np.ascontiguousarray(array)
    with replaced(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)  # unlike `np.save`, with the error number of the file system


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of the array in a file at its beginning.

    Raises:
        ValueError: it is no `.npy` file.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(file)
    except (ValueError, OSError):
        raise
    except Exception as cause:  # NumPy lets Python parse the header, and passes its errors on
        raise ValueError(f"its header is damaged ({cause})") from cause
    if any(length < 0 for length in shape):
        raise ValueError(f"its header is damaged (shape {shape})")
    if version == (3, 0) and dtype.names:  # the header is UTF-8 instead of Latin-1 (NEP 1)
        dtype.names = tuple(name.encode("latin-1").decode() for name in dtype.names)
    return shape, is_fortran, dtype


class NpyFile:
    """The array in a `.npy` file without Python objects; several threads may use it.

    Args:
        path: The file.

    Attributes:
        shape: The shape of the array.
        is_fortran: Whether the first index varies fastest in the file.
        dtype: The type of its elements.
        has_more: Whether the file goes on after the array.

    Raises:
        ValueError: the file is not a whole `.npy` file.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_regular(path, buffering=0)
        weakref.finalize(self, self._file.close)
        self._descriptor = self._file.fileno()
        self.shape, self.is_fortran, self.dtype = read_header(self._file)
        self._start, self._item_size = self._file.tell(), self.dtype.itemsize
        size, needed = os.fstat(self._descriptor).st_size, self._start + math.prod(self.shape) * self._item_size
        if size < needed:
            raise ValueError(f"it has {size} bytes instead of {needed}")
        self.has_more = size > needed
        if self.dtype.itemsize == 0:
            raise ValueError(f"its elements ({self.dtype}) have no size")

    def read(self, position: int, count: int = 1) -> Array:
        """Return consecutive elements.

        Args:
            position: Position of the first element in the order of the file.
            count: The number of elements.

        Raises:
            OSError: the file cannot be read.
            EOFError: another process has truncated the file.
            ValueError: the elements are Python objects, whose addresses in a file mean nothing.
        """
        if self.dtype.hasobject:  # NumPy would follow the addresses, and the process would end
            raise ValueError(f"'{self._path}' contains Python objects")
        size = count * self._item_size
        data = os.pread(self._descriptor, size, self._start + position * self._item_size)
        if len(data) != size:
            raise EOFError(f"'{self._path}' has been truncated")
        array: Array = np.ndarray(count, self.dtype, data)
        return array
