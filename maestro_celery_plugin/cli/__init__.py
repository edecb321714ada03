"""The command line: `maestro-celery`."""

from __future__ import annotations

import sys
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
@click.version_option(package_name="maestro-celery-plugin")
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

    from maestro_celery_plugin.report.reader import StatusReader

    if watch + failed + as_json > 1:
        raise click.UsageError("--watch, --failed and --json exclude each other.")
    reader = StatusReader(study)
    if as_json:
        click.echo(json.dumps(reader.read().to_json(), indent=1))
        return

    from rich.console import Console

    from maestro_celery_plugin.report import sample_view, study_view

    console = Console(highlight=False)
    if failed:
        sample_view.show_failed(reader, console, limit)
    elif watch:
        try:
            study_view.watch(reader, console)
        except KeyboardInterrupt:
            return  # how one leaves
    else:
        study_view.show(reader, console)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--failed", is_flag=True, help="Run failed samples again, too.")
@click.option("-s", "--sleeptime", default=60, show_default=True, help="Seconds between two polls of the conductor.")
@click.option("--broker", metavar="URL", help="Broker to use. [default: the one the study was launched with]")
@click.option("--broker-host", metavar="ADDRESS", help="Address of this machine that compute nodes reach it at.")
@click.option("-fg", "--foreground", is_flag=True, help="Wait for the study's end.")
def resume(
    directory: Path, failed: bool, sleeptime: int, broker: str | None, broker_host: str | None, foreground: bool
) -> None:
    """Go on with the study in DIRECTORY, whose conductor died or that was cancelled.

    What is finished does not run again.
    """
    from maestro_celery_plugin.maestro.resume import resume as resume_study

    result = resume_study(
        directory.absolute(),
        failed=failed,
        sleep_s=sleeptime,
        broker=broker,
        broker_host=broker_host,
        foreground=foreground,
    )
    if foreground:
        sys.exit(result)
    if failed:
        click.echo(f"{result} failed {'sample runs' if result == 1 else 'samples run'} again.")
    click.echo(f"Study resumed; `maestro-celery status {directory}` shows its progress.")


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--group", "groups", multiple=True, help="Worker group, again for more. [default: all for this machine]")
@click.option("--echo", is_flag=True, help="Print the command lines and start nothing.")
def workers(study: Path, groups: tuple[str, ...], echo: bool) -> None:
    """Start workers of a study here, and wait until they have left.

    STUDY is the directory of a study, or a specification of which a study is running. Inside an allocation,
    the workers of a group that is for one are started on its nodes.
    """
    from maestro_celery_plugin.cli.workers import start_workers, study_of, worker_lines

    lines = worker_lines(study_of(study), groups)
    for name, line in lines.items():
        click.echo(line if echo else f"Starting worker group '{name}': {line}")
    sys.exit(0 if echo else start_workers(lines))


@main.command()
@click.argument("specification", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def allocation(specification: Path) -> None:
    """Print the batch scripts and worker command lines that a study of SPECIFICATION would use."""
    from maestro_celery_plugin.cli.allocation import previews

    for preview in previews(specification):
        click.echo(f"# {preview.title}\n{preview.text}\n")


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
def explain(study: Path) -> None:
    """Say why step records of the study in the directory STUDY do not run, or why they have ended."""
    from maestro_celery_plugin.report.explain import explain as explain_study

    found = explain_study(study)
    for title, sentences in found:
        click.echo(title)
        for sentence in sentences:
            click.echo("\n".join(f"    {line}" for line in sentence.splitlines()))
    if not found:
        click.echo("All step records have finished.")


@main.command()
@click.option("--broker", metavar="URL", help="Broker to check. [default: the one a study would use]")
def doctor(broker: str | None) -> None:
    """Check that Maestro, plugin and broker work together here; exit code 1 if not."""
    from maestro_celery_plugin.cli.doctor import examine

    is_well = True
    for finding in examine(broker):
        is_well = is_well and finding.remedy is None
        click.echo(f"{'ok' if finding.remedy is None else 'NO'}  {finding.subject}: {finding.found}")
        if finding.remedy:
            click.echo(f"    {finding.remedy}")
    sys.exit(0 if is_well else 1)
