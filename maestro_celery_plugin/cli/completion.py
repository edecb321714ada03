"""`maestro-celery completion`: the script with which a shell completes command lines."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from maestro_celery_plugin.errors import StudyError

__all__ = ["command"]

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a script that lets SHELL complete commands, options, studies, steps and worker groups.

    For bash, add `eval "$(maestro-celery completion bash)"` to `~/.bashrc`. For zsh, add the same line with `zsh` to
    `~/.zshrc`, after `compinit`. For fish, add `maestro-celery completion fish | source` to
    `~/.config/fish/config.fish`.
    """
    found = get_completion_class(shell)
    if found is None:
        raise StudyError(f"This version of click does not know the shell '{shell}'.")
    click.echo(found(context.find_root().command, {}, "maestro-celery", "_MAESTRO_CELERY_COMPLETE").source(), nl=False)
