"""The reference in the README, derived from the settings classes, the commands and the hooks.

    python tools/reference.py README.md

rewrites what stands in the file between the two markers. There is no other list of keys or options.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import click

from maestro_celery_plugin import hookspecs
from maestro_celery_plugin.cli import main as commands
from maestro_celery_plugin.config import settings
from maestro_celery_plugin.maestro.hooks import EnsembleArgumentParser
from maestro_celery_plugin.states import ExitCode

__all__ = ["BEGIN", "BLOCKS", "END", "hooks", "main", "member_help", "reference", "updated"]

BEGIN = "<!-- reference: made by `make docs` -->"
END = "<!-- /reference -->"

# A settings class; its docstring begins with the name of its block.
Block: TypeAlias = Any

# In the order of a specification.
BLOCKS: tuple[Block, ...] = (
    settings.StepSettings,
    settings.SampleSettings,
    settings.GenerateSettings,
    settings.ResourceSettings,
    settings.WorkerGroupSettings,
    settings.BatchSettings,
)

_TYPE_WORDS = {str: "text", int: "integer", float: "number", bool: "true, false", Any: "anything"}


def reference() -> str:
    """Return the whole reference as Markdown."""
    return "\n".join((*_keys(), *_exit_codes(), *_commands(), *_hooks()))


def updated(document: str) -> str:
    """Return a document with the reference between its markers.

    Raises:
        ValueError: it does not have both markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers '{BEGIN}' and '{END}' are needed, in this order")
    return f"{before}{begin}\n\n{reference()}\n{end}{after}"


# --- keys --------------------------------------------------------------------------------------------


def _keys() -> Iterator[str]:
    yield from ("### Keys", "", "Keys of Maestro are not listed; they mean what they mean there.", "")
    for block in BLOCKS:
        name, purpose = _heading(block)
        yield from (f"#### `{name}`", "", f"{purpose[0].upper()}{purpose[1:]}", "")
        yield from _table(("key", "value", "default", "meaning"), _rows_of(block))


def _heading(block: Block) -> tuple[str, str]:
    """Return name and purpose of a block, from the first line of its class's docstring."""
    found = re.match(r"``(.+?)``: (.+)", str(block.__doc__))
    if found is None:
        raise ValueError(f"{block.__name__}: the docstring must begin with ``block``: purpose.")
    return found[1], found[2]


def _rows_of(block: Block) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(block)
    for field in dataclasses.fields(block):
        value = _type_words(hints[field.name], field.metadata["limits"])
        yield f"`{settings.key_of(field)}`", value, _default_words(field), field.metadata["help"]


def _type_words(hint: Any, limits: Mapping[str, Any]) -> str:
    if hint in (int, float) and "minimum" in limits:
        return f"{_TYPE_WORDS[hint]} ≥ {limits['minimum']}"
    if hint in _TYPE_WORDS:
        return _TYPE_WORDS[hint]
    if dataclasses.is_dataclass(hint):
        return "block"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"list of {_type_words(arguments[0], {})}"
    if origin is dict:
        return "block" if arguments[1] is Any else f"{_type_words(arguments[1], {})} for each name"
    if origin in (typing.Union, types.UnionType):
        return ", ".join(_type_words(one, limits) for one in arguments if one is not type(None))
    raise TypeError(f"no words for {hint!r}")


def _default_words(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else _code(field.default)


def _code(value: Any) -> str:
    return "" if value in (None, "", ()) else f"`{value}`"


# --- exit codes --------------------------------------------------------------------------------------


def _exit_codes() -> Iterator[str]:
    yield from ("### Exit codes of a sample", "")
    help_of = member_help(ExitCode)
    rows = [(str(code.value), f"`$(MERLIN_{code.name})`", help_of[code.name]) for code in ExitCode]
    rows.append(("any other, or a signal", "", help_of["SOFT_FAIL"]))
    yield from _table(("code", "token", "meaning"), rows)


def member_help(cls: type[enum.Enum]) -> dict[str, str]:
    """Return what stands as a string below each member of an enumeration, which Python does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    found: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for member, text in itertools.pairwise(statements):
        if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
            value = text.value if isinstance(text, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[member.targets[0].id] = value.value
    return found


# --- commands ----------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield from ("### Commands", "")
    yield from ("#### `maestro run`", "", "Maestro's options, and:", "")
    parser = EnsembleArgumentParser(prog="maestro run", add_help=False)
    yield from _table(("option", "meaning"), map(_parser_row, parser._actions))
    for name, command in commands.commands.items():
        arguments = [str(p.name).upper() for p in command.params if isinstance(p, click.Argument)]
        title = " ".join(("maestro-celery", name, *arguments))
        yield from (f"#### `{title}`", "", inspect.cleandoc(command.help or ""), "")
        yield from _table(("option", "meaning"), _option_rows(command))


def _parser_row(action: argparse.Action) -> tuple[str, str]:
    return f"`{' '.join((*action.option_strings, str(action.metavar or '')))}`", str(action.help)


def _option_rows(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yield spelling and meaning of each option; not click's own rendering, which changes with its version."""
    for option in command.params:
        if isinstance(option, click.Option):
            value = "" if option.is_flag else option.metavar or option.type.name.removesuffix(" range").upper()
            default = f" [default: {option.default}]" if option.show_default else ""
            yield f"`{', '.join(option.opts)} {value}".rstrip() + "`", f"{option.help}{default}"


# --- hooks -------------------------------------------------------------------------------------------


def hooks() -> dict[str, Callable[..., Any]]:
    """Return the hook specifications by name."""
    marked = f"{hookspecs.HOOK_NAMESPACE}_spec"
    return {name: f for name, f in vars(hookspecs).items() if inspect.isfunction(f) and hasattr(f, marked)}


def _hooks() -> Iterator[str]:
    yield from ("### Hooks", "")
    rows = [
        (f"`{name}({', '.join(inspect.signature(hook).parameters)})`", _first_paragraph(hook))
        for name, hook in hooks().items()
    ]
    yield from _table(("hook", "meaning"), rows)


def _first_paragraph(hook: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(hook) or "").partition("\n\n")[0].split())


# --- Markdown ----------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    found = list(rows)
    if not found:
        return
    for row in (head, ["---"] * len(head), *found):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def main() -> None:
    """Rewrite the reference in the file that is named on the command line."""
    parser = argparse.ArgumentParser(prog="python tools/reference.py", description=main.__doc__)
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args().file
    try:
        path.write_text(updated(path.read_text()))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: {error}")


if __name__ == "__main__":
    main()
