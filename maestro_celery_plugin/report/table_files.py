"""The table of samples in a file: csv, JSON, Parquet or NumPy."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import msgspec
import numpy as np

from maestro_celery_plugin.errors import ExpressionError, MissingPackageError
from maestro_celery_plugin.files import replaced
from maestro_celery_plugin.report.cell_text import as_text
from maestro_celery_plugin.report.column_types import ColumnType, column_types, dtype_of, filled, typed
from maestro_celery_plugin.report.sample_rows import Block, SampleRows

__all__ = ["SUFFIXES", "check_file", "write_csv", "write_table"]

# Rows of one part of a Parquet file.
_GROUP = 50_000


def check_file(path: Path) -> None:
    """Check that a table can be written into a file, before anything else is done.

    Raises:
        ExpressionError: its suffix names no format, or its directory does not exist.
        MissingPackageError: the package for its format is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        found = f"'{path.suffix}' is no format" if path.suffix else "it has no suffix"
        raise ExpressionError(f"--output {path}: {found}; use {', '.join(SUFFIXES)}.")
    if not path.absolute().parent.is_dir():
        raise ExpressionError(f"--output {path}: there is no directory '{path.absolute().parent}'; create it first.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def write_table(rows: SampleRows, path: Path) -> None:
    """Write the rows into a file; the suffix decides on the format. An earlier file is replaced at the end.

    Raises:
        ExpressionError: the suffix names no format.
        MissingPackageError: the package for the format is not installed.
        SampleError: the sample table cannot be read any more.
        OSError: the file cannot be written.
    """
    check_file(path)
    with replaced(path, durable=False) as file:
        SUFFIXES[path.suffix.lower()](rows, file)


def write_csv(rows: SampleRows, file: TextIO) -> None:
    """Write the rows as csv with a header; values are as in the sample table, and missing ones are empty."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in rows.columns])
    for block in rows.blocks():
        writer.writerows(zip(*map(_cells, block.values.values()), strict=True))


def _cells(values: list[Any]) -> list[Any]:
    """Return values as `csv` writes them; it writes None, integers and floats by itself."""
    is_plain = {type(value) for value in values} <= {str, int, float, type(None)}
    return values if is_plain else list(map(as_text, values))


def _write_csv(rows: SampleRows, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    write_csv(rows, text)
    text.detach()


def _write_json(rows: SampleRows, file: BinaryIO) -> None:
    """Write one JSON array with a line for each row; missing values, NaN and infinity are null."""
    separator = b"[\n"
    for block in _typed_blocks(rows, column_types(rows, rows.columns)):
        names, encode = list(block.values), msgspec.json.Encoder().encode
        lines = [encode(dict(zip(names, row, strict=True))) for row in block.rows()]  # NaN becomes null
        if lines:
            file.write(separator + b",\n".join(lines))
            separator = b",\n"
    file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def _typed_blocks(rows: SampleRows, types: dict[str, ColumnType], size: int = 20_000) -> Iterator[Block]:
    for block in rows.blocks(size=size):
        yield Block(block.count, {name: typed(values, types[name]) for name, values in block.values.items()})


def _write_npy(rows: SampleRows, file: BinaryIO) -> None:
    """Write a structured array with a field for each column."""
    dtype = dtype_of(column_types(rows, rows.columns, widths=True))
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(rows),)}
    np.lib.format.write_array_header_2_0(file, header)
    for block in rows.blocks():
        file.write(filled(dtype, block.count, block.values).tobytes())


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as cause:
        raise MissingPackageError(
            "A .parquet file needs the package pyarrow; install it with "
            "`pip install 'maestro-celery-plugin[table]'`, or write .csv, .json or .npy."
        ) from cause
    return pyarrow


def _write_parquet(rows: SampleRows, file: BinaryIO) -> None:
    """Write a Parquet file; missing values are null."""
    arrow = _pyarrow()
    types = column_types(rows, rows.columns)
    names = {"integer": arrow.int64(), "number": arrow.float64(), "boolean": arrow.bool_()}
    schema = arrow.schema([(name, names.get(one.name, arrow.string())) for name, one in types.items()])
    with arrow.parquet.ParquetWriter(file, schema) as writer:
        for block in _typed_blocks(rows, types, _GROUP):
            cells = {
                name: list(map(_text_or_none, values)) if types[name].is_text else values
                for name, values in block.values.items()
            }
            columns = [arrow.array(values, schema.field(name).type) for name, values in cells.items()]
            writer.write_table(arrow.table(columns, schema=schema))


def _text_or_none(value: Any) -> str | None:
    return None if value is None else as_text(value)


SUFFIXES: dict[str, Callable[[SampleRows, BinaryIO], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": _write_parquet,
    ".npy": _write_npy,
}
