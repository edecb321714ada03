"""`maestro-celery resume`: continue a study."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STEP, STUDY
from maestro_celery_plugin.maestro.limits import Limits
from maestro_celery_plugin.maestro.reruns import RerunRequest
from maestro_celery_plugin.maestro.resume import resume
from maestro_celery_plugin.processes import forget_secret_url
from maestro_celery_plugin.report.exit_codes import StudyCode

__all__ = ["command"]

_NOT_NEGATIVE = click.IntRange(min=0)


@click.command("resume")
@click.argument("directory", type=STUDY)
@click.option("--failed", is_flag=True, help="Run failed samples again, and what depends on them.")
@click.option(
    "--step",
    "steps",
    metavar="NAME",
    type=STEP,
    multiple=True,
    help="Run a step again, and what follows; may be repeated.",
)
@click.option("--keep-downstream", is_flag=True, help="Run nothing again that depends on samples that run again.")
@click.option(
    "--spec",
    "specification",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Corrected specification; failed steps run again, and what has not finished uses its commands, resources and "
    "worker arguments.",
)
@click.option(
    "-t",
    "--throttle",
    type=_NOT_NEGATIVE,
    help="Maximum number of step records in progress; 0 for any. [default: as before]",
)
@click.option("-r", "--rlimit", type=_NOT_NEGATIVE, help="Maximum number of restarts; 0 for any. [default: as before]")
@click.option(
    "-a", "--attempts", type=click.IntRange(min=1), help="Maximum number of submission attempts. [default: as before]"
)
@click.option(
    "-s",
    "--sleeptime",
    type=_NOT_NEGATIVE,
    help="Seconds between two polls of the conductor. [default: as `maestro update` or a resume has set, else 60]",
)
@click.option("--broker", metavar="URL", help="Broker to use: a URL, or 'private'. [default: the broker of the launch]")
@click.option(
    "--broker-host", metavar="ADDRESS", help="Address of this machine at which compute nodes reach the broker."
)
@click.option("-fg", "--foreground", is_flag=True, help="Wait for the end of the study.")
def command(
    directory: Path,
    failed: bool,
    steps: tuple[str, ...],
    keep_downstream: bool,
    specification: Path | None,
    throttle: int | None,
    rlimit: int | None,
    attempts: int | None,
    sleeptime: int | None,
    broker: str | None,
    broker_host: str | None,
    foreground: bool,
) -> None:
    """Continue the study in DIRECTORY after its conductor has died, or the study was cancelled.

    If `stop-workers` or a sample (exit code 105) has stopped workers of a study whose conductor runs, they start again.

    Finished samples do not run again, except with --failed or --step. The command first prints what will run.
    """
    forget_secret_url(broker)
    if failed and steps:
        raise click.UsageError("--failed and --step exclude each other.")
    code = resume(
        directory.absolute(),
        request=RerunRequest(
            failed=failed, failed_steps=specification is not None, steps=steps, keep_downstream=keep_downstream
        ),
        specification=specification,
        limits=Limits(throttle=throttle, rlimit=rlimit, attempts=attempts, sleep=sleeptime),
        broker=broker,
        broker_host=broker_host,
        foreground=foreground,
    )
    if foreground:
        sys.exit(code)
    if code is StudyCode.RUNNING:
        click.echo(f"A conductor runs the study; `maestro-celery status {directory}` shows it.")
