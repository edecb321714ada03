"""The JSON schemas of blocks that have keys of the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.settings import BatchSettings, StepSettings
from maestro_celery_plugin.plugins import batch_systems

__all__ = ["batch_schema", "run_schema"]


def batch_schema() -> Mapping[str, Any]:
    """Return the schema of `batch`, with the types of the batch systems that are installed."""
    schema = conversion.json_schema(BatchSettings)
    properties = schema["properties"]
    kinds = {**properties["type"], "enum": [LOCAL, *batch_systems()]}
    return {**schema, "properties": {**properties, "type": kinds}}


def run_schema(maestro: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of `run`: the keys of Maestro, from its schema of a step, and those of the plugin."""
    run = maestro["properties"]["run"]
    return {**run, "properties": {**run["properties"], **conversion.json_schema(StepSettings)["properties"]}}
