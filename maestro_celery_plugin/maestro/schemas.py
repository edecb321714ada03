"""The JSON schemas that Maestro ships for its blocks (specification/schemas/yamlspecification.json)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import maestrowf

__all__ = ["maestro_schemas"]


@functools.lru_cache(maxsize=1)
def maestro_schemas() -> dict[str, Any]:
    """Return the schemas by the name of the block, extended by the values that Merlin allows."""
    path = Path(maestrowf.__file__).parent / "specification" / "schemas" / "yamlspecification.json"
    schemas: dict[str, Any] = json.loads(path.read_text())
    # In Merlin, a variable may be a list.
    schemas["ENV"]["properties"]["variables"]["patternProperties"]["^.*"]["anyOf"].append({"type": "array"})
    schemas["PARAM"]["properties"]["values"]["minItems"] = 1
    return schemas
