"""The coordinator: how often it checks the broker and the workers."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.conductor.coordinator import MAINTENANCE_INTERVAL_S, MAINTENANCE_LIMIT_S, pause_s


@pytest.mark.parametrize(
    ("duration_s", "expected_s"), [(0.0, MAINTENANCE_INTERVAL_S), (0.1, 0.9), (0.6, MAINTENANCE_LIMIT_S), (5.0, MAINTENANCE_LIMIT_S)]
)
def test_the_pause_after_a_check_has_a_limit(duration_s, expected_s):
    """Given a check that took long, because it imported Celery or the process was stopped, the next one is soon."""
    assert pause_s(duration_s) == pytest.approx(expected_s)
