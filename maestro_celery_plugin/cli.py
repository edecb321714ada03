"""The command line: `maestro-celery`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from maestro_celery_plugin.errors import EnsembleError

__all__ = ["main"]


class _Commands(click.Group):
    """Commands whose `EnsembleError` is a message on stderr and exit code 1, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was given."""
        try:
            return super().invoke(ctx)
        except EnsembleError as error:
            click.echo(f"maestro-celery: error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands)
def main() -> None:
    """Look after ensemble studies of Maestro."""


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Go on showing it until the study has ended.")
@click.option("--failed", is_flag=True, help="List the failed samples with their values.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many it lists.")
@click.option("--json", "as_json", is_flag=True, help="Print it for scripts.")
def status(study: Path, watch: bool, failed: bool, limit: int, as_json: bool) -> None:
    """Show how far the study in the directory STUDY is."""
    import json

    from maestro_celery_plugin.status import StatusReader

    if watch + failed + as_json > 1:
        raise click.UsageError("--watch, --failed and --json exclude each other.")
    reader = StatusReader(study)
    if as_json:
        click.echo(json.dumps(reader.read().to_json(), indent=1))
        return

    from rich.console import Console

    from maestro_celery_plugin import status_view

    console = Console(highlight=False)
    if failed:
        status_view.show_failed(reader, console, limit)
    elif watch:
        try:
            status_view.watch(reader, console)
        except KeyboardInterrupt:
            return  # how one leaves
    else:
        status_view.show(reader, console)
