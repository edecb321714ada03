"""Checks of tokens: each name has one meaning, and each token in a command has a value."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maestro_celery_plugin.config.settings import SampleSettings
from maestro_celery_plugin.config.tokens import RESERVED, SAMPLE_TOKENS, names_in
from maestro_celery_plugin.spec.problems import Kind, Problem

__all__ = ["check_names", "check_parameter_names", "doubled_paths", "token_notes"]

MAESTRO_TOKENS = ("LAUNCHER", "WORKSPACE", "SPECROOT", "OUTPUT_PATH")
_CAPITALS = re.compile(r"[A-Z][A-Z0-9_]*")
_COMMANDS = ("cmd", "restart")
_SHELL_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
# Tokens whose value is an absolute path, after another token and a slash.
_DOUBLED = re.compile(
    r"\$\([^\s()]+\)/+(\$\((?:OUTPUT_PATH|SPECROOT|WORKSPACE|MERLIN_INFO|MERLIN_WORKSPACE|[^\s()]+\.workspace)\))"
)
# Parts of a shell script in which the shell runs no command: escaped characters, text in single quotes, here-documents
# with a quoted end, comments. Text in double quotes is matched, because a single quote in it has no meaning.
_NO_COMMAND = re.compile(r"""\\.|'[^']*'|(?P<text>"(?:\\.|[^"\\])*")|(?<!\S)\#[^\n]*""", re.DOTALL)
_QUOTED_DOCUMENT = re.compile(
    r"""<<-?\s*(?:'(\w+)'|"(\w+)"|\\(\w+))[^\n]*\n.*?^\s*(?:\1|\2|\3)$""", re.DOTALL | re.MULTILINE
)
# A file that a command writes by its absolute path in the workspace of the step record.
_WRITES = re.compile(
    r"""(?:>\s*|\btee\s+(?:-a\s+)?)(["']?)\$\(WORKSPACE\)/+((?:\$\([^\s()]+\)|[^\s"';|&<>()$`])+)(?=\1(?:[\s;|&)]|\Z))"""
)


def token_notes(data: Mapping[str, Any], parameters: Iterable[str], sampled: Iterable[str]) -> Iterator[Problem]:
    """Yield a warning for each use of a token that has probably another result than the user expects.

    Args:
        data: The specification, with the values of variables.
        parameters: The names of the parameters.
        sampled: The names of the sampled steps.
    """
    labels = ((data.get("merlin") or {}).get("samples") or {}).get("column_labels", ())
    sampled = frozenset(sampled)
    if labels and not sampled:
        tokens = ", ".join(f"$({name})" for name in labels)
        yield _warning(
            "merlin.samples",
            f"no step uses the samples, so each step runs once: no cmd or restart has {tokens} "
            f"or one of {', '.join(f'$({name})' for name in SAMPLE_TOKENS)}.",
        )
    defined = _defined(data, parameters)
    spellings = {label.casefold(): label for label in labels}
    shell = (data.get("batch") or {}).get("shell", "")
    for step in data["study"]:
        is_shell = _is_shell(step["run"].get("shell") or shell)
        for key in _COMMANDS:
            text, where = step["run"].get(key) or "", f"study.{step['name']}.run.{key}"
            yield from _other_spellings(text, where, defined, spellings)
            yield from _unknown(_commands(text) if is_shell else text, where, defined, spellings)
            if is_shell:
                yield from _unset(_commands(text), where, (data.get("env") or {}).get("variables") or {})
            if step["name"] in sampled:
                yield from _shared_files(text, where, labels)


def _warning(where: str, text: str) -> Problem:
    return Problem(where, text, Kind.WARNING)


def doubled_paths(item: Any, where: str = "") -> Iterator[Problem]:
    """Yield a warning for each path, before variables are inserted, that has another absolute path inside."""
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield from doubled_paths(value, f"{where}.{key}".lstrip("."))
    elif isinstance(item, list):
        for number, value in enumerate(item):
            name = value.get("name", number) if isinstance(value, Mapping) else number
            yield from doubled_paths(value, f"{where}.{name}")
    elif isinstance(item, str):
        for match in _DOUBLED.finditer(item):
            yield _warning(
                where,
                f"found '{match[0]}', but {match[1]} is an absolute path itself; remove what stands before it, or "
                "write a relative path.",
            )


def _defined(data: Mapping[str, Any], parameters: Iterable[str]) -> set[str]:
    """Return the names of all tokens that have a value."""
    environment = data.get("env") or {}
    samples = (data.get("merlin") or {}).get("samples") or {}
    kinds = environment.get("dependencies") or {}
    dependencies = [entry["name"] for kind in ("paths", "git") for entry in kinds.get(kind) or ()]
    blocks = (environment.get("variables"), environment.get("labels"))
    defined = {*RESERVED, *MAESTRO_TOKENS, *dependencies, *samples.get("column_labels", ()), *parameters}
    return defined | {name for block in blocks for name in block or ()}


