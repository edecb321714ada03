"""A sample table of several files: that of the launch, and one for each addition of samples.

No file changes after it has become part of the table, so that a process that has the table open goes on reading it.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence

from maestro_celery_plugin.samples.table import SampleTable, rows_of

__all__ = ["GrownTable"]

# The number of files that a table has open; a study may have thousands of additions.
_OPEN_FILES = 8


class GrownTable:
    """The rows of several tables, one after the other; several threads may use it.

    Args:
        counts: The number of rows of each table that are samples; a table may have more rows.
        open_part: Opens the table with a number.
        width: The number of columns.
    """

    def __init__(self, counts: Sequence[int], open_part: Callable[[int], SampleTable], width: int) -> None:
        self._starts = [0, *itertools.accumulate(counts)]
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(open_part)
        self.width = width

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, index: int) -> Sequence[str]:
        """Return a row; the file with it is opened when it is needed.

        Raises:
            SampleError: the file has changed, or does not exist any more.
            OSError: the file cannot be read now.
        """
        part = bisect_right(self._starts, index) - 1
        return self._open(part).row(index - self._starts[part])

    def rows(self, start: int, stop: int) -> list[Sequence[str]]:
        """Return the rows [start, stop), as `row` returns each of them."""
        found: list[Sequence[str]] = []
        for part, (first, end) in enumerate(itertools.pairwise(self._starts)):
            low, high = max(start, first), min(stop, end)
            if low < high:
                found += rows_of(self._open(part), low - first, high - first)
        return found
