"""Overrides: what the command line of a launch sets in place of the specification.

The values of variables are text. They replace those of the specification before anything else is substituted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_celery_plugin.errors import SpecificationError, StudyError, nearest

__all__ = ["Overrides", "one_variable_each", "variables_of"]

# The blocks of `env` with variables; Merlin's --vars sets labels as well (spec/override.py).
_BLOCKS = ("variables", "labels")
# Each study has this variable, whether its specification sets it or not.
_OUTPUT_PATH = "OUTPUT_PATH"
# Maestro sets it to the directory of the specification (maestro.py:437).
_RESERVED = ("SPECROOT",)
# The beginning of a further variable of `--vars`.
_VARIABLE = re.compile(r"[^-/=\s][^/=\s]*=")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
_NUMBER_LIMIT = 400  # characters; Python reads no integer of thousands of digits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command line of a launch sets in place of the specification.

    Attributes:
        variables: Values of `--vars`, by the name of the variable; each must be a variable of the specification.
        environment: Values of `--env-file`, by name; they apply to variables of the specification as well, but those of
            `--vars` come first.
        inherited: Names of variables that the study above this one hands on; this one need not have them.
        samples_file: The file of `--samplesfile`, in place of `merlin.samples`; None without it.
        no_errors: Whether a dry run writes scripts without the directives of a batch system that is missing.
    """

    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inherited: frozenset[str] = frozenset()
    samples_file: Path | None = None
    no_errors: bool = False

    @property
    def is_given(self) -> bool:
        """Whether the command line sets anything."""
        return bool(self.variables or self.environment or self.samples_file)

    @property
    def words(self) -> list[str]:
        """The options of `maestro run` that are stored with the study, without those that may have secrets."""
        words = [word for name, value in self.variables.items() for word in ("--vars", f"{name}={value}")]
        words += ["--samplesfile", str(self.samples_file)] if self.samples_file else []
        return [*words, "--no-errors"] if self.no_errors else words

    def names(self, env: Any) -> frozenset[str]:
        """Return the names of the variables of `env` that have a value of the command line."""
        known = _known(env)
        return frozenset({*self.variables} | {name for name in self.environment if name in known})

    def applied_to(self, env: Any, file: str) -> Any:
        """Return the block `env` of a specification with the values of the command line.

        Args:
            env: The block; it may have any type, which is checked later.
            file: Name of the specification, for messages.

        Raises:
            SpecificationError: there is no such variable, or a variable would be empty.
        """
        known = _known(env)
        for name in self.variables:
            if name not in (*known, _OUTPUT_PATH) and name not in self.inherited:
                hint = nearest(name, known)
                raise SpecificationError.at(file, "env.variables", f"--vars: unknown variable '{name}'; {hint}")
        values = {**{name: value for name, value in self.environment.items() if name in known}, **self.variables}
        for name, value in values.items():
            if not value:
                raise SpecificationError.at(file, f"env.variables.{name}", "--env-file: it is empty; give it a value.")
        if not values:
            return env
        env = dict(env or {})
        for block in _BLOCKS:
            if isinstance(env.get(block), Mapping):
                env[block] = {
                    key: _value(values[str(key)]) if str(key) in values else old for key, old in env[block].items()
                }
        if _OUTPUT_PATH in values and _OUTPUT_PATH not in known:
            env["variables"] = {**(env.get("variables") or {}), _OUTPUT_PATH: values[_OUTPUT_PATH]}
        return env

    def samples_of(self, merlin: Any, file: str) -> Any:
        """Return the block `merlin` of a specification with the file of `--samplesfile`, which no command generates.

        Raises:
            SpecificationError: the study has no samples.
        """
        if self.samples_file is None:
            return merlin
        samples = merlin.get("samples") if isinstance(merlin, Mapping) else None
        if not isinstance(samples, Mapping):
            raise SpecificationError.at(
                file, "merlin.samples", "--samplesfile: there is no such block, which names the columns; add it."
            )
        kept = {key: value for key, value in samples.items() if key != "generate"}
        return {**merlin, "samples": {**kept, "file": str(self.samples_file)}}


def variables_of(words: Iterable[str]) -> dict[str, str]:
    """Return the variables of `--vars`; of several values for one name, the last counts.

    Args:
        words: Texts ``NAME=VALUE``; a value may have any characters, ``=`` too.

    Raises:
        StudyError: a text has another form, or its name is reserved, or its value is empty.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or re.search(r"[\s$()]", name):
            raise StudyError(f"--vars: found {word!r}; 'NAME=VALUE' is needed, with the name of a variable.")
        if name in _RESERVED:
            raise StudyError(f"--vars: '{name}' is Maestro's, and has the same value in each study; remove it.")
        if not value:
            raise StudyError(f"--vars: '{name}' has no value; variables of Maestro are not empty, so give it one.")
        found[name] = value
    return found


def one_variable_each(words: Sequence[str]) -> Iterator[str]:
    """Yield a command line in which each variable has its own `--vars`, so that the specification may follow them.

    After the first variable, a word counts as a variable if it is ``NAME=...``. A path of a specification with such a
    beginning needs ``--`` or ``./`` before it.
    """
    is_first = is_next = False
    for position, word in enumerate(words):
        if word == "--":
            yield from words[position:]
            return
        if is_first or (is_next and _VARIABLE.match(word)):
            yield f"--vars={word}"
            is_first, is_next = False, True
        else:
            is_first, is_next = word == "--vars", False
            if not is_first or position == len(words) - 1:
                yield word


def _known(env: Any) -> list[str]:
    blocks = [env.get(block) for block in _BLOCKS] if isinstance(env, Mapping) else []
    return [str(name) for block in blocks if isinstance(block, Mapping) for name in block]


def _value(text: str) -> Any:
    """Return a number if it has the same text, so that keys for numbers take it; else the text, such as ``007``."""
    if not _NUMBER.fullmatch(text):
        return text
    if len(text) > _NUMBER_LIMIT:
        return text
    number: int | float = float(text) if "." in text else int(text)
    return number if str(number) == text else text
