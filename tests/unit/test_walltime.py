"""Walltimes: every form in which Merlin, Slurm and YAML write them."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.config.walltime import clock_text, seconds_of


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90),
        ("90", 90),
        ("2:30", 150),
        ("90:00", 5400),
        ("00:01:00", 60),
        ("1:30:00", 5400),
        ("100:00:00", 360000),
        ("1:02:00:00", 93600),
        ("1-02:00:00", 93600),
        (37800, 37800),  # YAML reads 10:30:00 as this number
    ],
)
def test_every_form_of_a_walltime_gives_its_seconds(written, seconds):
    assert seconds_of(written) == seconds


@pytest.mark.parametrize("written", ["", "soon", "1h", "-5", "1:2:3:4:5", "00:00:00", 0, "1:", ":30"])
def test_any_other_value_is_refused(written):
    with pytest.raises(ValueError, match=r"found '.*'; "):
        seconds_of(written)


@pytest.mark.parametrize(("seconds", "text"), [(60, "00:01:00"), (5400, "01:30:00"), (93600, "26:00:00")])
def test_clock_text_has_hours_minutes_and_seconds(seconds, text):
    assert clock_text(seconds) == text
    assert seconds_of(text) == seconds
