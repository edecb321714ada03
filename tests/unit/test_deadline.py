"""The deadline: which samples may start before an allocation ends."""

from __future__ import annotations

import math

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.batch.deadline import START_VARIABLE, Deadline
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.plugins import batch_system

pytestmark = pytest.mark.usefixtures("still_clock")


def ending_in(seconds, **margins):
    return Deadline(clock.now() + seconds, **{"warn_s": 20.0, **margins})


def test_without_an_allocation_every_sample_fits():
    deadline = Deadline()

    assert deadline.fits(10**9, 10**9)
    assert not deadline.is_draining
    assert not deadline.must_warn
    assert not deadline.must_kill


@pytest.mark.parametrize(
    ("remaining_s", "margins", "time_request_s", "longest_s", "fits"),
    [
        (40, {}, None, 0, True),
        (29, {}, None, 0, False),  # a sample counts as at least 30 s long
        (40, {}, None, 19, True),
        (40, {}, None, 21, False),  # a sample as long as an earlier sample would end after the warning
        (40, {"drain_s": 10.0}, None, 50, True),  # the setting of the user has priority
        (19, {"drain_s": 10.0}, None, 0, False),  # the warning would come at the start
        (9, {"drain_s": 10.0, "warn_s": 1.0}, None, 0, False),
        (66, {}, 45, 0, True),
        (64, {}, 45, 0, False),
        (26, {}, 5, 0, True),
        (24, {}, 5, 0, False),
        (51, {}, 30, 50, True),  # the request of the step has priority over earlier samples
    ],
)
def test_a_sample_fits_only_with_enough_remaining_time(remaining_s, margins, time_request_s, longest_s, fits):
    assert ending_in(remaining_s, **margins).fits(time_request_s, longest_s) is fits


def test_an_allocation_drains_then_warns_then_kills():
    stages = [ending_in(remaining_s, drain_s=30.0) for remaining_s in (40, 25, 15, 3)]

    assert [d.is_draining for d in stages] == [False, True, True, True]
    assert [d.must_warn for d in stages] == [False, False, True, True]
    assert [d.must_kill for d in stages] == [False, False, False, True]


def test_no_sample_starts_within_the_exit_margin():
    """Given a `drain` and a `warn` below the exit margin of a worker, then the exit margin counts."""
    deadline = ending_in(4, drain_s=2.0, warn_s=1.0)

    assert deadline.must_kill
    assert deadline.is_draining
    assert not deadline.fits(None, 0.0)


def deadline_of(environ, type="slurm", walltime=None):
    group = GroupConfig(group="w", queues=("merlin",), batch=BatchSettings(type=type, walltime=walltime))
    return Deadline.of(batch_system(type), group, environ)


def test_slurm_reads_the_end_from_the_environment():
    assert deadline_of({"SLURM_JOB_END_TIME": "2000000000"}).ends_at == 2_000_000_000


def test_the_end_is_the_start_of_the_batch_script_plus_the_walltime():
    assert deadline_of({START_VARIABLE: "1000"}, walltime=600).ends_at == 1600


def test_a_worker_outside_an_allocation_has_no_end():
    assert math.isinf(deadline_of({}, walltime=600).ends_at)


def test_in_an_allocation_with_an_unknown_start_the_walltime_counts_from_now(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert deadline_of({"SLURM_JOB_ID": "7"}, walltime="10:00").remaining_s == pytest.approx(600)


def test_a_local_worker_has_no_end():
    assert math.isinf(deadline_of({}, type="local", walltime=600).ends_at)


def test_an_allocation_without_a_walltime_has_no_known_end():
    assert math.isinf(deadline_of({START_VARIABLE: "1000"}).ends_at)
