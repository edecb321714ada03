"""JSON schema of the settings classes, and messages a user can act on when a value does not fit.

`json_schema` derives the schema, `jsonschema` checks, `build` makes the dataclass. Maestro's own step
keys come from the schema file that Maestro ships, so that both are checked in one go.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import jsonschema

from maestro_celery_plugin.config.settings import key_of

__all__ = ["build", "json_schema", "nearest", "problems"]

Settings = TypeVar("Settings")
# A `jsonschema.ValidationError`; in the stubs each of its attributes may be unset.
Error: TypeAlias = Any

_SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    Any: {},
}
_TYPE_NAMES = {
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a block of keys",
    "null": "nothing",
}


def _is_integer(checker: Any, value: Any) -> bool:
    """Take 25.0 for what it is: JSON schema calls it an integer, Python's formatting does not."""
    return isinstance(value, int) and not isinstance(value, bool)


_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft7Validator,
    type_checker=jsonschema.Draft7Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema (draft 7) of a settings class."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return {
        "type": "object",
        "properties": {key_of(f): _schema_of(hints[f.name], f.metadata["limits"]) for f in fields},
        "required": [key_of(f) for f in fields if _is_required(f)],
        "additionalProperties": False,
    }


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _schema_of(hint: Any, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of one annotated value, with `limits` where they apply."""
    if hint is type(None):
        return {"type": "null"}
    if hint in _SCALARS:
        return {**_SCALARS[hint], **limits}
    if dataclasses.is_dataclass(hint):
        return json_schema(typing.cast(type, hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(arguments[0], {}), **limits}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], {})}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(argument, limits) for argument in arguments]}
    raise TypeError(f"no JSON schema for {hint!r}")


def build(cls: type[Settings], data: Mapping[str, Any]) -> Settings:
    """Make the settings object of a block that has passed `problems`."""
    hints = typing.get_type_hints(cls)
    known = {key_of(f): f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    return cls(**{known[key]: _value_of(hints[known[key]], value) for key, value in data.items()})


def _value_of(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return tuple(value)
    if origin is dict:
        return {key: _value_of(arguments[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        block = next((a for a in arguments if dataclasses.is_dataclass(a)), None)
        return _value_of(block, value) if block and isinstance(value, Mapping) else value
    return value


def problems(data: Any, schema: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield (dotted path, sentence) for each value that does not fit, in the order of the document.

    A sentence says what was found and what is allowed.
    """
    validator = _Validator(schema)
    for error in sorted(validator.iter_errors(data), key=lambda e: [str(part) for part in e.absolute_path]):
        yield ".".join(str(part) for part in error.absolute_path), _sentence(error)


def _sentence(error: Error) -> str:
    describe = _SENTENCES.get(str(error.validator))
    return describe(error) if describe else error.message


def _unknown_key(error: Error) -> str:
    known = [str(key) for key in error.schema["properties"]]
    unknown = next(str(key) for key in error.instance if key not in known)
    return f"unknown key '{unknown}'; {nearest(unknown, known)}"


def _missing_key(error: Error) -> str:
    missing = next(key for key in error.validator_value if key not in error.instance)
    known = error.schema["properties"]
    close = difflib.get_close_matches(missing, [str(key) for key in error.instance if key not in known], n=1)
    return f"the key '{missing}' is missing" + (
        f"; did you mean it by '{close[0]}'?" if close else "; add it."
    )


def _wrong_type(error: Error) -> str:
    return f"found {_found(error.instance)}; {_allowed(error.schema)} is needed"


def _not_listed(error: Error) -> str:
    listed = [str(item) for item in error.validator_value]
    return f"found {_found(error.instance)}; {nearest(str(error.instance), listed)}"


def _no_alternative(error: Error) -> str:
    alternatives = [a for a in error.validator_value if a.get("type") != "null"]
    if len(alternatives) == 1:
        return _sentence(next(_Validator(alternatives[0]).iter_errors(error.instance)))
    allowed = " or ".join(dict.fromkeys(_allowed(a) for a in alternatives))
    return f"found {_found(error.instance)}; {allowed} is needed"


_SENTENCES: dict[str, Callable[[Error], str]] = {
    "additionalProperties": _unknown_key,
    "required": _missing_key,
    "type": _wrong_type,
    "enum": _not_listed,
    "anyOf": _no_alternative,
    "minimum": _wrong_type,
    "minLength": lambda error: "found empty text; some text is needed",
    "minItems": lambda error: "found an empty list; at least one entry is needed",
    "uniqueItems": lambda error: f"found an entry twice in {error.instance!r}; each may stand there once",
}


def _allowed(schema: Any) -> str:
    if "enum" in schema:
        return " or ".join(f"'{item}'" for item in schema["enum"])
    if "pattern" in schema:
        return "a variable such as $(NAME)"
    allowed = _TYPE_NAMES.get(str(schema.get("type")), str(schema.get("type")))
    return f"{allowed} of at least {schema['minimum']}" if "minimum" in schema else allowed


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a block of keys"
    if isinstance(value, list):
        return "a list"
    return f"'{value}'"


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant, or list those there are."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(f"'{name}'" for name in names) + "." if names else "none is known here."
