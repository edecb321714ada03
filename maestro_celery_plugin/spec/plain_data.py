"""Checks of the parsed YAML, before anything else uses it.

YAML can express more than a specification can have: keys that are not text, a list that contains itself, characters
that no file can store.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from maestro_celery_plugin.errors import SpecificationError

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


def check_plain(data: Mapping[str, Any], file: str) -> None:
    """Check that all keys are text, that no block contains itself, and that all text can be stored.

    The block `user` is not used, except through aliases in other blocks, and is not checked.

    Raises:
        SpecificationError: a key or a value cannot be used; the message contains the first problem only.
    """
    _Check(file).block({block: value for block, value in data.items() if block != "user"}, ())


class _Check:
    """A walk through a document, which visits a block only once even if aliases repeat it."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._done: set[int] = set()
        self._open: set[int] = set()

    def _error(self, where: tuple[str, ...], problem: str) -> SpecificationError:
        return SpecificationError.at(self._file, _escaped(".".join(where)), problem)

    def value(self, value: Any, where: tuple[str, ...]) -> None:
        if isinstance(value, str):
            self._text(value, where)
        elif isinstance(value, int):
            self._integer(value, where)
        elif isinstance(value, dict | list | tuple | set):
            self.block(value, where)

    def block(self, block: Any, where: tuple[str, ...]) -> None:
        if id(block) in self._open:
            raise self._error(where, "the block contains itself through an alias ('*name'); write out what is needed.")
        if id(block) in self._done:
            return
        if len(self._open) > _DEPTH:
            raise self._error(where[:4], f"the block has more than {_DEPTH} levels; use fewer.")
        self._open.add(id(block))
        if isinstance(block, Mapping):
            for key, item in block.items():
                self._key(key, where)
                self.value(item, (*where, key))
        else:
            for place, item in _numbered(block, is_study=where == ("study",)):
                self.value(item, (*where[:-1], where[-1] + place))
        self._open.discard(id(block))
        self._done.add(id(block))

    def _key(self, key: Any, where: tuple[str, ...]) -> None:
        if not isinstance(key, str):
            name = _printable(_constant(key))
            raise self._error(where, f"found the key '{name}', which YAML reads as {_kind_of(key)}; put it in quotes.")
        self._text(key, where)

    def _text(self, text: str, where: tuple[str, ...]) -> None:
        problem = "a NUL character" if "\0" in text else None
        if problem is None and not _is_encodable(text):
            problem = "a character that UTF-8 cannot encode"
        if problem is not None:
            raise self._error(where, f"found '{_printable(text)}' with {problem}; remove it.")

    def _integer(self, number: int, where: tuple[str, ...]) -> None:
        try:
            str(number)
        except ValueError as cause:  # more digits than Python converts
            raise self._error(where, "found a number with thousands of digits; use a shorter one.") from cause


def _numbered(items: Any, *, is_study: bool) -> Iterator[tuple[str, Any]]:
    """Yield the place of each entry of a list, and the entry; a step has its name as place."""
    for number, item in enumerate(items):
        name = item.get("name") if is_study and isinstance(item, dict) else None
        is_name = isinstance(name, str) and name and _is_encodable(name)
        yield f".{name}" if is_name else f"[{number}]" if is_study else f".{number}", item


def check_free_block(value: Any, file: str, where: str) -> None:
    """Check the values of a block with arbitrary keys, which Maestro's adapters receive as the user has written them.

    Raises:
        SpecificationError: a value is neither text nor a number, true or false, a list, or a block of keys.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_free_block(item, file, f"{where}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            check_free_block(item, file, f"{where}.{number}")
    elif not isinstance(value, _FREE):
        found = f"found '{value}', which YAML reads as {_kind_of(value)}; put the value in quotes, or use another type."
        raise SpecificationError.at(file, where, found)


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
