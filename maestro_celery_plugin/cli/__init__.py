"""The command line `maestro-celery`: one module per command.

A command is imported when it is called, so that no command waits for the imports of another.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from maestro_celery_plugin.cli.declarations import declarations_only
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.imports import one_thread
from maestro_celery_plugin.output import replace_unknown_characters
from maestro_celery_plugin.spec.overrides import one_variable_each

__all__ = ["main"]

# The commands in the order of the help text; each is a module with a function `command`.
COMMANDS = (
    *("example", "validate", "convert", "schema"),
    *("status", "samples", "failed", "explain", "report"),
    *("wait", "monitor", "resume", "cancel", "add-samples", "session"),
    *("workers", "stop-workers", "queues", "purge", "allocation"),
    *("config", "doctor", "completion"),
)

# New objects between two searches for garbage. A command creates many thousands that stay, and hardly any garbage.
_GARBAGE_THRESHOLD = 100_000

_COMPLETION_VARIABLE = "_MAESTRO_CELERY_COMPLETE"  # of click, derived from the name of the program
_INTERRUPTED = 130  # of a shell, for a process that SIGINT ends


class _Commands(click.Group):
    """Commands that end with the message of an error on stderr and exit code 1, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest similar names for an unknown one.

        click takes its suggestions from the commands that are registered, of which this group has none.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not close or args[0] in COMMANDS:
                raise
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{close[0]}'?", ctx) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; return None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        with declarations_only() if ctx.resilient_parsing else one_thread():
            command: click.Command = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}").command
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, or answer a shell that completes a command line."""
        if _COMPLETION_VARIABLE in os.environ:
            _quote_in_bash()
        return super().main(*args, **kwargs)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return the commands and options that begin so; no command is imported."""
        from click.shell_completion import CompletionItem

        commands = [CompletionItem(name, help=_summary(name)) for name in COMMANDS if name.startswith(incomplete)]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, with one variable for each `--vars`, as `maestro run` does."""
        return super().parse_args(ctx, list(one_variable_each(args)))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        gc.set_threshold(_GARBAGE_THRESHOLD)
        replace_unknown_characters()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends in silence when nobody reads the output any more
        except (EnsembleError, OSError) as error:
            text = _words_of(error) if isinstance(error, OSError) else str(error)
            click.echo(f"maestro-celery: error: {text}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo(
                "maestro-celery: interrupted; a conductor that runs goes on, and `maestro-celery status` shows it.",
                err=True,
            )
            ctx.exit(_INTERRUPTED)


def _quote_in_bash() -> None:
    """Let bash insert values with blanks in quotes; the other shells do this themselves."""
    from click.shell_completion import BashComplete, CompletionItem, add_completion_class

    class QuotingBash(BashComplete):
        def get_completion_args(self) -> tuple[list[str], str]:
            """Return the words; bash makes three of ``--step=NAME``, of which click understands the first and last."""
            args, incomplete = super().get_completion_args()
            of_option = [word == "=" and before.startswith("--") for before, word in pairwise(["", *args, incomplete])]
            kept = [word for word, is_separator in zip(args, of_option, strict=False) if not is_separator]
            return kept, "" if of_option[-1] else incomplete

        def format_completion(self, item: CompletionItem[Any]) -> str:
            return f"{item.type},{shlex.quote(item.value) if item.type == 'plain' else item.value}"

    add_completion_class(QuotingBash)


def _summary(name: str) -> str | None:
    """Return what a command does, from the first line of its module; None if the module is not a file."""
    try:
        with Path(__file__).with_name(f"{name.replace('-', '_')}.py").open(encoding="utf-8") as file:
            found = re.match(r'"""`maestro-celery [^`]+`: (.+?)\.?(?:"""|$)', file.readline())
    except OSError:
        return None
    return found[1] if found else None


def _words_of(error: OSError) -> str:
    """Return a sentence for an error of a file, without its number."""
    if error.filename is None or error.strerror is None:
        return str(error)
    if isinstance(error, PermissionError):
        return f"'{error.filename}' cannot be read or written ({error.strerror}); its owner can, or use another path."
    return f"'{error.filename}' cannot be used ({error.strerror}); correct this, or use another path."


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="maestro-celery-plugin")
def main() -> None:
    """Check, show, explain, continue and cancel ensemble studies of Maestro."""
