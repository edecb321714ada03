"""Settings of a step, and how they travel past Maestro: under one key of its `run` dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.config import schema
from maestro_celery_plugin.config.settings import StepSettings

__all__ = ["SHELL_KEY", "STEP_KEY", "is_plain", "step_settings"]

STEP_KEY = "celery"
# The one step key of ours that Maestro's adapters can be told, as a keyword (scriptadapter.py:62).
SHELL_KEY = "shell"


def is_plain(run: Mapping[str, Any]) -> bool:
    """Tell whether a step is one that Maestro runs itself, from its `run` dictionary."""
    return STEP_KEY not in run


def step_settings(run: Mapping[str, Any]) -> StepSettings:
    """Return the settings of a step from Maestro's `run` dictionary."""
    return schema.build(StepSettings, run[STEP_KEY]["settings"])
