"""A property of all samples of a step record, which is looked up in the table of their states."""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.state_table import StateTable

__all__ = ["SampleColumn"]

Array = np.ndarray[Any, Any]


class SampleColumn:
    """A number for each sample, of which only those that are asked for take memory.

    ``column[samples]`` has the numbers of some samples, ``column == value`` and ``column > value`` are masks of all
    samples, and ``numpy.asarray(column)`` is an array of all numbers.

    Args:
        table: The states of the samples.
        values: The number for each state.
    """

    def __init__(self, table: StateTable, values: Array) -> None:
        self._table, self._values = table, values

    def __getitem__(self, samples: Any) -> Any:
        return self._values[self._table.numbers[samples]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        values: Array = self._values[self._table.numbers]
        return values if dtype is None else values.astype(dtype)

    def __len__(self) -> int:
        return len(self._table.numbers)

    def __eq__(self, value: object) -> Array:  # type: ignore[override]
        return self.where(self._values == value)

    def __ne__(self, value: object) -> Array:  # type: ignore[override]
        return self.where(self._values != value)

    def __gt__(self, value: int) -> Array:
        return self.where(self._values > value)

    __hash__ = None  # type: ignore[assignment]

    def where(self, of_states: Array) -> Array:
        """Return a mask of the samples; `of_states` is one of the states."""
        mask: Array = of_states[self._table.numbers]
        return mask

    def max(self) -> int:
        """Return the highest value of a sample; 0 without samples."""
        return int(self._values[self._table.population > 0].max(initial=0))

    def tolist(self) -> list[Any]:
        """Return the values of all samples."""
        values: list[Any] = np.asarray(self).tolist()
        return values
