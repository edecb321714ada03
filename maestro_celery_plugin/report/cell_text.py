"""The text of a cell of the table of samples, as in a csv file."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["as_text"]


def as_text(value: Any) -> str:
    """Return the text of a value in a csv file; empty for a missing value."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return str(value) if type(value) in (int, float) else json.dumps(value)
