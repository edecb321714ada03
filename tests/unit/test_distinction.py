"""What distinguishes failed samples from others, and that chance does not."""

from __future__ import annotations

import numpy as np
import pytest

from maestro_celery_plugin.report.distinction import distinctions, short_between, suspicion

RANDOM = np.random.default_rng(3)
X, Y = RANDOM.random(1000), RANDOM.random(1000)
NODES = np.array([f"n{number}" for number in RANDOM.integers(0, 8, 1000)], object)
COLUMNS = {"X": X, "Y": Y, "node": NODES}


def words(is_sample, columns=COLUMNS) -> list[str]:
    return [rule.words for rule in distinctions(columns, is_sample)]


def test_a_limit_is_found_with_the_numbers_of_both_sides():
    is_sample = X > 0.91
    (rule,) = distinctions(COLUMNS, is_sample)
    column, sign, limit = rule.words.split()
    assert (column, sign) == ("X", ">") and float(limit) == pytest.approx(0.91, abs=0.005) and len(limit) <= 6
    assert (rule.hits, rule.samples) == (is_sample.sum(), is_sample.sum())
    assert (rule.false_hits, rule.others) == (0, 1000 - is_sample.sum())


def test_a_lower_limit_and_a_range_are_found():
    assert [text.split()[:2] for text in words(X < 0.05)] == [["X", "<"]]
    (rule,) = distinctions(COLUMNS, (X > 0.4) & (X < 0.5))
    low, _, column, _, high = rule.words.split()
    assert column == "X" and (float(low), float(high)) == pytest.approx((0.4, 0.5), abs=0.005)


def test_a_limit_with_exceptions_counts_them():
    is_sample = (X > 0.9) & (RANDOM.random(1000) < 0.8) | (RANDOM.random(1000) < 0.01)
    (rule,) = distinctions(COLUMNS, is_sample)
    assert rule.column == "X" and 0.7 < rule.hits / rule.samples < 1 and 0 < rule.false_hits < 60


def test_a_node_is_found():
    (rule,) = distinctions(COLUMNS, NODES == "n3")
    assert rule.words == "node = n3" and rule.false_hits == 0


def test_two_columns_that_decide_together_are_found():
    found = distinctions(COLUMNS, (X > 0.8) & (Y < 0.3))
    assert found[0].column in ("X, Y", "Y, X") and " and " in found[0].words
    assert found[0].hits == found[0].samples and found[0].false_hits == 0
    assert found[1].false_hits > 50


def test_chance_distinguishes_nothing():
    for seed in range(60):
        random = np.random.default_rng(seed)
        is_sample = random.random(1000) < random.choice([0.002, 0.01, 0.1, 0.5])
        columns = {"X": random.random(1000), "Y": random.normal(size=1000), "n": random.integers(0, 9, 1000).astype(str)}
        assert words(is_sample, columns) == [], seed


def test_few_samples_are_no_evidence():
    assert words(np.arange(1000) == 7) == []
    assert words(np.isin(np.arange(1000), np.argsort(X)[-2:])) == []


def test_nothing_to_compare_with_distinguishes_nothing():
    assert words(np.ones(1000, bool)) == [] and words(np.zeros(1000, bool)) == []
    assert words(X > 0.5, {}) == []
    assert words(X > 0.5, {"c": np.full(1000, 1.0), "t": np.full(1000, "a", object)}) == []


def test_missing_values_are_in_no_range():
    values = np.where(RANDOM.random(1000) < 0.3, np.nan, X)
    (rule,) = distinctions({"X": values}, X > 0.8)
    assert rule.false_hits == 0 and rule.hits == np.sum(values > 0.8)
    assert words(X > 0.5, {"X": np.full(1000, np.nan)}) == []


def test_one_value_of_a_parameter_is_named():
    speeds = RANDOM.integers(1, 4, 1000).astype(float)
    assert words(speeds == 2, {"SPEED": speeds}) == ["SPEED = 2"]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0.9, 0.92, "0.91"), (0.123, 0.9, "0.5"), (1e-9, 3e-9, "2e-09"), (-2, 5, "2"), (1, 2, "1.5"), (0.1, np.nextafter(0.1, 1), "0.1")],
)
def test_a_limit_has_few_digits(low, high, text):
    assert short_between(low, high) == text


def test_what_distinguishes_too_few_samples_is_a_suspicion():
    """Given numbers that separate few samples perfectly, then the rule is named, as one that may be chance."""
    values = {"S": np.array([1.0, 2.0, 3.0] * 4), "X": np.arange(12.0)}
    failed = values["S"] == 3
    assert not distinctions(values, failed)
    assert suspicion(values, failed).words == "S = 3"
    assert suspicion(values, values["S"] < 0) is None
    assert suspicion(values, values["X"] == 5) is None  # one sample alone has a value of its own
    assert suspicion({"X": values["X"]}, failed) is None
