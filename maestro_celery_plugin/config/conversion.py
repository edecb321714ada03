"""Conversion of settings and other classes with fields to plain types, JSON text and JSON schemas, with msgspec.

The classes are dataclasses, or derive from `Exact`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from maestro_celery_plugin.files import parsed_json

__all__ = ["Exact", "boolean_keys", "from_dict", "from_json", "json_schema", "keys_of", "to_dict", "to_json"]

T = TypeVar("T")


class Exact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of classes that refuse unknown fields: rules for samples, which a later version may have written.

    A sample must not run without a rule. Dataclasses ignore unknown fields: a live worker must not count as dead
    because its heartbeat has a new field.
    """


@functools.cache
def json_schema(cls: type) -> Mapping[str, Any]:
    """Return the JSON schema of a class; it is kept, because each step of a study is checked."""
    _, definitions = msgspec.json.schema_components((cls,), ref_template="#/$defs/{name}")
    return {**definitions[cls.__name__], "$defs": definitions}


def keys_of(cls: type) -> tuple[str, ...]:
    """Return the keys of a settings class, as written in YAML."""
    return tuple(json_schema(cls)["properties"])


@functools.cache
def boolean_keys(cls: type) -> frozenset[str]:
    """Return the keys of a settings class, and of the classes in it, that may be true or false."""
    schema = json_schema(cls)
    found = set()
    for block in (schema, *schema["$defs"].values()):
        for key, value in block.get("properties", {}).items():
            if "boolean" in {one.get("type") for one in (value, *value.get("anyOf", ()))}:
                found.add(key)
    return frozenset(found)


def from_dict(cls: type[T], data: Any) -> T:
    """Build an object of a class from plain types.

    Raises:
        ValueError: a value is invalid; the message has one line: ``needs.gpus: Expected `int`, got `str```.
    """
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as cause:
        problem, _, place = str(cause).partition(" - at `$")
        where = re.sub(r"\[(\d+)\]", r".\1", place.rstrip("`")).lstrip(".")
        raise ValueError(f"{where}: {problem}".removeprefix(": ")) from cause


def to_dict(value: Any) -> dict[str, Any]:
    """Return an object as dicts, lists and scalars, by YAML keys, without values of settings that equal their default.

    Values of arbitrary blocks stay as they are.
    """
    plain: dict[str, Any] = _plain(msgspec.to_builtins(value, enc_hook=_number))
    return plain


def _plain(value: Any) -> Any:
    """Return a value with lists in place of tuples, which YAML cannot store safely."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _number(value: Any) -> int:
    """Return the number of a `ScriptCount`; msgspec calls this function for types that it does not know."""
    if isinstance(value, int):
        return int(value)
    raise NotImplementedError(f"{type(value)} cannot be stored")


def from_json(cls: type[T], text: str) -> T:
    """Build an object of a class from JSON.

    Raises:
        ValueError: the text is not JSON, or a value is invalid.
    """
    with contextlib.suppress(ValueError, RecursionError):
        return msgspec.json.decode(text, type=cls)
    # The text has `Infinity`, or an error, whose message `from_dict` makes.
    return from_dict(cls, parsed_json(text))


def to_json(value: Any) -> str:
    """Return an object as JSON.

    The text is ASCII, because machines with different locales read it, and has `Infinity` for an infinite number, which
    msgspec would write as null.
    """
    return json.dumps(msgspec.to_builtins(value, enc_hook=_number), indent=1)
