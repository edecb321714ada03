"""Values in YAML text: PyYAML has one error for a wrong syntax, and several others for a wrong value."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

__all__ = ["parsed_yaml", "yaml_errors"]

_SURROGATE = re.compile(r"\\u(0{4})?d[89a-f]", re.IGNORECASE)


def parsed_yaml(text: str) -> Any:
    """Return the value in YAML text.

    Raises:
        YAMLError: it is not YAML, has too many levels, or has a value that is not of its type, such as ``2024-13-01``
            and ``!!int x``, or is not Unicode.
    """
    with yaml_errors():
        value = yaml.safe_load(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False, skipkeys=True, default=str).encode()
    return value


@contextlib.contextmanager
def yaml_errors() -> Iterator[None]:
    """Raise a `YAMLError` in place of the other errors with which PyYAML refuses a value."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as cause:
        problem = "it has too many levels" if isinstance(cause, RecursionError) else f"a value is wrong ({cause})"
        raise yaml.YAMLError(problem) from cause