def _other_spellings(text: str, where: str, defined: set[str], spellings: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a warning for each token that is the label of a column in another case; Merlin inserts the value there."""
    for name in sorted(names_in(text) - defined):
        if name.casefold() in spellings:
            yield _warning(
                where,
                f"$({name}) is not the column '{spellings[name.casefold()]}', because upper and lower case differ, so "
                "it stays as it is; Merlin would insert the value.",
            )


def _unknown(text: str, where: str, defined: set[str], spellings: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a warning for each token without a value that is probably misspelt: ``$(XX)`` for ``$(X)``.

    The shell runs such a token as a command. Its name is in capitals and is not a command.
    """
    for name in sorted(names_in(text) - defined):
        if name.casefold() not in spellings and _CAPITALS.fullmatch(name) and shutil.which(name) is None:
            close = difflib.get_close_matches(name, defined, n=1, cutoff=0.7)
            hint = f"; did you mean $({close[0]})?" if close else "."
            yield _warning(
                where,
                f"$({name}) is not a column label, parameter or variable, and the shell will run it as a command{hint}",
            )


def _unset(script: str, where: str, variables: Iterable[str]) -> Iterator[Problem]:
    """Yield a warning for each variable of `env` that a script uses as a variable of the shell, and that nothing sets.

    Merlin's workers have the variables of `env` in their environment (Merlin: study/celeryadapter.py:656).
    """
    found = set(_SHELL_VARIABLE.findall(script)) - set(os.environ)
    for name in sorted(found.intersection(map(str, variables))):
        if not re.search(rf"\b{name}=|\b(?:read|for|set|local|declare)\b[^\n;]*\b{name}\b", script):
            yield _warning(
                where,
                f"${name} is a variable of the shell, which nothing sets here; write $({name}) for the value in env. "
                f"(Merlin's workers also set the variable; here, `export {name}=$({name})` or --env-file does.)",
            )


def _is_shell(interpreter: str) -> bool:
    """Tell whether an interpreter is a shell such as bash."""
    return not interpreter or any(Path(word).name.endswith("sh") for word in interpreter.split())


def _commands(script: str) -> str:
    """Return a script without the text in which the shell runs no command."""
    return _NO_COMMAND.sub(lambda match: match["text"] or "", _QUOTED_DOCUMENT.sub("", script))


def _shared_files(text: str, where: str, labels: Iterable[str]) -> Iterator[Problem]:
    """Yield a warning for each file that all samples of a step write."""
    own = {*labels, *SAMPLE_TOKENS}
    for _, name in dict.fromkeys(_WRITES.findall(text)):
        if not names_in(name) & own:
            yield _warning(
                where,
                f"all samples of the step write '$(WORKSPACE)/{name}'; write '{name}' instead, which is in the "
                "directory of the sample.",
            )


def check_parameter_names(names: Iterable[str], samples: SampleSettings | None, source: str) -> Iterator[Problem]:
    """Check that no parameter has the name of another token; a parameter generator can choose any name.

    Args:
        names: The names of the parameters.
        samples: The samples of the specification.
        source: Where the parameters come from.
    """
    for name in names:
        if name in RESERVED:
            yield Problem(f"{source}.{name}", f"$({name}) is a reserved name; use another name.")
        for label in samples.column_labels if samples else ():
            if label in _tokens_of(name):
                yield _two_meanings(label, source)


def _tokens_of(parameter: str) -> tuple[str, ...]:
    """Return the tokens that Maestro makes of a parameter (`Combination` of its `parameters.py`)."""
    return parameter, f"{parameter}.label", f"{parameter}.name"


def _two_meanings(label: str, block: str) -> Problem:
    return Problem(
        "merlin.samples.column_labels",
        f"'{label}' is also a name in {block}; $({label}) must have one meaning.",
    )


def check_names(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that every token has one meaning: no two things have one name, and no name is reserved."""
    environment = data.get("env") or {}
    blocks = {
        "global.parameters": data.get("global.parameters") or {},
        "env.variables": environment.get("variables") or {},
        "env.labels": environment.get("labels") or {},
    }
    for block, names in blocks.items():
        for name in names:
            if name in RESERVED:
                yield Problem(f"{block}.{name}", f"$({name}) is a reserved name; use another name.")
    tokens = {block: {*map(str, names)} for block, names in blocks.items()}
    tokens["global.parameters"] = {token for name in blocks["global.parameters"] for token in _tokens_of(str(name))}
    tokens["study"] = {f"{step.get('name')}.workspace" for step in data.get("study") or () if isinstance(step, dict)}
    samples = (data.get("merlin") or {}).get("samples")
    labels = samples["column_labels"] if samples else []
    where = "merlin.samples.column_labels"
    for label in labels:
        if not re.fullmatch(r"[^\s()]+", label):
            yield Problem(where, f"'{label}' cannot be a token; a label has no white space and no brackets.")
        if labels.count(label) > 1:
            yield Problem(where, f"found '{label}' twice; each column needs its own label.")
        if label in (*RESERVED, "OUTPUT_PATH"):
            yield Problem(where, f"'{label}' is a reserved name; use another name.")
        for block, of_block in tokens.items():
            if label in of_block:
                yield _two_meanings(label, block)
