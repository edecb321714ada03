"""Steps and environment of a specification in a form for Maestro, which knows no keys of the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestro_celery_plugin.config.settings import StepSettings
from maestro_celery_plugin.config.step_entry import STEP_KEY
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.spec.checks import STEP_SETTING_KEYS, settings_of

__all__ = ["add_entry", "maestro_environment", "step_settings", "without_settings"]


def add_entry(step: Any, *, is_sampled: bool) -> None:
    """Move the plugin's settings of a step under one key of `run` (`config/step_entry.py`)."""
    settings = _setting_keys(step.run)
    step.run[STEP_KEY] = {"step": step.name, "sampled": is_sampled, "settings": settings}
    step.run["restart"] = step.run["restart"] or step.run["cmd"]
    for key in STEP_SETTING_KEYS:
        step.run.pop(key, None)


def step_settings(step: Mapping[str, Any]) -> StepSettings:
    """Return the plugin's settings of a step."""
    return settings_of(StepSettings, _setting_keys(step["run"]), f"study.{step['name']}.run")


def _setting_keys(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a step that the plugin reads."""
    return {key: run[key] for key in STEP_SETTING_KEYS if run.get(key) is not None}


def without_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a step that Maestro knows."""
    return {key: value for key, value in run.items() if key not in STEP_SETTING_KEYS}


def maestro_environment(env: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    """Return `env` in a form for Maestro: no lists among the variables, no `$(SPECROOT)` in `OUTPUT_PATH`.

    Merlin allows `$(SPECROOT)` there, but Maestro reads `OUTPUT_PATH` before it sets `SPECROOT` (maestro.py:380, 437).
    """
    if not env.get("variables"):
        return dict(env)
    variables = {n: str(v) if isinstance(v, list) else v for n, v in env["variables"].items()}
    if path and isinstance(variables.get("OUTPUT_PATH"), str):
        root = str(Path(path).absolute().parent)
        variables["OUTPUT_PATH"] = substitute(variables["OUTPUT_PATH"], {"SPECROOT": root})
    return {**env, "variables": variables}
