"""The generated parts of the documentation, derived from the settings classes, the commands and the states.

    python tools/reference.py docs

This command rewrites what is between two markers, `<!-- generated: keys -->` and `<!-- /generated -->`, in all pages of
a directory. `SECTIONS` has their names. Keys, options, exit codes and states have no other list.
"""

from __future__ import annotations

import argparse
import enum
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from maestro_celery_plugin import hookspecs, states
from maestro_celery_plugin.cli import main as commands
from maestro_celery_plugin.config import conversion, settings
from maestro_celery_plugin.config.key_help import Block, block_heading, key_help, member_help
from maestro_celery_plugin.maestro.argument_parser import EnsembleArgumentParser
from maestro_celery_plugin.report.exit_codes import StudyCode, WaitCode
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.states import ExitCode

__all__ = ["BLOCKS", "SECTIONS", "hooks", "main", "updated"]

_MARKED = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- /generated -->)", re.DOTALL)

# What the exit codes without a token mean (`study/failures.py`).
_OTHER_CODES = "The sample failed; a sampled step continues, within `max_failures`, and any other step fails."

# In the order of a specification.
BLOCKS: tuple[Block, ...] = (
    settings.StepSettings,
    settings.MerlinSettings,
    settings.SampleSettings,
    settings.GenerateSettings,
    settings.ResourceSettings,
    settings.WorkerGroupSettings,
    settings.BatchSettings,
)

_TYPE_NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true, false"}


def updated(page: str) -> str:
    """Return a page with its generated sections as they are now.

    Raises:
        ValueError: there is no section of this name.
    """

    def section(match: re.Match[str]) -> str:
        if match[2] not in SECTIONS:
            raise ValueError(f"no section '{match[2]}'; there are {', '.join(SECTIONS)}")
        return "\n".join((f"{match[1]}", *SECTIONS[match[2]](), match[3]))

    return _MARKED.sub(section, page)


# --- keys --------------------------------------------------------------------------------------------


def _keys() -> Iterator[str]:
    for block in BLOCKS:
        name, purpose = block_heading(block)
        yield from (f"## `{name}`", "", f"{purpose[0].upper()}{purpose[1:]}", "")
        yield from _table(("key", "value", "default", "meaning"), _rows_of(block))


def _rows_of(block: Block) -> Iterator[tuple[str, ...]]:
    document = conversion.json_schema(block)
    help_of = key_help(block)
    for key, value in document["properties"].items():
        default = "required" if key in document.get("required", ()) else _default_text(value.get("default"))
        yield f"`{key}`", _value_text(value), default, help_of[key]


def _value_text(value: Mapping[str, Any]) -> str:
    """Return the allowed values of a key from its JSON schema."""
    if "anyOf" in value:
        return ", ".join(_value_text(one) for one in value["anyOf"] if one.get("type") != "null")
    choices = value.get("enum", [value["const"]] if "const" in value else [])
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if "$ref" in value:
        return "block"
    if value.get("type") == "array":
        return f"list of {_value_text(value['items'])}"
    if value.get("type") == "object":
        entries = value.get("additionalProperties")
        return f"{_value_text(entries)} for each name" if isinstance(entries, dict) and entries else "block"
    if "pattern" in value:
        return str(value["description"])
    name = _TYPE_NAMES[value["type"]]
    return f"{name} ≥ {value['minimum']:g}" if "minimum" in value else name


def _default_text(default: Any) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return "" if default in (None, "", (), {}) else f"`{default}`"


# --- exit codes --------------------------------------------------------------------------------------


def _exit_codes() -> Iterator[str]:
    help_of = member_help(ExitCode)
    rows = [(str(code.value), f"`$(MERLIN_{code.name})`", help_of[code.name]) for code in ExitCode]
    rows.append(("any other, or a signal", "", _OTHER_CODES))
    yield from _table(("code", "token", "meaning"), rows)


# --- commands ----------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield from ("## `maestro run`", "", "Maestro's options, and:", "")
    parser = EnsembleArgumentParser(prog="maestro run", add_help=False)
    yield from _table(("option", "meaning"), map(_parser_row, parser._actions))
    for name, command in _subcommands():
        arguments = [str(p.name).upper() for p in command.params if isinstance(p, click.Argument)]
        title = " ".join(("maestro-celery", name, *arguments))
        level = "###" if " " in name else "##"
        yield from (f"{level} `{title}`", "", inspect.cleandoc(command.help or ""), "")
        yield from _table(("option", "meaning"), _option_rows(command))


def _codes(cls: type[enum.IntEnum], command: str) -> Iterator[str]:
    rows = [(str(code.value), f"`{code.name.lower()}`", text) for code, text in _meanings(cls)]
    yield from _table(("code", f"`outcome` of `{command} --json`", "the study"), rows)


def _subcommands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(commands)
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        if command is not None:
            yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())


def _parser_row(action: argparse.Action) -> tuple[str, str]:
    return f"`{' '.join(filter(None, (*action.option_strings, str(action.metavar or ''))))}`", str(action.help)


def _option_rows(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yield the spelling and the meaning of each option; click's own help text differs between its versions."""
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


# --- states ------------------------------------------------------------------------------------------


def _states(cls: type[enum.Enum], name_of: Callable[[Any], str] = lambda state: str(state.name)) -> Iterator[str]:
    rows = [(f"`{name_of(state)}`", text) for state, text in _meanings(cls)]
    yield from _table(("state", "meaning"), rows)


def _record_states() -> Iterator[str]:
    rows = [(f"`{states.MAESTRO_STATES[state]}`", text) for state, text in _meanings(states.RecordState)]
    yield from _table(("state in `maestro status`", "meaning"), rows)


def _allocation_states() -> Iterator[str]:
    rows = [
        (str(state.value), text, f"`{states.MAESTRO_STATES[states.ALLOCATION_ENDS[state]]}`")
        for state, text in _meanings(states.AllocationState)
    ]
    yield from _table(("an allocation", "meaning", "step records with samples left become"), rows)


def _meanings(cls: type[enum.Enum]) -> Iterator[tuple[Any, str]]:
    help_of = member_help(cls)
    return ((state, help_of[state.name]) for state in cls)


# --- Markdown ----------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    found = list(rows)
    if not found:
        return
    for row in (head, ["---"] * len(head), *found):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "keys": _keys,
    "exit codes": _exit_codes,
    "commands": _commands,
    "study codes": lambda: _codes(StudyCode, "monitor"),
    "wait codes": lambda: _codes(WaitCode, "wait"),
    "outcomes": lambda: _states(states.Outcome),
    "record states": _record_states,
    "study states": lambda: _states(StudyState),
    "worker states": lambda: _states(states.WorkerState, str),
    "allocation states": _allocation_states,
}


def main() -> None:
    """Rewrite the generated sections of all pages in a directory."""
    parser = argparse.ArgumentParser(prog="python tools/reference.py", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    for path in sorted(parser.parse_args().directory.rglob("*.md")):
        try:
            path.write_text(updated(path.read_text()))
        except (OSError, ValueError) as error:
            sys.exit(f"error: {path}: {error}")


if __name__ == "__main__":
    main()
