"""Conversion of settings and other dataclasses to plain types, JSON text and JSON schemas, with pydantic."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

__all__ = ["from_dict", "from_json", "json_schema", "keys_of", "rules", "summary", "to_dict", "to_json"]

T = TypeVar("T")

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(cls: type) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def rules(cls: type[T]) -> type[T]:
    """Make a dataclass with rules for samples refuse unknown fields, which a later version may have written.

    A sample must not run without a rule. Other dataclasses ignore unknown fields: a live worker must not count as dead
    because its heartbeat has a new field.
    """
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return cls


@functools.cache
def json_schema(cls: type) -> Mapping[str, Any]:
    """Return the JSON schema of a dataclass.

    It is kept, because pydantic needs milliseconds for it, and each step of a study is checked.
    """
    return _adapter(cls).json_schema()


def keys_of(cls: type) -> tuple[str, ...]:
    """Return the keys of a settings class, as written in YAML."""
    return tuple(json_schema(cls)["properties"])


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Build an object of a dataclass from plain types.

    Raises:
        ValueError: a value is invalid.
    """
    value: T = _adapter(cls).validate_python(data)
    return value


def to_dict(value: Any) -> dict[str, Any]:
    """Return an object as dicts, lists and scalars, by YAML keys, without values that equal their default.

    Values of arbitrary blocks stay as they are: pydantic's mode `json` would write null for an infinite number.
    """
    plain: dict[str, Any] = _plain(_adapter(type(value)).dump_python(value, by_alias=True, exclude_defaults=True))
    return plain


def _plain(value: Any) -> Any:
    """Return a value with lists in place of tuples, which YAML cannot store safely."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_json(cls: type[T], text: str) -> T:
    """Build an object of a dataclass from JSON.

    Raises:
        ValueError: the text is not JSON, or a value is invalid.
    """
    value: T = _adapter(cls).validate_json(text)
    return value


def to_json(value: Any) -> str:
    """Return an object of a dataclass as JSON, with all its values.

    The text is ASCII, because machines with different locales read it, and has `Infinity` for an infinite number, which
    pydantic would write as null.
    """
    plain = _adapter(type(value)).dump_python(value)
    return json.dumps(to_jsonable_python(plain, inf_nan_mode="constants", bytes_mode="base64"), indent=1)


def summary(error: Exception) -> str:
    """Return the first problem of an error of a conversion in one line: ``needs.gpus: Input should be ...``."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
