"""The JSON schemas that Maestro ships for its blocks (specification/schemas/yamlspecification.json)."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import maestrowf

__all__ = ["maestro_schemas", "shipped_schemas"]


@functools.lru_cache(maxsize=1)
def shipped_schemas() -> dict[str, Any]:
    """Return the schemas by the name of the block, as Maestro verifies them."""
    path = Path(maestrowf.__file__).parent / "specification" / "schemas" / "yamlspecification.json"
    schemas: dict[str, Any] = json.loads(path.read_text())
    return schemas


@functools.lru_cache(maxsize=1)
def maestro_schemas() -> dict[str, Any]:
    """Return the schemas by the name of the block, with the values that Merlin allows, and without those that fail.

    Maestro accepts some values, but ends with a traceback when it uses them (yamlspecification.py:530).
    """
    schemas = copy.deepcopy(shipped_schemas())
    # In Merlin, a variable may be a list.
    schemas["ENV"]["properties"]["variables"]["patternProperties"]["^.*"]["anyOf"].append({"type": "array"})
    schemas["PARAM"]["properties"]["values"]["minItems"] = 1
    kinds = ({"type": "string", "minLength": 1}, *({"type": kind} for kind in ("number", "boolean", "array")))
    schemas["ENV"]["properties"]["labels"]["patternProperties"] = {"^.*": {"anyOf": list(kinds)}}
    for block in ("variables", "labels"):
        schemas["ENV"]["properties"][block]["propertyNames"] = {"minLength": 1}
    dependencies = schemas["ENV"]["properties"]["dependencies"]
    dependencies["additionalProperties"] = False
    dependencies["properties"]["git"]["items"]["type"] = "object"
    # Maestro reads each dependency as a list of blocks (yamlspecification.py:262).
    del dependencies["properties"]["spack"]
    return schemas
