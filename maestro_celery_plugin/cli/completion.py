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

    \b
    bash:  echo 'eval "$(maestro-celery completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(maestro-celery completion zsh)"' >> ~/.zshrc    (after compinit)
    fish:  maestro-celery completion fish > ~/.config/fish/completions/maestro-celery.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise StudyError(f"This version of click does not know the shell '{shell}'.")
    click.echo(found(context.find_root().command, {}, "maestro-celery", "_MAESTRO_CELERY_COMPLETE").source(), nl=False)
