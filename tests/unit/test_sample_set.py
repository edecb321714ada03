"""SampleSet: it agrees with the sets of Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from damages import each_example
from hypothesis import given
from hypothesis import strategies as st

from maestro_celery_plugin.ledger.sample_set import SampleSet

SETS = st.sets(st.integers(0, 30))


def test_a_large_range_needs_little():
    everything = SampleSet.of_range(0, 10**12)

    assert everything.count == 10**12
    assert (everything - SampleSet.of_samples([5, 10**9])).count == 10**12 - 2
    assert (everything - SampleSet.of_samples([5])).ranges() == [(0, 5), (6, 10**12)]
    assert (everything.first, everything.last, 10**12 in everything) == (0, 10**12 - 1, False)


@each_example(100)
@given(SETS, SETS)
def test_sets_are_combined_as_those_of_python(one, two):
    first, second = SampleSet.of_samples(sorted(one)), SampleSet.of_samples(sorted(two))

    for found, expected in ((first & second, one & two), (first | second, one | two), (first - second, one - two)):
        assert found.samples().tolist() == sorted(expected)
        assert (found.count, bool(found)) == (len(expected), bool(expected))
        assert found.ranges() == SampleSet.of_samples(sorted(expected)).ranges()  # no empty or adjacent ranges


@each_example(100)
@given(st.sets(st.integers(0, 300), min_size=20), SETS)
def test_a_large_set_is_combined_with_a_small_one_from_its_ranges_near_by(many, few):
    large, small = SampleSet.of_samples(sorted(many)), SampleSet.of_samples(sorted(few))

    assert (small - large).samples().tolist() == sorted(few - many)
    assert (small & large).samples().tolist() == (large & small).samples().tolist() == sorted(few & many)
    assert (large - small).samples().tolist() == sorted(many - few)


def test_a_small_set_needs_few_ranges_of_a_large_one(monkeypatch):
    large, sizes = SampleSet.of_samples(np.arange(0, 100_000, 2)), []
    sort = np.sort
    monkeypatch.setattr("numpy.sort", lambda edges: sizes.append(len(edges)) or sort(edges))

    assert (SampleSet.of_range(70, 75) - large).samples().tolist() == [71, 73]
    assert (SampleSet.of_range(70, 75) & large).samples().tolist() == [70, 72, 74]

    assert sizes == [8, 8]


@each_example(100)
@given(SETS, st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31))))
def test_a_set_knows_which_ranges_meet_it(samples, ranges):
    starts, stops = np.array(ranges, np.uint64).reshape(-1, 2).T

    found = SampleSet.of_samples(sorted(samples)).meeting(starts, stops)

    assert found.tolist() == [bool(samples.intersection(range(start, stop))) for start, stop in ranges]


@each_example(100)
@given(st.lists(SETS, min_size=1))
def test_joined_sets_have_the_samples_of_each(sets):
    found = SampleSet.joined([SampleSet.of_samples(sorted(samples)) for samples in sets])
    assert found.ranges() == SampleSet.of_samples(sorted(set().union(*sets))).ranges()


@each_example(100)
@given(SETS, st.integers(0, 31), st.integers(0, 31))
def test_a_set_knows_its_samples(samples, start, stop):
    found = SampleSet.of_samples(sorted(samples))

    assert [sample in found for sample in range(-1, 33)] == [sample in samples for sample in range(-1, 33)]
    assert found.meets(start, stop) == bool(samples.intersection(range(start, stop)))
    if samples:
        assert (found.first, found.last) == (min(samples), max(samples))
    mask = np.isin(np.arange(31), sorted(samples))
    assert SampleSet.of_mask(mask).ranges() == found.ranges()
    assert SampleSet.of_mask(mask, 7).samples().tolist() == [7 + sample for sample in sorted(samples)]


@each_example(100)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))
def test_ranges_may_overlap_and_be_empty(ranges):
    expected = {sample for start, stop in ranges for sample in range(start, stop)}

    found = SampleSet.of_ranges(ranges)

    assert found.samples().tolist() == sorted(expected)
    assert found.ranges() == SampleSet.of_samples(sorted(expected)).ranges()


@each_example(100)
@given(SETS, SETS)
def test_bridged_ranges_cover_the_set_and_no_others(wanted, others):
    others -= wanted
    found = SampleSet.of_samples(sorted(wanted)).bridged(SampleSet.of_samples(sorted(others)))

    covered = [sample for start, stop in found for sample in range(start, stop)]
    assert wanted <= set(covered) <= wanted | others
    assert all(start in wanted and stop - 1 in wanted for start, stop in found)
    for (_, stop), (start, _) in itertools.pairwise(found):  # as few as possible
        assert not set(range(stop, start)) <= others


@pytest.mark.parametrize("empty", [SampleSet.of_samples([]), SampleSet.of_ranges([]), SampleSet.of_range(3, 3)])
def test_an_empty_set(empty):
    assert not empty
    assert (empty | empty).ranges() == list(empty.samples()) == list(empty.bridged(SampleSet.of_range(0, 5))) == []
