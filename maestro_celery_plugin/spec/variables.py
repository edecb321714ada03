"""Variables of `env`: their values are inserted into the whole specification before it is checked.

A variable may occur in keys, in values, in the name of the study and in names of worker groups, because Merlin inserts
variables into the text of the specification. This module works on the parsed document, where a value cannot break the
YAML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from maestro_celery_plugin.config.conversion import boolean_keys
from maestro_celery_plugin.config.settings import EnsembleSettings, StepSettings
from maestro_celery_plugin.config.tokens import names_in, substitute
from maestro_celery_plugin.spec.problems import Problem

__all__ = ["MAESTRO_VARIABLES", "Variables", "filled", "with_merlins_output_path"]

# Maestro sets these when the output path is known (maestro.py:421, 437).
MAESTRO_VARIABLES = ("OUTPUT_PATH", "SPECROOT")
# Keys with shell commands: the shell expands ``~`` and ``$ENV`` there.
_COMMANDS = ("cmd", "restart", "pre", "post")
_ONE_TOKEN = re.compile(r"\$\(([^\s()]+)\)")
# Merlin's `$(OUTPUT_PATH)` is the text in `env`, so that its `iterative_demo` keeps files of all iterations there.
_WITH_PATHS = ("env", "study", "merlin")
# Blocks with keys that are true or false, and the words for these values in YAML.
_WITH_BOOLEANS = ("merlin", "batch", "study")
# Keys of Maestro of that kind (yamlspecification.json).
_MAESTROS_BOOLEANS = ("exclusive", "nested", "waitable")
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
_BELOW_SPECROOT = re.compile(r"(\$\(SPECROOT\)/+)\$\(OUTPUT_PATH\)")


class Variables:
    """The variables and labels of `env`, each with its final value.

    A text that consists of one variable becomes the value of the variable, which keeps its type. ``~`` and ``$ENV``
    are expanded, but not in commands.

    Args:
        data: The specification.
        literal: The variables with a value of the command line, whose shell has expanded what was to be expanded; only
            tokens are replaced in it.

    Attributes:
        problems: Variables that refer to themselves, and keys that are equal after the insertion of values.
    """

    def __init__(self, data: Mapping[str, Any], literal: Collection[str] = ()) -> None:
        self.problems: list[Problem] = []
        self._literal = literal
        environment = data.get("env") or {}
        self._blocks = {str(name): block for block in ("variables", "labels") for name in environment.get(block) or {}}
        raw = {**(environment.get("variables") or {}), **(environment.get("labels") or {})}
        self._raw = {str(name): value for name, value in raw.items() if name not in MAESTRO_VARIABLES}
        self._values: dict[str, Any] = {}
        for name in self._raw:
            self._resolve(name, ())
        self._add_upper_case(data)
        self._texts = {name: str(value) for name, value in self._values.items()}

    def _resolve(self, name: str, path: tuple[str, ...]) -> Any:
        """Return the value of a variable, with the values of the variables in it."""
        if name in path:
            cycle = " -> ".join((*path[path.index(name) :], name))
            where = f"env.{self._blocks[name]}.{name}"
            self.problems.append(Problem(where, f"the variable refers to itself: {cycle}; give it a value."))
            return self._raw[name]
        if name not in self._values:
            value = self._raw[name]
            if isinstance(value, str):
                inner = {n: self._resolve(n, (*path, name)) for n in names_in(value) if n in self._raw}
                value = _filled(value, inner, expand=name not in self._literal)
            self._values[name] = value
        return self._values[name]

    def _add_upper_case(self, data: Mapping[str, Any]) -> None:
        """Make ``$(SIZE)`` an alias of ``$(size)``, unless it has another meaning (Merlin: spec/expansion.py:227)."""
        merlin = data.get("merlin")
        samples = merlin.get("samples") if isinstance(merlin, Mapping) else None
        labels = samples.get("column_labels") if isinstance(samples, Mapping) else None
        taken = {
            *self._values,
            *(data.get("global.parameters") or {}),
            *map(str, labels if isinstance(labels, list) else ()),
            *MAESTRO_VARIABLES,
        }
        for name in tuple(self._values):
            if name.upper() not in taken:
                self._values[name.upper()] = self._values[name]

    def resolved(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the specification as it is, with the final values of the variables and labels in `env`."""
        environment = dict(data.get("env") or {})
        for block in ("variables", "labels"):
            if environment.get(block):
                names = environment[block]
                environment[block] = {name: self._values.get(str(name), value) for name, value in names.items()}
        return {**data, "env": environment} if "env" in data else dict(data)

    def insert_into(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the specification with the values of all variables."""
        return {key: self._walk(value, (key,)) for key, value in data.items()}

    def _walk(self, item: Any, where: tuple[str, ...]) -> Any:
        if isinstance(item, dict):
            return self._walk_block(item, where)
        if isinstance(item, list):
            return [self._walk(entry, where) for entry in item]
        if not isinstance(item, str):
            return item
        if (where[-1] in _COMMANDS and where[0] != "env") or where in (("env", "sources"), ("merlin", "notify")):
            return substitute(item, self._texts)
        value = _filled(item, self._values, expand=not self._is_literal(where))
        return _truth(value) if _ONE_TOKEN.fullmatch(item) and _is_boolean(where) else value

    def _is_literal(self, where: tuple[str, ...]) -> bool:
        return where[:2] in (("env", "variables"), ("env", "labels")) and where[-1] in self._literal

    def _walk_block(self, block: dict[Any, Any], where: tuple[str, ...]) -> dict[Any, Any]:
        result = {}
        for key, value in block.items():
            filled = substitute(key, self._texts) if isinstance(key, str) else key
            if filled in result:
                found = f"found the key '{filled}' twice (also as '{key}'); use each key once."
                self.problems.append(Problem(".".join(where), found))
            result[filled] = self._walk(value, (*where, str(filled)))
        return result


def with_merlins_output_path(data: Mapping[str, Any], env: Any) -> dict[str, Any]:
    """Return a specification with the relative path in place of the token in ``$(SPECROOT)/$(OUTPUT_PATH)``.

    Maestro's ``$(OUTPUT_PATH)`` is an absolute path, which has no meaning inside another one. Without a relative
    path in `env`, the specification stays as it is.

    Args:
        data: The specification, or some of its blocks.
        env: The block `env` with the values of the command line.
    """
    path = (env.get("variables") or {}).get("OUTPUT_PATH") if isinstance(env, Mapping) else None
    if not isinstance(path, str) or path.startswith(("/", "~", "$")):
        return dict(data)
    return {name: _replaced(block, path) if name in _WITH_PATHS else block for name, block in data.items()}


def _replaced(item: Any, path: str) -> Any:
    if isinstance(item, Mapping):
        return {key: _replaced(value, path) for key, value in item.items()}
    if isinstance(item, list):
        return [_replaced(value, path) for value in item]
    return _BELOW_SPECROOT.sub(lambda match: match[1] + path, item) if isinstance(item, str) else item


def filled(item: Any, values: Mapping[str, str]) -> Any:
    """Return a document with the values of tokens in all its texts."""
    if isinstance(item, Mapping):
        return {key: filled(value, values) for key, value in item.items()}
    if isinstance(item, list):
        return [filled(value, values) for value in item]
    return substitute(item, values) if isinstance(item, str) else item


def _is_boolean(where: tuple[str, ...]) -> bool:
    """Whether a place is that of a key that is true or false."""
    own = boolean_keys(EnsembleSettings) | boolean_keys(StepSettings)
    return where[0] in _WITH_BOOLEANS and (where[-1] in own or where[-1] in _MAESTROS_BOOLEANS)


def _truth(value: Any) -> Any:
    """Return the truth value in the text of a variable, which `--vars` sets; another text is an error later."""
    return _TRUTHS.get(value.lower(), value) if isinstance(value, str) else value


def _filled(text: str, values: Mapping[str, Any], *, expand: bool = True) -> Any:
    """Return a text with the values of variables; what is expanded is the text, and not the values, which are final."""
    match = _ONE_TOKEN.fullmatch(text)
    if match and match[1] in values:
        return values[match[1]]
    return substitute(_expanded(text) if expand else text, {name: str(value) for name, value in values.items()})


def _expanded(text: str) -> str:
    """Expand ``~`` and ``$ENV``; an unset environment variable stays as it is."""
    return os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 (the text is not always a path)
