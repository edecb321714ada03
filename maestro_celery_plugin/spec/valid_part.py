"""The part of a specification that has no faults, so that one fault does not hide those of other blocks.

The checks of references between blocks need values of the right types. They get the specification without the values
that have the wrong one; the keys that the plugin needs get a neutral value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.schema_errors import without_errors
from maestro_celery_plugin.config.settings import MerlinSettings
from maestro_celery_plugin.spec.schemas import batch_schema, run_schema

__all__ = ["NEUTRAL", "valid_part"]

# The blocks that a specification needs, without a meaning.
NEUTRAL: Mapping[str, Any] = {"description": {"name": "-", "description": "-"}, "study": []}


def valid_part(data: Mapping[str, Any], maestro: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification that its schemas accept, with all steps that have a name.

    Args:
        data: The specification; its blocks have the right types.
        maestro: The JSON schemas of Maestro's blocks.
    """
    merlin = without_errors(data.get("merlin") or {}, conversion.json_schema(MerlinSettings)) or {}
    for group in ((merlin.get("resources") or {}).get("workers") or {}).values():
        if "batch" in group:
            group["batch"] = without_errors(group["batch"], batch_schema())
    return {
        **data,
        "description": {
            **NEUTRAL["description"],
            **(without_errors(data["description"], _optional(maestro["DESCRIPTION"])) or {}),
        },
        "env": without_errors(data.get("env") or {}, maestro["ENV"]) or {},
        "batch": without_errors(data.get("batch") or {}, batch_schema()) or {},
        "global.parameters": _parameters(data.get("global.parameters") or {}, maestro["PARAM"]),
        "study": list(_steps(data["study"], maestro["STUDY_STEP"])),
        "merlin": merlin,
    }


def _optional(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "required": []}


def _parameters(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the valid parameters, each with the same number of values."""
    valid = {name: without_errors(parameter, schema) for name, parameter in parameters.items()}
    found = {name: parameter for name, parameter in valid.items() if parameter}
    count = min((len(parameter["values"]) for parameter in found.values()), default=0)
    return {name: {**parameter, "values": parameter["values"][:count]} for name, parameter in found.items()}


def _steps(study: list[Any], schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for step in study:
        name = step.get("name") if isinstance(step, Mapping) else None
        if isinstance(name, str) and name:
            run = without_errors(step.get("run"), _optional(run_schema(schema))) or {}
            if "batch" in run:
                run["batch"] = without_errors(run["batch"], batch_schema())
            yield {"name": name, "description": "-", "run": {"cmd": ":", **run}}
