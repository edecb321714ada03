"""The values of a YAML text, and the first key that stands twice in a block, of which YAML would use the last."""

from __future__ import annotations

import contextlib
from typing import Any

import yaml

__all__ = ["dump", "load", "with_times"]

# Keys with a time. YAML 1.1 reads an unquoted 1:30:00 as the number 5400, which a batch system may read as minutes.
_TIMES = ("walltime", "time_request")
_INTEGER = "tag:yaml.org,2002:int"

# `CSafeLoader` is `SafeLoader` with a parser in C: it builds the same plain values, and no objects. It takes a tenth of
# the time, and is not part of each installation of PyYAML. The parser in Python has better messages.
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Base60(int):
    """A number that the text has with colons, such as 1:30:00.

    Attributes:
        text: Its text.
    """

    text: str


def _integer(loader: Any, node: Any) -> int:
    """Return the value of an integer; keep the text of one with colons."""
    number: int = loader.construct_yaml_int(node)
    if ":" in node.value:
        number = _Base60(number)
        number.text = node.value
    return number


class _FindsRepeatedKeys:
    """Part of a loader of YAML."""

    # Where the first repeated key stands, and a message.
    repeated: tuple[str, str] | None = None

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Return the value of a block of keys."""
        if self.repeated is None:
            seen: dict[tuple[str, str], int] = {}
            for key, _ in node.value:
                if not isinstance(key.value, str) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                line = key.start_mark.line + 1
                first = seen.setdefault((key.tag, key.value), line)
                if first != line:
                    self.repeated = (
                        f"line {line}",
                        f"the key '{key.value}' is already in line {first} of the same block; remove one of the two.",
                    )
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _FastLoader(_FindsRepeatedKeys, _FAST):  # type: ignore[misc]
    pass


class _Loader(_FindsRepeatedKeys, yaml.SafeLoader):
    pass


for _loader in (_FastLoader, _Loader):
    _loader.add_constructor(_INTEGER, _integer)


def with_times(data: Any, key: str = "") -> Any:
    """Return the values of a text; a number with colons is text where a key has a time, and a number elsewhere."""
    if isinstance(data, dict):
        return {name: with_times(value, name) for name, value in data.items()}
    if isinstance(data, list):
        return [with_times(value) for value in data]
    if isinstance(data, _Base60):
        return data.text if key in _TIMES else int(data)
    return data


def load(text: Any) -> tuple[Any, tuple[str, str] | None]:
    """Return the value of a text, and (position, message) of the first key that stands twice in a block.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    with contextlib.suppress(yaml.YAMLError):
        return _load(text, _FastLoader)
    return _load(text, _Loader)


class _Dumper(yaml.SafeDumper):
    """Writes several lines of text as such, and a number with colons as in the text."""


def _text_node(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)
_Dumper.add_representer(_Base60, lambda dumper, number: dumper.represent_scalar(_INTEGER, number.text))


def dump(data: Any) -> str:
    """Return values as the text of a specification."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    return text


def _load(text: Any, kind: Any) -> tuple[Any, tuple[str, str] | None]:
    loader = kind(text)
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()
