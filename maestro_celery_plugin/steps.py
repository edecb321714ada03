"""Settings of a step, and how they travel past Maestro: under one key of its `run` dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin import schema
from maestro_celery_plugin.settings import StepSettings

__all__ = ["STEP_KEY", "step_settings"]

STEP_KEY = "celery"


def step_settings(run: Mapping[str, Any]) -> StepSettings:
    """Return the settings of a step from Maestro's `run` dictionary."""
    return schema.build(StepSettings, run[STEP_KEY]["settings"])
