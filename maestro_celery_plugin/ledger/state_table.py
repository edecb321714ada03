"""The table of the different states of samples, and a small number for each sample that names its state.

A study of a hundred million samples has only some dozen different states: most samples wait, or have finished under the
same epoch. So a sample needs one byte, and a question about all samples is a question about the rows of this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.attempt_rules import STATE
from maestro_celery_plugin.ledger.sample_set import SampleSet

__all__ = ["StateTable"]

Array = np.ndarray[Any, Any]
# Changes states in place; what becomes of a state depends on nothing else.
Change = Callable[[Array], None]

_SIZE, _WORDS = STATE.itemsize, STATE.itemsize // 8
# Up to this number of states, a look at each of them is faster than a sort.
_FEW = 256
# Odd factors: the sum of the products of the words of a state and these is a number by which states are sorted.
_FACTORS = np.array([int(digit, 16) | 1 for digit in (
    "9e3779b97f4a7c15", "bf58476d1ce4e5b9", "94d049bb133111eb", "d6e8feb86659fd93", "a0761d6478bd642f",
    "e7037ed1a0b428db", "8ebc6af09c88c6e3",
)], np.uint64)  # fmt: skip
# Samples that are looked at together in a range, so that few bytes are needed besides.
_BLOCK = 1 << 20


class StateTable:
    """The state of each sample: a number, which is a row of a table of different states.

    Args:
        count: Number of samples; they have the state of a sample that has never started, which is row 0.

    Attributes:
        numbers: The row of each sample, in 8 bits; in 16 or 32 bits when there are more different states.
        version: Grows with each new state, so that others can keep what they compute from the states.
    """

    def __init__(self, count: int) -> None:
        self.numbers: Array = np.zeros(count, np.uint8)
        # The first `_height` rows are in use.
        self._rows, self._populations, self._height = np.zeros(4, STATE), np.zeros(4, np.int64), 1
        self._populations[0] = count
        self._known: dict[bytes, int] = {self._rows[:1].tobytes(): 0}
        self._free: list[int] = []
        self.version = 0

    @property
    def _last_number(self) -> int:
        """The largest number that has room in the bits of the numbers."""
        return (1 << 8 * self.numbers.itemsize) - 1

    @property
    def rows(self) -> Array:
        """The different states, as `STATE`."""
        return self._rows[: self._height]

    @property
    def population(self) -> Array:
        """How many samples have each state; a state without a sample may become another one."""
        return self._populations[: self._height]

    @property
    def memory(self) -> int:
        """The bytes of memory of the numbers and the states."""
        return self.numbers.nbytes + self._rows.nbytes + self._populations.nbytes

    def stored(self) -> dict[str, Array]:
        """Return the table as arrays, which `restore` takes."""
        return {"numbers": self.numbers, "rows": self.rows}

    def restore(self, stored: Mapping[str, Array]) -> None:
        """Take over a table; it may have fewer samples.

        Raises:
            ValueError: the arrays do not make a table.
        """
        numbers, rows = stored["numbers"], stored["rows"]
        is_table = len(numbers) <= len(self.numbers) and rows[:1].tobytes() == bytes(_SIZE)
        if not is_table or int(numbers.max(initial=0)) >= len(rows):
            raise ValueError("these are not the states of samples")
        more = len(self.numbers) - len(numbers)
        self.numbers = np.concatenate([numbers, np.zeros(more, numbers.dtype)])
        counts = self._counted_in(0, len(self.numbers), len(rows))
        self._rows, self._populations, self._height = rows.copy(), counts, len(rows)
        self._known = {rows[number : number + 1].tobytes(): number for number in range(len(rows))}
        self._free = []
        self.version += 1

    def of(self, samples: Any) -> Array:
        """Return copies of the states of samples."""
        states: Array = self.words_of(samples).view(STATE).reshape(-1)
        return states

    def words_of(self, samples: Any) -> Array:
        """Return copies of the states of samples as words of 64 bits, one line for each of them.

        NumPy copies words a hundred times as fast as records.
        """
        words: Array = _words(self._rows).take(self.numbers[samples], axis=0)
        return words

    def replace(self, samples: Array, states: Array) -> None:
        """Change the states of different samples."""
        self._free_unused()
        before = self.numbers[samples]
        after = self._numbers_of(states)
        np.subtract.at(self._populations, before, 1)
        np.add.at(self._populations, after, 1)
        self.numbers[samples] = after

    def change(self, samples: Array, change: Change) -> None:
        """Change the states of samples, which may come in any order and several times."""
        samples = np.sort(samples.astype(np.uint32) if len(self.numbers) <= 1 << 32 else samples)
        samples = samples[np.append(True, samples[1:] != samples[:-1])]
        before = self.numbers[samples]
        counts = np.bincount(before)
        numbers = np.flatnonzero(counts)
        new = self._changed(numbers, change)
        self._populations[numbers] -= counts[numbers]
        np.add.at(self._populations, new[numbers], counts[numbers])
        self.numbers[samples] = new[before]

    def _count(self, numbers: Array, sign: int) -> None:
        self._populations += sign * np.bincount(numbers, minlength=len(self._populations))

    def grow(self, count: int) -> None:
        """Add samples that have never started, up to a number of samples."""
        more = count - len(self.numbers)
        self.numbers = np.concatenate([self.numbers, np.zeros(more, self.numbers.dtype)])
        self._populations[0] += more

    # --- ranges of samples ---

    def find(self, of_states: Array, within: SampleSet | None = None) -> SampleSet:
        """Return the samples whose state is in a mask of the states.

        Args:
            of_states: The mask.
            within: Only these samples, if few; None for all.
        """
        if within is not None:
            if within.count > _BLOCK:
                return within & self.find(of_states)
            samples = within.samples()
            return SampleSet.of_samples(samples[of_states[self.numbers[samples]]])
        count = len(self.numbers)
        found = int(self.population[of_states].sum())
        if found in (0, count):
            return SampleSet.of_range(0, found)
        parts = []
        for begin, block in zip(range(0, count, _BLOCK), self.blocks(0, count), strict=True):
            parts.append(SampleSet.of_mask(of_states[block], begin))
        return SampleSet.joined(parts)

    def blocks(self, start: int, stop: int) -> Iterator[Array]:
        """Yield the numbers of the samples [start, stop) in parts."""
        for begin in range(start, stop, _BLOCK):
            yield self.numbers[begin : min(stop, begin + _BLOCK)]

    def _counted_in(self, start: int, stop: int, height: int) -> Array:
        """Return how many of the samples [start, stop) have each of `height` states."""
        counts = np.zeros(height, np.int64)
        for block in self.blocks(start, stop):  # NumPy needs eight bytes for each number that it counts
            counts += np.bincount(block, minlength=height)
        return counts

    def change_in(self, start: int, stop: int, change: Change) -> None:
        """Change the states of the samples [start, stop)."""
        numbers = np.flatnonzero(self._counted_in(start, stop, self._height))
        new = self._changed(numbers, change)
        for block in self.blocks(start, stop):
            self._count(block, -1)
            block[:] = new[block]
            self._count(block, 1)

    # --- different states ---

    def _changed(self, numbers: Array, change: Change) -> Array:
        """Return the row that each state becomes, if those in the rows `numbers` change."""
        self._free_unused()
        states = self._rows[numbers]
        change(states)
        after = self._numbers_of(states)
        new = np.arange(self._height).astype(self.numbers.dtype)
        new[numbers] = after
        return new

    def _numbers_of(self, states: Array) -> Array:
        """Return the rows of states; a state that the table does not have becomes a row."""
        if len(states) <= _FEW:
            data = states.tobytes()
            numbers = [self._number(data[at : at + _SIZE]) for at in range(0, len(data), _SIZE)]
            return np.array(numbers, np.intp)
        words = _words(states)
        _, first, inverse = np.unique(words @ _FACTORS, return_index=True, return_inverse=True)
        if not np.array_equal(words[first].take(inverse, axis=0), words):  # two different states have the same sum
            _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
        different = np.array([self._number(states[at].tobytes()) for at in first.tolist()], np.intp)
        return different[inverse.reshape(-1)]

    def _number(self, state: bytes) -> int:
        number = self._known.get(state)
        return self._add(state) if number is None else number

    def _add(self, state: bytes) -> int:
        """Store a state in a free row, or in a new one."""
        if self._free:
            number = self._free.pop()
        else:
            number, self._height = self._height, self._height + 1
            if number == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros(number, STATE)])
                self._populations = np.concatenate([self._populations, np.zeros(number, np.int64)])
            if number > self._last_number:
                self.numbers = self.numbers.astype(np.uint16 if number < 1 << 16 else np.uint32)
        self._rows[number] = np.frombuffer(state, STATE)[0]
        self._known[state] = number
        self.version += 1
        return number

    def _free_unused(self) -> None:
        """Before the numbers need more bits, free the rows of states that no sample has any more."""
        if 4 * self._height < 3 * self._last_number:
            return
        self._free = (1 + np.flatnonzero(self.population[1:] == 0)).tolist()
        for number in self._free:
            state = self._rows[number].tobytes()
            if self._known.get(state) == number:
                del self._known[state]


def _words(states: Array) -> Array:
    """Return states as words of 64 bits, one line for each state."""
    return states.view(np.uint64).reshape(len(states), _WORDS)
