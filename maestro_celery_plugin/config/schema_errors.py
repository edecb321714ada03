"""Problems of a document: each error of a JSON schema becomes a message that a user can act on."""

from __future__ import annotations

import copy
import difflib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jsonschema

from maestro_celery_plugin.errors import nearest

__all__ = ["problems", "without_errors"]

# A `jsonschema.ValidationError`; its type stubs declare that each attribute may be unset.
Error: TypeAlias = Any

# The longest value that a message repeats, in characters.
_SHOWN = 200
# Words that users write for a key, and what to write instead.
_INSTEAD = {
    "command": "cmd",
    "commands": "cmd",
    "concurrency": "args: --concurrency N",
    "prefetch_multiplier": "args: --prefetch-multiplier N",
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
    """Tell whether a value is an `int` of at most 64 bits, which NumPy can compare with its own.

    JSON schema also accepts 25.0, which Python formats with a decimal point.
    """
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_number(checker: Any, value: Any) -> bool:
    """Tell whether a value is a number that a `float` can store and that compares with others, unlike NaN."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (abs(value) <= sys.float_info.max or value == math.inf)


_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft7Validator,
    type_checker=jsonschema.Draft7Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number}),
)


def problems(data: Any, schema: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Return (dotted path, message) for each invalid value, sorted by path.

    A message contains the value that was found and the values that are allowed.
    """
    validator = _Validator(schema)
    found: dict[tuple[str, str], str] = {}
    errors = (inner for error in validator.iter_errors(data) for inner in _of_only_alternative(error))
    for error in sorted(errors, key=_place):
        path = ".".join(str(part) for part in error.absolute_path)
        for message in _messages(error):
            # One message for what was found: a misspelt key is an unknown key, and a missing one.
            found.setdefault((path, message.partition(";")[0]), message)
    return [(path, message) for (path, _), message in found.items()]


def _place(error: Error) -> tuple[list[str], bool]:
    """Return the sort key of an error: its path; of one block, missing keys first, which explain unknown ones."""
    return [str(part) for part in error.absolute_path], error.validator != "required"


def without_errors(data: Any, schema: Mapping[str, Any]) -> Any:
    """Return a copy of a value without the keys and values that its schema refuses; None if nothing is left."""
    root = {"": copy.deepcopy(data)}
    validator = _Validator(schema)
    while "" in root and (found := next(validator.iter_errors(root[""]), None)) is not None:
        error = next(_of_only_alternative(found))
        parent: Any = root
        path = ["", *error.absolute_path]
        last = path.pop()
        for part in path:
            parent = parent[part]
        if error.validator == "additionalProperties":
            for key in set(parent[last]).difference(error.schema["properties"]):
                del parent[last][key]
        else:
            del parent[last]
    return root.get("")


def _of_only_alternative(error: Error) -> Iterator[Error]:
    """Yield all errors of the only alternative other than null; an optional value has one such alternative."""
    if error.validator == "anyOf":
        indices = [n for n, schema in enumerate(error.validator_value) if schema.get("type") != "null"]
        if len(indices) == 1:
            for inner in error.context:
                if inner.schema_path[0] == indices[0]:
                    yield from _of_only_alternative(inner)
            return
    yield error


def _messages(error: Error) -> Iterator[str]:
    if error.validator == "additionalProperties":
        yield from _unknown_keys(error)
    elif error.validator == "required":
        yield from _missing_keys(error)
    else:
        describe = _MESSAGES.get(str(error.validator))
        yield describe(error) if describe else error.message


def _unknown_keys(error: Error) -> Iterator[str]:
    allowed = [str(key) for key in error.schema["properties"]]
    for unknown in (str(key) for key in error.instance if key not in allowed):
        instead = _instead(unknown, allowed)
        hint = f"use '{instead}'." if instead else nearest(unknown, allowed)
        yield f"unknown key '{_short(unknown)}'; {hint}"


def _instead(word: str, allowed: Iterable[str]) -> str | None:
    """Return what to write instead of an unknown key, if its block has that key."""
    instead = _INSTEAD.get(word.lower())
    return instead if instead and instead.partition(":")[0] in allowed else None


def _missing_keys(error: Error) -> Iterator[str]:
    allowed = error.schema["properties"]
    unknown = [str(key) for key in error.instance if key not in allowed]
    for missing in (key for key in error.validator_value if key not in error.instance):
        other_words = [key for key in unknown if _instead(key, allowed) == missing]
        close = difflib.get_close_matches(missing, unknown, n=1)
        if other_words:
            yield f"unknown key '{other_words[0]}'; use '{missing}'."
        elif close:
            yield f"unknown key '{close[0]}'; did you mean '{missing}'?"
        else:
            yield f"the key '{missing}' is missing; add it."


def _wrong_type(error: Error) -> str:
    return f"found {_found(error.instance)}; {_allowed(error.schema)} is needed."


def _not_listed(error: Error) -> str:
    allowed = [str(item) for item in (error.validator_value if error.validator == "enum" else [error.validator_value])]
    hint = nearest(str(error.instance), allowed)
    if hint.startswith("allowed"):  # Maestro lists each word in several spellings
        hint = nearest(str(error.instance), {item.casefold(): item for item in reversed(allowed)}.values())
    return f"found {_found(error.instance)}; {hint}"


def _no_alternative(error: Error) -> str:
    alternatives = [schema for schema in error.validator_value if schema.get("type") != "null"]
    allowed = " or ".join(dict.fromkeys(_allowed(a) for a in alternatives))
    return f"found {_found(error.instance)}; {allowed} is needed."


_MESSAGES: dict[str, Callable[[Error], str]] = {
    "type": _wrong_type,
    "enum": _not_listed,
    "const": _not_listed,
    "anyOf": _no_alternative,
    "minimum": _wrong_type,
    "maximum": _wrong_type,
    "minLength": lambda error: "found empty text; some text is needed.",
    "minItems": lambda error: "found an empty list; at least one entry is needed.",
    "uniqueItems": lambda error: f"found the same entry twice in {_short(error.instance)}; give each entry once.",
}


def _allowed(schema: Any) -> str:
    if "const" in schema:
        return f"'{schema['const']}'"
    if "enum" in schema:
        return " or ".join(f"'{item}'" for item in schema["enum"])
    if "pattern" in schema:
        return str(schema.get("description", "a variable such as $(NAME)"))
    allowed = _TYPE_NAMES.get(str(schema.get("type")), str(schema.get("type")))
    limits = ((word, schema[key]) for key, word in (("minimum", "least"), ("maximum", "most")) if key in schema)
    return f"{allowed} of {' and '.join(f'at {word} {limit}' for word, limit in limits)}".removesuffix(" of ")


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a block of keys"
    if isinstance(value, list):
        return "a list"
    return f"'{_short(value)}'"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
