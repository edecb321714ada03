"""The deadline: what may still be begun before an allocation ends."""

from __future__ import annotations

import math
import time

import pytest

from maestro_celery_plugin.batch.deadline import START_VARIABLE, Deadline
from maestro_celery_plugin.config.groups import GroupConfig


def ending_in(seconds, **rules):
    return Deadline(time.time() + seconds, **{"warn_s": 20.0, **rules})


def test_without_an_allocation_everything_fits():
    deadline = Deadline()

    assert deadline.fits(10**9, 10**9)
    assert not deadline.is_draining
    assert not deadline.must_warn
    assert not deadline.must_kill


@pytest.mark.parametrize(
    ("remaining_s", "rules", "time_request_s", "longest_s", "fits"),
    [
        (40, {}, None, 0, True),
        (29, {}, None, 0, False),  # at least 30 s are assumed of a sample
        (40, {}, None, 19, True),
        (40, {}, None, 21, False),  # as long as samples have needed so far, it would be warned first
        (40, {"drain_s": 10.0}, None, 50, True),  # the user knows better
        (19, {"drain_s": 10.0}, None, 0, False),  # it would be warned as soon as it runs
        (9, {"drain_s": 10.0, "warn_s": 1.0}, None, 0, False),
        (66, {}, 45, 0, True),
        (64, {}, 45, 0, False),
        (26, {}, 5, 0, True),
        (24, {}, 5, 0, False),
        (51, {}, 30, 50, True),  # what the step says counts, not what was seen
    ],
)
def test_a_sample_fits_or_not(remaining_s, rules, time_request_s, longest_s, fits):
    assert ending_in(remaining_s, **rules).fits(time_request_s, longest_s) is fits


def test_the_stages_of_an_end_follow_each_other():
    stages = [ending_in(remaining_s, drain_s=30.0) for remaining_s in (40, 25, 15, 3)]

    assert [d.is_draining for d in stages] == [False, True, True, True]
    assert [d.must_warn for d in stages] == [False, False, True, True]
    assert [d.must_kill for d in stages] == [False, False, False, True]


def test_no_sample_starts_when_it_would_be_killed_at_once():
    """A `drain` and a `warn` below the time that a worker keeps for leaving do not shorten that."""
    hasty = ending_in(4, drain_s=2.0, warn_s=1.0)

    assert hasty.must_kill
    assert hasty.is_draining
    assert not hasty.fits(None, 0.0)


def terms(**values):
    return GroupConfig(group="w", queues=("merlin",), **{"batch_type": "slurm", **values})


def test_slurm_tells_the_end_in_the_environment():
    assert Deadline.of(terms(), {"SLURM_JOB_END_TIME": "2000000000"}).ends_at == 2_000_000_000


def test_else_it_is_the_start_of_the_batch_script_and_the_walltime():
    assert Deadline.of(terms(walltime_s=600), {START_VARIABLE: "1000"}).ends_at == 1600


def test_a_worker_by_hand_outside_of_any_allocation_has_no_end():
    assert math.isinf(Deadline.of(terms(walltime_s=600), {}).ends_at)


def test_in_an_allocation_that_does_not_tell_its_end_it_is_the_walltime_from_now(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert Deadline.of(terms(walltime_s=600), {"SLURM_JOB_ID": "7"}).remaining_s == pytest.approx(600, abs=5)


def test_a_local_worker_has_no_end():
    assert math.isinf(Deadline.of(terms(batch_type="local", walltime_s=600), {}).ends_at)


def test_an_allocation_without_walltime_has_none_that_is_known():
    assert math.isinf(Deadline.of(terms(), {}).ends_at)
