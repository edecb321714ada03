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


@click.command("status")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Update the status until the study has ended.")
@click.option("--failed", is_flag=True, help="List the failed samples with their values.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Number of samples to list.")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def command(study: Path, watch: bool, failed: bool, limit: int, as_json: bool) -> None:
    """Show the status of the study in the directory STUDY."""
    if watch + failed + as_json > 1:
        raise click.UsageError("--watch, --failed and --json exclude each other.")
    reader = StatusReader(study)
    console = Console(highlight=False)
    if as_json:
        status = reader.read()
        click.echo(json.dumps(status.to_json(), indent=1))
    elif failed:
        status = failed_samples.show_failed(reader, console, limit)
    elif watch:
        try:
            status = status_view.watch(reader, console)
        except KeyboardInterrupt:  # the user ends `--watch` with Ctrl-C
            status = reader.read()
    else:
        status = status_view.show(reader, console)
    sys.exit(code_of(status, is_to_end=watch))
