"""The JSON schema of a whole specification, for editors: the blocks of Maestro and those of the plugin, with help.

It is draft 7, which editors support best. In contrast to the schemas of the checks, which follow the insertion of
variables, it accepts a token wherever a number, a list or one of some words is needed; and a key without a value, which
counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.key_help import block_heading, key_help
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    GenerateSettings,
    MerlinSettings,
    ResourceSettings,
    SampleSettings,
    StepSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.maestro.key_help import BLOCK_HELP, KEY_HELP
from maestro_celery_plugin.maestro.schemas import maestro_schemas
from maestro_celery_plugin.spec.schemas import batch_schema, run_schema

__all__ = ["specification_schema"]

_SETTINGS = (
    *(MerlinSettings, ResourceSettings, WorkerGroupSettings, SampleSettings, GenerateSettings),
    *(BatchSettings, StepSettings),
)
_ONE_TOKEN = {"type": "string", "pattern": r"^\$\([^\s()]+\)$"}
_WITH_TOKEN = {"type": "string", "pattern": r"\$\([^\s()]+\)"}
# Types whose values may be those of a variable.
_TYPED = ("integer", "number", "boolean", "array")


def specification_schema() -> dict[str, Any]:
    """Return the schema, as plain types for JSON."""
    maestro = maestro_schemas()
    step = maestro["STUDY_STEP"]
    batch = _with_help(batch_schema(), key_help(BatchSettings))
    step = {**step, "properties": {**step["properties"], "run": _run(step, batch)}}
    blocks = {
        "description": _with_help(maestro["DESCRIPTION"], KEY_HELP["description"]),
        "batch": batch,
        "env": _environment(maestro["ENV"]),
        "study": {"type": "array", "minItems": 1, "items": _with_help(step, KEY_HELP["study"])},
        "global.parameters": {
            "type": "object",
            "additionalProperties": _with_help(maestro["PARAM"], KEY_HELP["global.parameters"]),
        },
        "merlin": _merlin(batch),
        "user": {},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Specification of a study",
        **_for_editors(
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["description", "study"],
                "properties": {name: {**block, "description": BLOCK_HELP[name]} for name, block in blocks.items()},
            }
        ),
    }


def _with_help(schema: Mapping[str, Any], help_of: Mapping[str, str]) -> dict[str, Any]:
    """Return the schema of a block with the help of its keys, as far as it is known."""
    properties = {
        key: {**value, "description": help_of[key]} if key in help_of else value
        for key, value in schema["properties"].items()
    }
    return {**schema, "properties": properties}


def _run(step: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of `run` with help."""
    run = _with_batch(_with_help(run_schema(step), KEY_HELP["study.run"] | key_help(StepSettings)), batch)
    exclusive = run["properties"]["exclusive"]
    run["properties"]["exclusive"] = {
        **exclusive,
        "anyOf": [
            _with_help(one, KEY_HELP["study.run.exclusive"]) if "properties" in one else one
            for one in exclusive["anyOf"]
        ],
    }
    return run


def _with_batch(schema: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a step or a worker group, with the keys of `batch` in its own block of this name."""
    own = {**batch, "description": schema["properties"]["batch"]["description"]}
    return {**schema, "properties": {**schema["properties"], "batch": own}}


def _environment(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of `env` with help."""
    result = _with_help(schema, KEY_HELP["env"])
    dependencies = _with_help(result["properties"]["dependencies"], KEY_HELP["env.dependencies"])
    for kind, block in dependencies["properties"].items():
        items = _with_help(block["items"], KEY_HELP[f"env.dependencies.{kind}"])
        dependencies["properties"][kind] = {**block, "items": items}
    return {**result, "properties": {**result["properties"], "dependencies": dependencies}}


def _merlin(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of `merlin`; the settings classes refer to each other in its definitions."""
    schema = conversion.json_schema(MerlinSettings)
    helped = {}
    for cls in _SETTINGS:
        if cls.__name__ in schema["$defs"]:
            block = _with_help(schema["$defs"][cls.__name__], key_help(cls))
            purpose = block_heading(cls)[1]
            helped[cls.__name__] = {**block, "description": f"{purpose[0].upper()}{purpose[1:]}"}
    group = WorkerGroupSettings.__name__
    helped[group] = {**_with_batch(helped[group], batch), "type": ["object", "null"]}  # a group may have no keys
    merlin: dict[str, Any] = _without_references(helped[MerlinSettings.__name__], helped)
    return merlin


def _without_references(value: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema with definitions in place of references: draft 7 ignores the help beside a reference."""
    if isinstance(value, list):
        return [_without_references(item, definitions) for item in value]
    if not isinstance(value, Mapping):
        return value
    others = {key: _without_references(item, definitions) for key, item in value.items() if key != "$ref"}
    if "$ref" not in value:
        return others
    definition = _without_references(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {**definition, **others}


def _for_editors(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that accepts tokens, and keys without a value unless they are required."""
    result = {key: value for key, value in schema.items() if key != "title"}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            result[key] = _for_editors(schema[key])
    if "patternProperties" in schema:
        result["patternProperties"] = {name: _for_editors(one) for name, one in schema["patternProperties"].items()}
    if "properties" in schema:
        required, properties = schema.get("required", ()), schema["properties"].items()
        inner = {name: _for_editors(one) for name, one in properties}
        result["properties"] = {name: one if name in required else _nullable(one) for name, one in inner.items()}
    if "anyOf" in schema:
        return _or({**result, "anyOf": []}, *map(_for_editors, schema["anyOf"]))
    if schema.get("type") in _TYPED and "properties" not in schema.get("items", {}):
        return _or(result, _ONE_TOKEN)
    return _or(result, _WITH_TOKEN) if {"enum", "const", "pattern"} & result.keys() else result


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that accepts a key without a value. A list of types has better messages than alternatives."""
    if "anyOf" in schema:
        return _or(schema, {"type": "null"})
    return {**schema, "type": [schema["type"], "null"]} if isinstance(schema.get("type"), str) else schema


def _or(schema: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with more alternatives; its help and default stay outside."""
    outer = {key: schema[key] for key in ("description", "default") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in outer}
    alternatives = [*inner.get("anyOf", [inner])]
    for other in others:
        for one in other["anyOf"] if set(other) == {"anyOf"} else [other]:
            alternatives += [one] if one not in alternatives else []
    return {**outer, "anyOf": alternatives}
