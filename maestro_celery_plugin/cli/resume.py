"""`maestro-celery resume`: continue a study."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from maestro_celery_plugin.maestro.resume import resume

__all__ = ["command"]


@click.command("resume")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--failed", is_flag=True, help="Run failed samples again, too.")
@click.option("-s", "--sleeptime", default=60, show_default=True, help="Seconds between two polls of the conductor.")
@click.option("--broker", metavar="URL", help="Broker to use. [default: the broker of the launch]")
@click.option(
    "--broker-host", metavar="ADDRESS", help="Address of this machine at which compute nodes reach the broker."
)
@click.option("-fg", "--foreground", is_flag=True, help="Wait for the end of the study.")
def command(
    directory: Path, failed: bool, sleeptime: int, broker: str | None, broker_host: str | None, foreground: bool
) -> None:
    """Continue the study in DIRECTORY after its conductor has died or the study was cancelled.

    Finished samples do not run again.
    """
    result = resume(
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
