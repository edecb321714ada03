"""The type of each column: a column is one of numbers if all of its values are numbers, also as text.

A number with a leading zero, such as 007, is a text: it names something.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.report.cell_text import as_text
from maestro_celery_plugin.report.sample_columns import Column, Kind
from maestro_celery_plugin.report.sample_rows import SampleRows

__all__ = ["ColumnType", "column_types", "dtype_of", "filled", "typed"]

_TYPES = {bool: "boolean", int: "integer", float: "number"}
_LARGEST = 2**63
_ZEROS = re.compile(r"[+-]?0\d")


@dataclasses.dataclass
class ColumnType:
    """The type of a column.

    Attributes:
        name: ``integer``, ``number``, ``boolean``, ``text``; ``value`` for lists, and for values of several types.
        has_gaps: Whether values are missing.
        width: The number of characters of the longest text.
    """

    name: str = ""
    has_gaps: bool = False
    width: int = 1

    @property
    def is_text(self) -> bool:
        """Whether a column of a table has texts."""
        return self.name in ("text", "value", "")

    def add(self, values: Sequence[Any]) -> None:
        """Take more values into account."""
        present = [value for value in values if value is not None]
        self.has_gaps |= len(present) < len(values)
        for name in {_type_of(kind, present) for kind in set(map(type, present))}:
            self.name = _joint(self.name, name)
        if present:
            self.width = max(self.width, max(map(len, map(as_text, present))))


def _type_of(kind: type, values: Sequence[Any]) -> str:
    if kind is not str:
        return _TYPES.get(kind, "value")
    return _type_of_texts([value for value in values if type(value) is str])


def _type_of_texts(texts: list[str]) -> str:
    joined = "".join(texts)
    # Python reads 1_000 as a number, and 007, which is a name.
    if "_" in joined or not all(texts) or any(map(_ZEROS.match, texts)):
        return "text"
    try:
        return "integer" if all(-_LARGEST <= number < _LARGEST for number in map(int, texts)) else "number"
    except ValueError:
        pass
    try:
        for text in texts:
            float(text)
    except ValueError:
        return "text"
    return "number"


def _joint(first: str, second: str) -> str:
    """Return the type of a column with values of two types."""
    if first in ("", second):
        return second
    numbers = ("integer", "number")
    if first in numbers and second in numbers:
        return "number"
    return "value" if "value" in (first, second) or "boolean" in (first, second) else "text"


def column_types(rows: SampleRows, columns: Sequence[Column], *, widths: bool = False) -> dict[str, ColumnType]:
    """Return the types of columns; this reads the values of those whose type is not known.

    Args:
        rows: The rows.
        columns: The columns.
        widths: Whether `has_gaps` and `width` are needed.
    """
    fixed = {Kind.INTEGER: "integer", Kind.NUMBER: "number", Kind.TEXT: "text"}
    types = {column.name: ColumnType() for column in columns}
    unknown = [column for column in columns if widths or column.kind is Kind.ANY]
    for block in rows.blocks(unknown) if unknown else ():
        for name, values in block.values.items():
            types[name].add(values)
    for column in columns:
        if column.kind in fixed:
            types[column.name].name = fixed[column.kind]
    return types


def typed(values: Iterable[Any], type_: ColumnType) -> list[Any]:
    """Return values as their type has them; None for what is missing, and texts for values of several types."""
    if type_.name == "integer":
        return [None if value is None else int(value) for value in values]
    if type_.name == "number":
        return [None if value is None else float(value) for value in values]
    if type_.name in ("text", ""):
        return [None if value is None else as_text(value) for value in values]
    return list(values)


def dtype_of(types: Mapping[str, ColumnType]) -> np.dtype[Any]:
    """Return the type of a structured array with these columns; missing numbers are NaN there."""
    fields = []
    for name, one in types.items():
        if one.is_text:
            fields.append((name, f"<U{one.width}"))
        elif one.name == "number" or one.has_gaps:
            fields.append((name, "<f8"))
        else:
            fields.append((name, "<i8" if one.name == "integer" else "?"))
    return np.dtype(fields)


def filled(dtype: np.dtype[Any], count: int, values: Mapping[str, Sequence[Any]]) -> np.ndarray[Any, Any]:
    """Return a structured array with values."""
    array = np.empty(count, dtype)
    for name, cells in values.items():
        if dtype[name].kind == "U":
            array[name] = list(map(as_text, cells))
        elif dtype[name].kind == "f":
            array[name] = [math.nan if cell is None else float(cell) for cell in cells]
        elif dtype[name].kind == "i":
            array[name] = list(map(int, cells))
        else:
            array[name] = cells
    return array
