"""Assignments: which samples run under an epoch, and how, if the ranges of its messages do not say it.

The samples that must run again may be scattered, for example when a study with many failed samples is resumed. Then the
messages cover ranges with other samples, and a file next to the manifest tells the workers which samples to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.samples.npy_file import NpyFile, write_npy
from maestro_celery_plugin.states import RunMode

__all__ = ["Assignment"]


class Assignment:
    """The modes of all samples of a step record under one epoch; only the coordinator writes it.

    Two bits per sample: the modes that differ from `RunMode.ASSIGNED`, which stands for "does not run".

    Args:
        directory: The directory of the manifest.
        epoch: The epoch.
    """

    def __init__(self, directory: Path, epoch: int) -> None:
        self._path = directory / f"assignment-{epoch}.npy"

    def write(self, modes: np.ndarray[Any, Any]) -> None:
        """Store the modes.

        Args:
            modes: A `RunMode` for each sample; `RunMode.ASSIGNED` for a sample that does not run.

        Raises:
            OSError: the file cannot be written.
        """
        write_npy(self._path, np.packbits([modes & 1, modes >> 1], axis=1))

    def read(self, start: int, stop: int) -> dict[int, RunMode]:
        """Return the modes of the samples of [start, stop) that run.

        Raises:
            OSError: the file cannot be read.
            DamagedFileError: it is damaged.
        """
        file, first = self._open(stop), start // 8
        width, count = file.shape[1], -(-stop // 8) - first
        planes = np.stack([file.read(plane * width + first, count) for plane in range(2)])
        low, high = np.unpackbits(planes, axis=1)[:, start - 8 * first : stop - 8 * first]
        modes = low + 2 * high
        return {start + int(at): RunMode(int(modes[at])) for at in np.flatnonzero(modes)}

    def _open(self, stop: int) -> NpyFile:
        try:
            file = NpyFile(self._path)
            is_plain = file.dtype == np.uint8 and not file.is_fortran and not file.has_more
            if not is_plain or len(file.shape) != 2 or file.shape[0] != 2 or 8 * file.shape[1] < stop:
                raise ValueError(f"it has the type {file.dtype} and the shape {file.shape}")
        except DamagedFileError:
            raise
        except ValueError as cause:
            raise DamagedFileError.at(self._path, str(cause)) from cause
        return file
