"""The reference in the README, derived from the settings classes, the commands and the hooks.

    python tools/reference.py README.md

This command rewrites the part of the file between the two markers. The keys and options have no other list.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from maestro_celery_plugin import hookspecs
from maestro_celery_plugin.cli import main as commands
from maestro_celery_plugin.config import conversion, settings
from maestro_celery_plugin.config.key_help import Block, block_heading, key_help, member_help
from maestro_celery_plugin.maestro.argument_parser import EnsembleArgumentParser
from maestro_celery_plugin.report.exit_codes import StudyCode, WaitCode
from maestro_celery_plugin.states import ExitCode

__all__ = ["BEGIN", "BLOCKS", "END", "hooks", "main", "reference", "updated"]

BEGIN = "<!-- reference: made by `make docs` -->"
END = "<!-- /reference -->"

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


def reference() -> str:
    """Return the whole reference as Markdown."""
    return "\n".join((*_keys(), *_exit_codes(), *_commands(), *_study_codes(), *_hooks()))


def updated(document: str) -> str:
    """Return a document with the reference between its markers.

    Raises:
        ValueError: the document does not have both markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers '{BEGIN}' and '{END}' are needed, in this order")
    return f"{before}{begin}\n\n{reference()}\n{end}{after}"


# --- keys --------------------------------------------------------------------------------------------


def _keys() -> Iterator[str]:
    yield from ("### Keys", "", "Maestro's own keys are not listed; the plugin does not change their meaning.", "")
    for block in BLOCKS:
        name, purpose = block_heading(block)
        yield from (f"#### `{name}`", "", f"{purpose[0].upper()}{purpose[1:]}", "")
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
    yield from ("### Exit codes of a sample", "")
    help_of = member_help(ExitCode)
    rows = [(str(code.value), f"`$(MERLIN_{code.name})`", help_of[code.name]) for code in ExitCode]
    rows.append(("any other, or a signal", "", _OTHER_CODES))
    yield from _table(("code", "token", "meaning"), rows)


# --- commands ----------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield from ("### Commands", "")
    yield from ("#### `maestro run`", "", "Maestro's options, and:", "")
    parser = EnsembleArgumentParser(prog="maestro run", add_help=False)
    yield from _table(("option", "meaning"), map(_parser_row, parser._actions))
    for name, command in _subcommands():
        arguments = [str(p.name).upper() for p in command.params if isinstance(p, click.Argument)]
        title = " ".join(("maestro-celery", name, *arguments))
        yield from (f"#### `{title}`", "", inspect.cleandoc(command.help or ""), "")
        yield from _table(("option", "meaning"), _option_rows(command))


def _study_codes() -> Iterator[str]:
    yield from ("### Exit codes of `maestro-celery status`, `explain`, `monitor` and `resume`", "")
    yield "`resume` without `-fg` returns 0 when the conductor runs. A command that has failed itself returns 1,"
    yield from ("with a message on stderr.", "")
    help_of = member_help(StudyCode)
    rows = [(str(code.value), f"`{code.name.lower()}`", help_of[code.name]) for code in StudyCode]
    yield from _table(("code", "`outcome` of `monitor --json`", "the study"), rows)
    yield from ("### Exit codes of `maestro-celery wait`", "")
    yield from ("Ctrl-C ends it with 130. A command that has failed itself returns 1, with a message on stderr.", "")
    help_of = member_help(WaitCode)
    rows = [(str(code.value), f"`{code.name.lower()}`", help_of[code.name]) for code in WaitCode]
    yield from _table(("code", "`outcome` of `wait --json`", "the study"), rows)


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
    """Rewrite the reference in a file."""
    parser = argparse.ArgumentParser(prog="python tools/reference.py", description=main.__doc__)
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args().file
    try:
        path.write_text(updated(path.read_text()))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: {error}")


if __name__ == "__main__":
    main()
