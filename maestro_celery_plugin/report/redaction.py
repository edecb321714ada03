"""The removal of secrets from a summary: no text of it contains a value that `--env-file` has set."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, TypeVar

__all__ = ["REDACTED", "redacted"]

REDACTED = "[value of --env-file]"
# A shorter value may be part of any word; it is removed as a whole word.
_SHORT = 4

_Value = TypeVar("_Value")


def redacted(value: _Value, secrets: Iterable[str]) -> _Value:
    """Return a value, such as a dataclass of texts, without secrets in its texts."""
    words = sorted({word for secret in secrets for word in _words_of(secret)}, key=len, reverse=True)
    if not words:
        return value
    parts = [re.escape(word) if len(word) >= _SHORT else rf"(?<!\w){re.escape(word)}(?!\w)" for word in words]
    pattern = re.compile("|".join(parts))
    result: _Value = _without(value, pattern)
    return result


def _words_of(secret: str) -> list[str]:
    """Return a secret and its lines, which may appear alone; a number of one or two digits is no secret."""
    lines = [secret.strip(), *(line.strip() for line in secret.splitlines())]
    return [line for line in lines if line and not re.fullmatch(r"\d{1,2}", line)]


def _without(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(REDACTED, value)
    if isinstance(value, tuple):
        return tuple(_without(one, pattern) for one in value)
    if isinstance(value, dict):
        return {_without(key, pattern): _without(one, pattern) for key, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _without(getattr(value, field.name), pattern) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
