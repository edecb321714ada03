"""The table of samples on a terminal: the columns that fit, the most useful ones first; long numbers are rounded."""

from __future__ import annotations

import contextlib
import datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from maestro_celery_plugin.report.cell_text import as_text
from maestro_celery_plugin.report.sample_columns import Column, Kind, Source
from maestro_celery_plugin.report.sample_rows import SampleRows
from maestro_celery_plugin.report.terminal import plain, shortened

__all__ = ["print_rows"]

_GAP = 2
# A cell that is wider is shortened, except if the user has chosen the columns.
_WIDEST = 24
# A number with more characters is rounded to six digits.
_LONG_NUMBER = 9
# The order in which columns get room; inputs and results come after those of the first line.
_FIRST = ("record", "id", "state", "exit_code")
_LAST = ("duration_s", "attempts", "node", "worker", "start", "step", "directory")
_STYLES = {"finished": "green", "failed": "red", "running": "cyan"}


def print_rows(rows: SampleRows, console: Console, *, limit: int, chosen: bool) -> None:
    """Print the first rows of a table, and what is not shown.

    Args:
        rows: The rows.
        console: The terminal.
        limit: The largest number of rows.
        chosen: Whether the user has chosen the columns, so that all of them are shown in this order.
    """
    columns = rows.columns if chosen else _by_use(rows.columns)
    block = next(rows.blocks(columns, size=limit), None)
    if block is None:
        console.print("No sample matches." if len(rows) == 0 else "")
        return
    shown: list[list[Text]] = []
    hidden: list[str] = []
    room = console.width
    for column in columns:
        cells = _cells(column, block.values[column.name], shorten=not chosen)
        if not chosen and not any(cell.plain for cell in cells[1:]):
            continue
        width = max(cell_len(cell.plain) for cell in cells)
        if chosen or width <= room:
            shown.append(_padded(cells, width, numbers=_are_numbers(block.values[column.name])))
            room -= width + _GAP
        else:
            hidden.append(column.name)
    for line in zip(*shown, strict=True):
        text = Text(" " * _GAP).join(line)
        text.rstrip()
        console.print(text, soft_wrap=True)
    if len(rows) > block.count:
        words = f"{len(rows) - block.count} more of {len(rows)} rows; --limit {len(rows)} shows all, --output FILE.csv"
        console.print()
        console.print(plain(f"{words} writes them.", "dim"), soft_wrap=True)
    if hidden:
        console.print(plain(f"Not shown: {', '.join(hidden)} (--columns)", "dim"), soft_wrap=True)


def _by_use(columns: list[Column]) -> list[Column]:
    """Return the columns in the order of their use for a person."""
    by_name = {column.name: column for column in columns}
    inner = [column for column in columns if column.source is not Source.FIXED]
    inner.sort(key=lambda column: column.source is not Source.RESULT)  # results matter more than inputs
    names = [*_FIRST, *(column.name for column in inner), *_LAST]
    return [by_name[name] for name in names if name in by_name]


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) or value is None for value in values)


def _cells(column: Column, values: list[Any], *, shorten: bool) -> list[Text]:
    """Return the heading and the cells of a column."""
    texts = [plain(_words(column, value)) for value in values]
    if shorten:
        texts = [Text(shortened(text.plain, _WIDEST)) for text in texts]
    if column.name == "state" and column.source is Source.FIXED:
        texts = [Text(text.plain, _STYLES.get(text.plain, "")) for text in texts]
    return [plain(column.name, "dim"), *texts]


def _words(column: Column, value: Any) -> str:
    if value is not None and column.source is Source.FIXED:
        if column.name == "start":
            return datetime.datetime.fromtimestamp(value).isoformat(" ", "seconds")
        if column.name == "duration_s":
            return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
    text = as_text(value)
    if column.kind is Kind.ANY and len(text) > _LONG_NUMBER:
        with contextlib.suppress(ValueError):
            return f"{float(text):.6g}"
    return text


def _padded(cells: list[Text], width: int, *, numbers: bool) -> list[Text]:
    for cell in cells:
        spaces = width - cell_len(cell.plain)
        if numbers:
            cell.pad_left(spaces)
        else:
            cell.pad_right(spaces)
    return cells
