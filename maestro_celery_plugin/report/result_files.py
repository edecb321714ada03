"""What a sample has written into a file of its directory: names and values.

A JSON object, a csv file with a header and one row, lines ``key=value``, or one number or text in a `.npy` file.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import stat
import tempfile
import weakref
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.files import parsed_json, read_text
from maestro_celery_plugin.samples.npy_file import NpyFile

__all__ = ["ResultFile", "ResultStore", "read_result"]

_LIMIT_BYTES = 16 << 20
_LARGEST = 2**63


@dataclasses.dataclass
class ResultFile:
    """One result file of all samples; it counts where it cannot be read.

    Attributes:
        name: The path of the file below the directory of a sample.
        faults: The number of samples whose file is missing or cannot be read.
        first: The first of these files, and why.
    """

    name: str
    faults: int = 0
    first: str = ""

    def read(self, directory: str, *, must_exist: bool) -> dict[str, Any]:
        """Return the values in the file of a sample; none if it cannot be read."""
        path = Path(directory, self.name)
        try:
            return read_result(path)
        except FileNotFoundError:
            problem = "it does not exist"
            if not must_exist:
                return {}
        except OSError as error:
            problem = error.strerror or str(error)
        except ValueError as error:
            problem = str(error)
        self.faults += 1
        self.first = self.first or f"'{path}': {problem}"
        return {}

    @property
    def sentence(self) -> str:
        """The warning for the user."""
        samples = "1 sample" if self.faults == 1 else f"{self.faults} samples"
        return f"--read {self.name}: {samples} without a readable file; their cells are empty. The first: {self.first}."


def read_result(path: Path) -> dict[str, Any]:
    """Return the names and values in a file.

    The values of a nested JSON object get names such as ``fit.slope``; a list stays one value.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: its content is none of the known forms.
    """
    values = _npy_values(path) if path.suffix.lower() == ".npy" else _text_values(path)
    try:
        msgspec.msgpack.encode(values)
    except (OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"it has a value that cannot be stored: {error}") from error
    return values


def _text_values(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, limit=_LIMIT_BYTES)
    except EnsembleError as error:
        raise ValueError(str(error)) from error
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _json_values(text)
    return _csv_values(text) if suffix == ".csv" else _pairs(text)


def _json_values(text: str) -> dict[str, Any]:
    content = parsed_json(text)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    values: dict[str, Any] = {}
    _flatten(content, "", values)
    return values


def _flatten(content: Mapping[str, Any], prefix: str, values: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", values)
        else:
            values[f"{prefix}{key}"] = _storable(value)


def _storable(value: Any) -> Any:
    """Return a value that SQLite and Parquet can store: larger integers become text."""
    return str(value) if isinstance(value, int) and not -_LARGEST <= value < _LARGEST else value


def _csv_values(text: str) -> dict[str, Any]:
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except csv.Error as cause:
        raise ValueError(f"it is not CSV ({cause})") from cause
    if len(rows) != 2:
        raise ValueError(f"it has {len(rows)} rows; a header and one row are needed")
    names, values = ([cell.strip() for cell in row] for row in rows)
    if len(names) != len(values):
        raise ValueError(f"its header has {len(names)} columns, its row has {len(values)}")
    return dict(zip(names, values, strict=True))


def _pairs(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, sign, value = line.partition("=")
            if not sign or not name.strip():
                raise ValueError(f"line {number} is not 'key=value'")
            values[name.strip()] = value.strip()
    return values


def _npy_values(path: Path) -> dict[str, Any]:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    try:
        file = NpyFile(path)
        if file.dtype.hasobject:
            raise ValueError("it has Python objects, which are not read")
        if any(length != 1 for length in file.shape):
            raise ValueError(f"it has the shape {file.shape}; one value is needed")
        value, names = file.read(0), file.dtype.names
        return {name: _plain(value[name][0]) for name in names} if names else {path.stem: _plain(value[0])}
    except (EOFError, SystemError) as error:  # NumPy raises SystemError for a code point that Unicode does not have
        raise ValueError(str(error)) from error


def _plain(value: Any) -> Any:
    """Return a NumPy value as a Python value that `ResultStore` can store."""
    if isinstance(value, np.bool_ | np.integer | np.floating | np.str_):
        plain = value.item()
        return _storable(plain) if isinstance(plain, bool | int | float | str) else str(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class ResultStore:
    """The values of many samples in a temporary file, so that each file is read once, and memory stays flat."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, values: Mapping[str, Any]) -> None:
        """Store the values of one more sample."""
        data = msgspec.msgpack.encode(values)
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def read(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the values of samples by the order in which they were stored."""
        if not numbers:
            return []
        self._file.flush()
        first, last = self._ends[min(numbers)], self._ends[max(numbers) + 1]
        if max(numbers) - min(numbers) < 2 * len(numbers):
            data, offset = os.pread(self._file.fileno(), last - first, first), first
            return [self._decoded(data[self._ends[n] - offset : self._ends[n + 1] - offset]) for n in numbers]
        parts = ((self._ends[n], self._ends[n + 1]) for n in numbers)
        return [self._decoded(os.pread(self._file.fileno(), stop - start, start)) for start, stop in parts]

    @staticmethod
    def _decoded(data: bytes) -> dict[str, Any]:
        values: dict[str, Any] = msgspec.msgpack.decode(data)
        return values
