"""`maestro-celery status`: the status of a study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from maestro_celery_plugin.cli.parameter_types import STUDY
from maestro_celery_plugin.report import failed_samples, status_view
from maestro_celery_plugin.report.exit_codes import code_of
from maestro_celery_plugin.report.live.progress_display import is_live_terminal
from maestro_celery_plugin.report.model import StudyStatus
from maestro_celery_plugin.report.reader import StatusReader

__all__ = ["command"]

# Failed samples that a user reads.
DEFAULT_LIMIT = 50


@click.command("status")
@click.argument("study", type=STUDY)
@click.option(
    "--watch",
    is_flag=True,
    help="Update the status until the study has ended. In a terminal, keys sort, filter, and open failed samples; "
    "? lists them.",
)
@click.option("--stay", is_flag=True, help="With --watch in a terminal: stay after the end, until the key q.")
@click.option("--failed", is_flag=True, help="List the failed samples with their values.")
@click.option(
    "--limit", type=click.IntRange(1), help="Number of failed samples to list. [default: 50; all with --json]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the status as JSON, with --failed also the failed samples."
)
def command(study: Path, watch: bool, stay: bool, failed: bool, limit: int | None, as_json: bool) -> None:
    """Show the status of the study in the directory STUDY."""
    if stay and not watch:
        raise click.UsageError("--stay needs --watch.")
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
        status = _watch(reader, console, stays=stay)
    else:
        status = status_view.show(reader, console)
    sys.exit(code_of(status, is_to_end=watch))


def _watch(reader: StatusReader, console: Console, *, stays: bool) -> StudyStatus:
    """Show a study until its end, or until the user leaves; its last status stays on the terminal."""
    try:
        if not (is_live_terminal() and sys.stdin.isatty()):
            return status_view.watch(reader, console)
        from maestro_celery_plugin.report.live.watch import watch_with_keys

        status = watch_with_keys(reader, console, stays=stays)
    except (KeyboardInterrupt, EOFError):  # the user ends the watch with Ctrl-C, or closes the terminal
        return StatusReader(reader.plan.root).read()  # a new one, because that look may be incomplete
    status_view.show_last(status, reader, console)
    return status
