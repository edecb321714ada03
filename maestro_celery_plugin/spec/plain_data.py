"""Checks of the parsed YAML, before anything else uses it.

YAML can express more than a specification can have: keys that are not text, a list that contains itself, characters
that no file can store.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from maestro_celery_plugin.spec.problems import Problem

__all__ = ["check_free_block", "check_plain"]

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),  # before `int`: it is a subclass
    (int, "a number"),
    (float, "a number"),
    (datetime.datetime, "a time"),
    (datetime.date, "a date"),
    (bytes, "binary data"),
    (set, "a set"),
    (type(None), "nothing"),
)
_FREE = (str, bool, int, float, type(None))
# The most levels of blocks: YAML, pickle and schemas use several Python calls for each level.
_DEPTH = 50
# The longest text that a message repeats.
_SHOWN = 60


def check_plain(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that all keys are text, that no block contains itself, and that all text can be stored.

    The block `user` is not used, except through aliases in other blocks, and is not checked.
    """
    yield from _Check().block({block: value for block, value in data.items() if block != "user"}, ())


class _Check:
    """A walk through a document, which visits a block only once even if aliases repeat it."""

    def __init__(self) -> None:
        self._done: set[int] = set()
        self._open: set[int] = set()

    def value(self, value: Any, where: tuple[str, ...]) -> Iterator[Problem]:
        if isinstance(value, str):
            yield from _text_problems(value, where)
        elif isinstance(value, int):
            yield from _integer_problems(value, where)
        elif isinstance(value, dict | list | tuple | set):
            yield from self.block(value, where)

    def block(self, block: Any, where: tuple[str, ...]) -> Iterator[Problem]:
        if id(block) in self._open:
            yield _at(where, "the block contains itself through an alias ('*name'); write out what is needed.")
            return
        if id(block) in self._done:
            return
        if len(self._open) > _DEPTH:
            yield _at(where[:4], f"the block has more than {_DEPTH} levels; use fewer.")
            return
        self._open.add(id(block))
        if isinstance(block, Mapping):
            for key, item in block.items():
                yield from _key_problems(key, where)
                yield from self.value(item, (*where, key if isinstance(key, str) else _constant(key)))
        else:
            for place, item in _numbered(block, is_study=where == ("study",)):
                yield from self.value(item, (*where[:-1], where[-1] + place))
        self._open.discard(id(block))
        self._done.add(id(block))


def _at(where: tuple[str, ...], text: str) -> Problem:
    return Problem(_escaped(".".join(where)), text)


def _key_problems(key: Any, where: tuple[str, ...]) -> Iterator[Problem]:
    if isinstance(key, str):
        yield from _text_problems(key, where)
        return
    name = _printable(_constant(key))
    yield _at(where, f"found the key '{name}', which YAML reads as {_kind_of(key)}; put it in quotes.")


def _text_problems(text: str, where: tuple[str, ...]) -> Iterator[Problem]:
    problem = "a NUL character" if "\0" in text else None
    if problem is None and not _is_encodable(text):
        problem = "a character that UTF-8 cannot encode"
    if problem is not None:
        yield _at(where, f"found '{_printable(text)}' with {problem}; remove it.")


def _integer_problems(number: int, where: tuple[str, ...]) -> Iterator[Problem]:
    try:
        str(number)
    except ValueError:  # more digits than Python converts
        yield _at(where, "found a number with thousands of digits; use a shorter one.")


def _numbered(items: Any, *, is_study: bool) -> Iterator[tuple[str, Any]]:
    """Yield the place of each entry of a list, and the entry; a step has its name as place."""
    for number, item in enumerate(items):
        name = item.get("name") if is_study and isinstance(item, dict) else None
        is_name = isinstance(name, str) and name and _is_encodable(name)
        yield f".{name}" if is_name else f"[{number}]" if is_study else f".{number}", item


def check_free_block(value: Any, where: str) -> Iterator[Problem]:
    """Check the values of a block with arbitrary keys, which Maestro's adapters receive as the user has written them.

    Each value must be text, a number, true or false, a list, or a block of keys.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from check_free_block(item, f"{where}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from check_free_block(item, f"{where}.{number}")
    elif not isinstance(value, _FREE):
        found = f"found '{value}', which YAML reads as {_kind_of(value)}; put the value in quotes, or use another type."
        yield Problem(where, found)


def _kind_of(value: Any) -> str:
    """Return the kind of a YAML value in words."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "another type than text")


def _constant(value: Any) -> str:
    """Return a constant as YAML writes it: ``null``, ``true``; any other value as Python writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(text: str) -> str:
    """Return a text with escape sequences for characters that cannot be stored."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def _printable(text: str) -> str:
    """Return a text for a message: escaped, and shortened if it is long."""
    plain = _escaped(text)
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}..."
