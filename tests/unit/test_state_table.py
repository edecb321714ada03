"""The table of states: it agrees with an array that has the whole state of each sample."""

from __future__ import annotations

import numpy as np
import pytest

from maestro_celery_plugin.ledger import state_table
from maestro_celery_plugin.ledger.attempt_rules import STATE
from maestro_celery_plugin.ledger.state_table import StateTable


class Model:
    """A table, and an array with the state of each sample, which is changed in the same way."""

    def __init__(self, count: int) -> None:
        self.table, self.states = StateTable(count), np.zeros(count, STATE)

    def replace(self, samples, states):
        self.table.replace(samples, states)
        self.states[samples] = states

    def check(self):
        np.testing.assert_array_equal(self.table.of(slice(None)), self.states)
        np.testing.assert_array_equal(self.table.population, np.bincount(self.table.numbers, minlength=len(self.table.rows)))


def random_states(random, count, different):
    states = np.zeros(count, STATE)
    states["last"] = random.integers(0, different, count) << 33
    states["requests"] = random.integers(0, 2, count)
    return states


def invalidate(states):
    states["invalid"] = 8


@pytest.mark.parametrize(("different", "bits"), [(20, 8), (400, 16), (100_000, 32)])
@pytest.mark.parametrize("few", [0, state_table._FEW, 10**9])
def test_each_sample_has_the_state_that_it_was_given(monkeypatch, different, bits, few):
    """Whether states are found one by one or by sorting, and whatever the number of bits."""
    monkeypatch.setattr(state_table, "_FEW", few)
    random, model = np.random.default_rng(different), Model(3000 if bits < 32 else 90_000)
    for count in (1, 40, 2000 if bits < 32 else 80_000, 300):
        samples = random.choice(len(model.states), count, replace=False)
        model.replace(samples, random_states(random, count, different))
        model.check()
    assert model.table.numbers.dtype.itemsize * 8 == bits


def test_states_without_samples_give_their_rows_to_others():
    """Given that each sample has many states one after the other, then the numbers of samples keep 8 bits."""
    random, model = np.random.default_rng(1), Model(100)
    for _ in range(500):
        model.replace(random.choice(100, 20, replace=False), random_states(random, 20, 10**6))
        model.check()
    assert model.table.numbers.dtype == np.uint8


def test_a_state_that_comes_back_is_the_same():
    """Given that the row of a state was used for another one, when the state comes again, then it has a row again."""
    model = Model(2)
    for round_ in range(3):
        for number in range(400):
            states = np.zeros(1, STATE)
            states["last"] = number
            model.replace(np.array([round_ % 2]), states)
            model.check()


def test_two_states_with_the_same_sum_are_distinguished(monkeypatch):
    monkeypatch.setattr(state_table, "_FACTORS", np.zeros(7, np.uint64))
    random, model = np.random.default_rng(2), Model(1000)
    model.replace(np.arange(900), random_states(random, 900, 30))
    model.check()


def test_a_range_of_samples_changes_state_by_state(monkeypatch):
    monkeypatch.setattr(state_table, "_BLOCK", 7)
    random, model = np.random.default_rng(3), Model(100)
    model.replace(np.arange(60), random_states(random, 60, 5))

    model.table.change_in(10, 95, invalidate)

    model.states["invalid"][10:95] = 8
    model.check()


def test_samples_of_a_list_change_state_by_state():
    """Given samples in any order, and some of them several times, then each of them changes and is counted once."""
    random, model = np.random.default_rng(5), Model(100)
    model.replace(np.arange(60), random_states(random, 60, 5))
    samples = random.integers(0, 100, 150)

    model.table.change(samples, invalidate)

    model.states["invalid"][samples] = 8
    model.check()


def test_a_stored_table_with_a_number_without_a_state_is_refused():
    table = StateTable(5)
    with pytest.raises(ValueError, match="not the states"):
        table.restore({"numbers": np.array([0, 1], np.uint8), "rows": np.zeros(1, STATE)})
    assert table.population.tolist() == [5]


def test_added_samples_have_never_started():
    model = Model(3)
    model.replace(np.array([1]), random_states(np.random.default_rng(4), 1, 9))
    model.table.grow(10)
    model.states = np.concatenate([model.states, np.zeros(7, STATE)])
    model.check()
