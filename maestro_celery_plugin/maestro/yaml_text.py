"""The values of a YAML text, and the keys that stand twice in a block, of which YAML would use the last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from maestro_celery_plugin.config.yaml_values import yaml_errors

__all__ = ["dump", "lines_of", "load", "with_times"]

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

    def __init__(self, text: Any) -> None:
        super().__init__(text)  # type: ignore[call-arg]
        # Where each repeated key stands, and a message.
        self.repeated: list[tuple[str, str]] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Return the value of a block of keys."""
        seen: dict[tuple[str, str], Any] = {}
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.tag == "tag:yaml.org,2002:merge":
                continue
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                place = f"in line {first.start_mark.line + 1} of the same block"
                message = f"the key '{key.value}' is already {place}; remove one of the two."
                self.repeated.append((f"line {key.start_mark.line + 1}", message))
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


def load(text: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Return the value of a text, and (position, message) of each key that stands twice in a block.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    with yaml_errors():
        with contextlib.suppress(yaml.YAMLError):
            return _load(text, _FastLoader)
        return _load(text, _Loader)


def lines_of(text: str, paths: Iterable[str]) -> dict[str, int]:
    """Return for each dotted path the number of the line of its key, or of the innermost block that the text has.

    Args:
        text: The text, which is valid YAML.
        paths: Paths such as ``study.sim.run.nodes`` (a step has its name) or ``study[1].run`` (it has none).
    """
    root = yaml.compose(text, Loader=_FAST)
    return {path: _line_of(root, path) for path in paths}


def _line_of(node: Any, path: str) -> int:
    line = 1
    while path:
        found = [
            entry for entry in _entries(node) if path == entry[0] or path.startswith((f"{entry[0]}.", f"{entry[0]}["))
        ]
        if not found:
            break
        name, line, node = max(found, key=lambda entry: len(entry[0]))
        path = path[len(name) :].removeprefix(".")
    return line


def _entries(node: Any) -> Iterator[tuple[str, int, Any]]:
    """Yield the name, the line and the value of each key of a block, or of each entry of a list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key.value, str):
                yield key.value, key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            names = [value.value for key, value in item.value if key.value == "name"] if item.id == "mapping" else []
            for name in (str(number), f"[{number}]", *(name for name in names if isinstance(name, str))):
                yield name, item.start_mark.line + 1, item


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


def _load(text: Any, kind: Any) -> tuple[Any, list[tuple[str, str]]]:
    loader = kind(text)
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()
