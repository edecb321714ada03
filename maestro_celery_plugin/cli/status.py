"""`maestro-celery status`: the status of a study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from maestro_celery_plugin.report import failed_samples, status_view
from maestro_celery_plugin.report.exit_codes import code_of
from maestro_celery_plugin.report.reader import StatusReader

__all__ = ["command"]

# Failed samples that a user reads.
DEFAULT_LIMIT = 50


@click.command("status")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Update the status until the study has ended.")
@click.option("--failed", is_flag=True, help="List the failed samples with their values.")
@click.option(
    "--limit", type=click.IntRange(1), help="Number of failed samples to list. [default: 50; all with --json]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the status as JSON, with --failed also the failed samples."
)
def command(study: Path, watch: bool, failed: bool, limit: int | None, as_json: bool) -> None:
    """Show the status of the study in the directory STUDY."""
    if watch and (failed or as_json):
        raise click.UsageError("--watch excludes --failed and --json.")
    reader = StatusReader(study)
    console = Console(highlight=False)
    if as_json:
        status = reader.read()
        listed = {"failed_samples": failed_samples.to_json(reader, limit)} if failed else {}
        click.echo(json.dumps(status.to_json() | listed, indent=1))
    elif failed:
        status = failed_samples.show_failed(reader, console, limit or DEFAULT_LIMIT)
    elif watch:
        try:
            status = status_view.watch(reader, console)
        except KeyboardInterrupt:  # the user ends `--watch` with Ctrl-C
            status = reader.read()
    else:
        status = status_view.show(reader, console)
    sys.exit(code_of(status, is_to_end=watch))
