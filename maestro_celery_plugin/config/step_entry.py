"""The entry of a step: the key of its `run` dictionary under which the step settings pass through Maestro.

A step without an entry is a native step, which Maestro runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.settings import StepSettings

__all__ = ["SHELL_KEY", "STEP_KEY", "is_native", "step_settings"]

STEP_KEY = "celery"
# The only step key of the plugin that Maestro's adapters accept, as a keyword argument (scriptadapter.py:62).
SHELL_KEY = "shell"


def is_native(run: Mapping[str, Any]) -> bool:
    """Tell from the `run` dictionary of a step whether Maestro runs the step itself."""
    return STEP_KEY not in run


def step_settings(run: Mapping[str, Any]) -> StepSettings:
    """Return the settings of a step from Maestro's `run` dictionary."""
    return conversion.from_dict(StepSettings, run[STEP_KEY]["settings"])
