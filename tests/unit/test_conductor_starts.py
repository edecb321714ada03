"""How many conductors of a study have begun."""

from __future__ import annotations

import errno

import pytest
from ensembles import a_study

from maestro_celery_plugin.study import conductor_starts
from maestro_celery_plugin.study.conductor_starts import count_start


@pytest.fixture
def plan(tmp_path):
    return a_study(tmp_path / "study")[0]


def fails(*arguments, **keywords):
    raise OSError(errno.EIO, "Input/output error")


def test_each_conductor_has_the_next_number(plan):
    assert [count_start(plan) for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("operation", ["read_text", "write_atomically"])
def test_after_an_error_a_conductor_has_another_number_than_its_neighbours_and_the_count_goes_on(plan, monkeypatch, operation):
    """Given an error while a conductor counts, then it skips other epochs than the conductors before and after it."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "00000032")
    assert [count_start(plan) for _ in range(3)] == [0, 1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(conductor_starts, operation, fails)
        assert count_start(plan) == 51
    assert count_start(plan) == 3


@pytest.mark.parametrize("text", ["", "x", "-1", "[]"])
def test_after_a_damage_a_conductor_is_not_like_a_first_one(plan, monkeypatch, text):
    monkeypatch.setattr("secrets.token_hex", lambda count: f"{99:08x}")
    plan.conductor_starts.write_text(text)
    assert [count_start(plan) for _ in range(2)] == [1, 2]
