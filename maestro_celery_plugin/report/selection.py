"""The choice and the order of rows: a condition and columns to sort by, both evaluated by SQLite.

SQLite stores a text that is a number as a number, and beside it the text; it stores a large sort in a temporary file.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.errors import ExpressionError, MissingPackageError
from maestro_celery_plugin.report.cell_text import as_text
from maestro_celery_plugin.report.condition import Condition

__all__ = ["RowChooser", "SortKey"]

Numbers = np.ndarray[Any, Any]

# Texts that are numbers in Python and NumPy, but not in SQL; "not a number" is a missing value there.
_SPECIAL: dict[str, float | None] = {
    **dict.fromkeys(("nan", "NaN", "NAN", "-nan", "+nan", "N/A", "NA"), None),
    **dict.fromkeys(("inf", "Inf", "INF", "+inf", "infinity", "Infinity"), float("inf")),
    **dict.fromkeys(("-inf", "-Inf", "-INF", "-infinity", "-Infinity"), float("-inf")),
}
_BLOCK = 50_000


class SortKey:
    """A column to sort by.

    Args:
        text: The name of the column, with ``-`` before it for a descending order.
    """

    def __init__(self, text: str) -> None:
        self.is_descending = text.startswith("-")
        self.name = text.removeprefix("-")


class RowChooser:
    """Chooses rows, block by block, and sorts those that are chosen.

    Args:
        condition: The condition; None for all rows.
        keys: What to sort by; none to keep the order.

    Attributes:
        columns: The columns whose values it needs.

    Raises:
        MissingPackageError: this Python has no SQLite.
    """

    def __init__(self, condition: Condition | None, keys: Sequence[SortKey] = ()) -> None:
        try:
            import sqlite3
        except ImportError as cause:
            raise MissingPackageError(
                "--where and --sort need the module sqlite3, which this Python was built without; use another Python."
            ) from cause
        self._error: type[Exception] = sqlite3.Error
        self._condition, self._keys = condition, keys
        names = [*(condition.columns if condition else ()), *(key.name for key in keys)]
        self.columns = list(dict.fromkeys(names))
        self._database = sqlite3.connect("", isolation_level=None)  # a temporary file, if it does not fit into memory
        weakref.finalize(self, self._database.close)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA journal_mode = OFF")
        values = "".join(f", c{number} NUMERIC" for number in range(len(self.columns)))
        texts = "".join(f", t{number} TEXT" for number in range(len(self.columns)))
        self._database.execute(f"CREATE TABLE block (number INTEGER PRIMARY KEY{values}{texts})")
        self._database.execute(f"CREATE TABLE chosen (number INTEGER PRIMARY KEY{values})")
        self._run(f"SELECT number FROM block WHERE {self._where}", self._texts)  # an error is found before any work

    @property
    def _where(self) -> str:
        return f"({self._condition.sql})" if self._condition else "1"

    @property
    def _texts(self) -> tuple[str, ...]:
        return self._condition.texts if self._condition else ()

    def _run(self, sql: str, values: Sequence[Any] = ()) -> Any:
        try:
            return self._database.execute(sql, values)
        except (self._error, OverflowError) as cause:
            raise ExpressionError(
                f"The condition cannot be evaluated: {cause}. Write for example: X > 0.3 and state == 'failed'"
            ) from cause

    def choose(self, values: Sequence[Sequence[Any]], count: int, first: int = 0) -> Numbers:
        """Return the positions of the chosen rows in a block, and keep what the sort needs.

        Args:
            values: The values of each of `columns`.
            count: The number of rows in the block.
            first: The number of the first of the chosen rows, from 0 over all blocks.
        """
        texts = (map(_text, column) for column in values)
        rows = zip(range(count), *(map(_value, column) for column in values), *texts, strict=True)
        marks = ", ?" * len(self.columns)
        self._database.execute("DELETE FROM block")
        self._database.execute("BEGIN")
        self._database.executemany(f"INSERT INTO block VALUES (?{marks}{marks})", rows)
        self._database.execute("COMMIT")
        found = self._run(f"SELECT number FROM block WHERE {self._where} ORDER BY number", self._texts).fetchall()
        if self._keys:
            kept = ((first + place, *(_value(column[row]) for column in values)) for place, (row,) in enumerate(found))
            self._database.execute("BEGIN")
            self._database.executemany(f"INSERT INTO chosen VALUES (?{marks})", kept)
            self._database.execute("COMMIT")
        return np.fromiter(itertools.chain.from_iterable(found), np.intp, len(found))

    def order(self, limit: int | None) -> Iterator[Numbers]:
        """Yield the numbers of the chosen rows in their order; missing values are last, equal ones keep their order."""
        terms: list[str] = []
        for key in self._keys:
            column = f"c{self.columns.index(key.name)}"
            terms += [f"{column} IS NULL", f"{column} DESC" if key.is_descending else column]
        sql = f"SELECT number FROM chosen ORDER BY {', '.join([*terms, 'number'])} LIMIT ?"
        answer = self._run(sql, (-1 if limit is None else limit,))
        while block := answer.fetchmany(_BLOCK):
            yield np.fromiter(itertools.chain.from_iterable(block), np.intp, len(block))


def _text(value: Any) -> str | None:
    return None if value is None else as_text(value)


def _value(value: Any) -> Any:
    """Return a value as SQLite stores it."""
    if isinstance(value, str):
        return _SPECIAL.get(value, value)
    return str(value) if isinstance(value, list | dict) else value
